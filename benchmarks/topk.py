"""Users per second for the top 100 of 100,000 items: visrec's kernel against its peers.

python -m benchmarks.topk
python -m benchmarks.topk --users 8192 --json

All search the same random vectors with the same number of threads in one run. visrec also excludes
20 items per user, within the measured time, and its lists are exact; the others exclude nothing.
Each peer runs at the best of several batch sizes, chosen beforehand. Repeats take turns, so that
other load disturbs all alike; results are medians with the lowest and the highest.

faiss      IndexFlatIP.search
implicit   implicit.cpu.topk, the C++ selection behind its recommend()
torch      torch.topk of the tiles of a float32 product, then of the tiles' winners
gemm       the float32 product alone, tile by tile, without selection: the limit of the three above
"""

import json
import statistics
import time
from collections.abc import Callable

import faiss
import implicit.cpu.topk
import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits

from benchmarks.arguments import asked
from benchmarks.machine import machine
from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer
from visrec.retrieval.kernel import kernel_unavailable_reason
from visrec.retrieval.topk import TopK, TopKResult

Floats = npt.NDArray[np.float32]
Search = Callable[[Floats], object]
TILE = 8192
BATCHES = (64, 256, 1024, 4096)
TUNED_WITH = 1024  # users
TIE = 1e-6  # of the best score: what is nearer may change places


def visrec(item_Nd: Floats, excluded: Jagged, k: int) -> Callable[[Floats], TopKResult]:
    """The kernel as the jobs call it, 1,024 users at a time."""
    tensor = torch.from_numpy(item_Nd)
    users: list[Floats] = []
    scorer = DotScorer(tensor, lambda _, user_B: torch.from_numpy(users[0])[user_B.clamp(min=0)])
    search = TopK(scorer, None, k)

    def run(user_Bd: Floats) -> TopKResult:
        users[:] = [user_Bd]
        found = []
        for start in range(0, len(user_Bd), 1024):
            rows = np.arange(start, min(start + 1024, len(user_Bd)))
            nothing = Jagged(np.zeros(0, np.int64), np.zeros(len(rows) + 1, np.int64))
            found.append(search(nothing, rows, excluded.slice(rows[0], rows[-1] + 1)))
        return TopKResult(
            *(np.concatenate([getattr(f, n) for f in found]) for n in ("row_BK", "score_BK"))
        )

    return run


def in_batches(search: Search, size: int) -> Search:
    def run(user_Bd: Floats) -> None:
        for start in range(0, len(user_Bd), size):
            search(user_Bd[start : start + size])

    return run


def peers(item_Nd: Floats, k: int, threads: int) -> dict[str, Search]:
    """Each peer's search of one batch."""
    index = faiss.IndexFlatIP(item_Nd.shape[1])
    index.add(item_Nd)
    item_tensor = torch.from_numpy(item_Nd)

    def by_implicit(user_Bd: Floats) -> None:
        # Its threads each call BLAS, which is to stay in the thread.
        with threadpool_limits(1, "blas"):
            implicit.cpu.topk.topk(item_Nd, user_Bd, k, num_threads=threads)

    def by_torch(user_Bd: Floats) -> None:
        user = torch.from_numpy(user_Bd)
        winners = []
        for start in range(0, len(item_tensor), TILE):
            score, context = (user @ item_tensor[start : start + TILE].T).topk(k, dim=1)
            winners.append((score, context + start))
        score, context = torch.cat([s for s, _ in winners], dim=1).topk(k, dim=1)
        torch.cat([p for _, p in winners], dim=1).gather(1, context)

    def by_gemm(user_Bd: Floats) -> None:
        user = torch.from_numpy(user_Bd)
        for start in range(0, len(item_tensor), TILE):
            user @ item_tensor[start : start + TILE].T

    return {
        "faiss": lambda user_Bd: index.search(user_Bd, k),
        "implicit": by_implicit,
        "torch": by_torch,
        "gemm": by_gemm,
    }


def rate(search: Search, user_Bd: Floats) -> float:
    start = time.perf_counter()
    search(user_Bd)
    return len(user_Bd) / (time.perf_counter() - start)


def identical(best: TopKResult, item_Nd: Floats, user_Bd: Floats, excluded: Jagged) -> bool:
    """Whether the lists are those of a full sort in float64, up to ties."""
    items = item_Nd.astype(np.float64)
    for b, user in enumerate(user_Bd.astype(np.float64)):
        exact = items @ user
        exact[excluded[b]] = -np.inf
        rows = np.argsort(-exact, kind="stable")[: best.row_BK.shape[1]]
        apart = best.row_BK[b] != rows
        off = np.abs(exact[best.row_BK[b][apart]] - exact[rows[apart]])
        if len(set(best.row_BK[b])) < len(rows) or (off > TIE * abs(exact[rows[0]])).any():
            return False
    return True


def main() -> None:
    args = asked(
        __doc__,
        users=4096,
        items=100_000,
        dimensions=200,
        k=100,
        excluded=20,
        threads=2,
        repeats=3,
        checked=200,
    )
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    random = np.random.default_rng(0)
    item_Nd, user_Bd = (
        random.normal(size=(n, args.dimensions)).astype(np.float32)
        for n in (args.items, args.users)
    )
    taken = random.integers(0, args.items, args.users * args.excluded)
    excluded = Jagged(taken, np.arange(args.users + 1) * args.excluded)

    start = time.perf_counter()
    ours = visrec(item_Nd, excluded, args.k)
    pack_s = time.perf_counter() - start
    searches: dict[str, Search] = {"visrec": ours}
    best_batch = {}
    tuned_with = user_Bd[:TUNED_WITH]
    for name, search in peers(item_Nd, args.k, args.threads).items():
        sizes = [size for size in BATCHES if size <= max(args.users, BATCHES[0])]
        tried = {size: rate(in_batches(search, size), tuned_with) for size in sizes}
        best_batch[name] = max(tried, key=lambda size: tried[size])
        searches[name] = in_batches(search, best_batch[name])
    runs: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(args.repeats):
        for name, search in searches.items():
            runs[name].append(rate(search, user_Bd))
    found: dict[str, object] = {
        f"{name}_users_per_s": round(statistics.median(rates), 1) for name, rates in runs.items()
    }
    mine = statistics.median(runs["visrec"])
    for name in best_batch:
        found[f"ratio_{name}"] = round(mine / statistics.median(runs[name]), 3)
    checked = user_Bd[: args.checked]
    found["identical"] = identical(ours(checked), item_Nd, checked, excluded)
    for name, rates in runs.items():
        batch = (
            f"batches of {best_batch[name]:,}"
            if name in best_batch
            else kernel_unavailable_reason() or "kernel"
        )
        print(
            f"{name:10}{statistics.median(rates):>10,.0f} users/s  "
            f"[{min(rates):,.0f} to {max(rates):,.0f}]  {batch}"
        )
    print(f"identical to float64: {found['identical']}; packed in {pack_s:.2f} s")
    if args.json:
        more = {
            "runs": runs,
            "best_batch": best_batch,
            "pack_s": pack_s,
            "kernel": kernel_unavailable_reason(),
        }
        print(json.dumps({"asked": vars(args), **machine(), **found, **more}))


if __name__ == "__main__":
    main()
