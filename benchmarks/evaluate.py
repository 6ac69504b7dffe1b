"""Users per second of the exact evaluation, against a loop that sorts each user's scores.

python -m benchmarks.evaluate
python -m benchmarks.evaluate --users 100000 --items 100000 --dimensions 200 --json

Scores are dot products with the maximum of a profile's vectors; a profile has 20 items, and 1 to 5
more are held out. visrec is `rank_targets` followed by `per_user`. The loop is the obvious one:
`vectors @ user`, `np.argsort`, then AUC and nDCG from the ranks of the held-out items. Ties cost it
next to nothing, since only ties with held-out items are resolved. `gemm` is torch's product of the
same tiles alone, an upper bound for visrec's approach. All three have the same number of threads
(only the product inside the loop uses them) and take turns; the loop and the product run on a
sample of the users. Results are medians over `--repeats`, spreads are maximum minus minimum.

Vectors are integers small enough for every float32 sum to be exact. So the loop and visrec have the
same scores, ties included, although they add up in different orders, and `identical` compares the
counts and metrics of every user of the sample. `peak_rss_mb` is the memory of the process after
`rank_targets` and before any loop; `start_rss_mb` of it was there before.
"""

import argparse
import json
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.arguments import asked
from benchmarks.machine import machine
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets
from visrec.retrieval.topk import item_tiles, user_blocks

PROFILE, MOST_HELD = 20, 5
CUTOFF = 20
LARGEST = 2**24  # whole numbers up to here are float32 numbers


def made_users(users: int, items: int) -> tuple[Jagged, Jagged]:
    """Profiles and held-out items, no item twice in a user's."""
    random = np.random.default_rng(0)
    taken = PROFILE + MOST_HELD
    first_U1 = random.integers(0, items, (users, 1))
    step_U1 = random.integers(1, items // taken + 1, (users, 1))
    item_UI = (first_U1 + step_U1 * random.permutation(taken)) % items
    held_U = random.integers(1, MOST_HELD + 1, users)
    held_UH = np.arange(MOST_HELD) < held_U[:, None]
    profiles = Jagged(item_UI[:, :PROFILE].ravel(), np.arange(users + 1) * PROFILE)
    return profiles, Jagged(item_UI[:, PROFILE:][held_UH], offsets_from_lengths(held_U))


def made_scorer(items: int, dimensions: int) -> DotScorer:
    """Vectors of whole numbers, every sum of whose products is exact in float32."""
    largest = int((LARGEST / dimensions) ** 0.5)
    values = np.random.default_rng(1).integers(-largest, largest + 1, (items, dimensions))
    vectors_Nd = torch.from_numpy(values.astype(np.float32))
    return DotScorer(vectors_Nd, lambda bags, _: pool(vectors_Nd, bags, "max"), vectors_Nd)


def by_visrec(scorer: DotScorer, profiles: Jagged, targets: Jagged) -> dict[str, Any]:
    """Counts of each held-out item, AUC and nDCG of each user."""
    target_ranks = rank_targets(scorer, profiles, np.full(len(profiles), -1), targets)
    metrics = per_user(target_ranks, (CUTOFF,))
    return {
        "above": target_ranks.above_P,
        "others_above": target_ranks.others_above_P,
        "others_equal": target_ranks.others_equal_P,
        "auc": metrics["auc"],
        "ndcg": metrics[f"ndcg@{CUTOFF}"],
    }


def by_sorting(scorer: DotScorer, profiles: Jagged, targets: Jagged) -> dict[str, Any]:
    """The same, user by user."""
    found: dict[str, list[Any]] = {name: [] for name in ("above", "others_above", "others_equal")}
    aucs, ndcgs = [], []
    for user in range(len(profiles)):
        known, held = profiles[user], targets[user]
        user_d = scorer.vectors_Nd[torch.from_numpy(known)].amax(0)
        score_N = (scorer.vectors_Nd @ user_d).numpy()
        score_N[known] = -np.inf
        order_N = np.argsort(score_N)
        sorted_N, own = score_N[order_N], score_N[held]
        left, right = np.searchsorted(sorted_N, own), np.searchsorted(sorted_N, own, "right")
        before = [
            int((order_N[a:b] < row).sum()) for a, b, row in zip(left, right, held, strict=True)
        ]
        above = len(sorted_N) - right + before
        others_above = len(sorted_N) - right - (own > own[:, None]).sum(1)
        others_equal = right - left - (own == own[:, None]).sum(1)
        negatives = len(sorted_N) - len(known) - len(held)
        aucs.append(1 - (others_above + 0.5 * others_equal).sum() / len(held) / negatives)
        gains = 1 / np.log2(above[above < CUTOFF] + 2)
        ideal = 1 / np.log2(np.arange(min(len(held), CUTOFF)) + 2)
        ndcgs.append(gains.sum() / ideal.sum())
        for name, counts in zip(found, (above, others_above, others_equal), strict=True):
            found[name].append(counts)
    counts = {name: np.concatenate(parts) for name, parts in found.items()}
    return {**counts, "auc": np.array(aucs), "ndcg": np.array(ndcgs)}


def same(ours: dict[str, Any], theirs: dict[str, Any], users: int, held: int) -> bool:
    """Whether the first users' counts are equal, and their metrics but for the last bits."""
    counts = ("above", "others_above", "others_equal")
    return all(np.array_equal(ours[name][:held], theirs[name]) for name in counts) and all(
        np.allclose(ours[name][:users], theirs[name], rtol=0, atol=1e-12)
        for name in ("auc", "ndcg")
    )


@torch.inference_mode()
def multiply(scorer: DotScorer, profiles: Jagged) -> None:
    """The tiles of scores and nothing else."""
    for _, state in user_blocks(scorer, profiles, np.full(len(profiles), -1)):
        for _ in item_tiles(scorer, state):
            pass


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def rss_mb() -> float:
    """The most memory the process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """What --json prints."""
    torch.set_num_threads(args.threads)
    profiles, targets = made_users(args.users, args.items)
    scorer = made_scorer(args.items, args.dimensions)
    sample = min(args.sample, args.users)
    few = profiles.slice(0, sample), targets.slice(0, sample)
    by_visrec(scorer, *few)  # what is loaded and allocated once
    multiply(scorer, few[0])
    start_mb = rss_mb()
    rates: dict[str, list[float]] = {"users_per_s": [], "argsort_users_per_s": []}
    rates |= {"gemm_users_per_s": [], "ratio_argsort": []}
    peak_mb, identical = 0.0, True
    for repeat in range(args.repeats):
        seconds, ours = timed(lambda: by_visrec(scorer, profiles, targets))
        peak_mb = peak_mb or rss_mb()
        loop_seconds, theirs = timed(lambda: by_sorting(scorer, *few))
        product_seconds, _ = timed(lambda: multiply(scorer, few[0]))
        rates["users_per_s"].append(args.users / seconds)
        rates["argsort_users_per_s"].append(sample / loop_seconds)
        rates["gemm_users_per_s"].append(sample / product_seconds)
        rates["ratio_argsort"].append(args.users / seconds * loop_seconds / sample)
        identical &= same(ours, theirs, sample, len(few[1].values))
        print(f"{repeat + 1}: " + ", ".join(f"{k} {v[-1]:,.1f}" for k, v in rates.items()))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    spreads = {name: max(values) - min(values) for name, values in rates.items()}
    memory = {"peak_rss_mb": peak_mb, "start_rss_mb": start_mb}
    return {"asked": vars(args), **medians, "spread": spreads, **memory, "identical": identical}


def main() -> None:
    args = asked(
        __doc__,
        users=100_000,
        items=100_000,
        dimensions=200,
        sample=512,
        threads=os.cpu_count() or 1,
        repeats=3,
    )
    measured_on = machine()  # with the load that was there before
    found = measure(args)
    for name in ("users_per_s", "argsort_users_per_s", "gemm_users_per_s", "ratio_argsort"):
        print(f"{name:22}{found[name]:>12,.1f}  ± {found['spread'][name] / 2:,.1f}")
    print(f"{'peak_rss_mb':22}{found['peak_rss_mb']:>12,.0f}")
    print(f"{'identical':22}{found['identical']!s:>12}")
    if args.json:
        print(json.dumps({**found, **measured_on}))


if __name__ == "__main__":
    main()
