"""Triples per second, and seconds to the same validation AUC, against the published procedure.

python -m benchmarks.train --source ../shared/data/movies
python -m benchmarks.train --source ../shared/data/movies --workspace runs/quality/movies --json

visrec is `Trainer` for CuratorNet with the defaults of jobs/train.py, in this process. The
published procedure (CuratorNet as released) is the class `Plain`: batches of 128 triples whose
profiles have one length, the item tower evaluated for every item of every profile, every positive
and every negative, BPR, Adam, float32, no dropout. Features are z-scored before the clock starts,
and its sampler takes a hundredth of its time. `ratio_triples` compares with `plain_triples_per_s`:
full profiles, users drawn uniformly, as released. Two more variants are measured beside it: users
drawn in proportion to their interactions, as visrec draws them
(`plain_same_users_triples_per_s`; long profiles come often), and these with profiles of visrec's
lengths (`plain_same_profiles_triples_per_s`).

Rates are medians of alternating repeats. Seconds to an AUC include validation, by one function for
both sides; visrec is validated every 10 steps instead of every 80. The plain side gets two
advantages: its positives are taken out of the profile, which reaches a higher AUC than the release,
and the best of three learning rates (the published 1e-4 among them), each tried for `--limit` / 4
seconds, continues to `--limit`; 1e-4 alone would take several times as long. A side that does not
reach the target gives a lower bound. `visrec_time_to_plain_best_s` is visrec's time to the best AUC
of the plain side.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import machine
from benchmarks.quality import CHECKOUT, CURATORNET, movies
from visrec.cli.parse import parse
from visrec.config import plain
from visrec.models import MODELS
from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
from visrec.storage.store import Store
from visrec.training.data import TrainingData, load_training_data
from visrec.training.distributed import WorkerContext
from visrec.training.fit import build_model
from visrec.training.loop import Trainer
from visrec.training.validation import validation_auc

BATCH = 128
WEIGHT_DECAY = 1e-4
LEARNING_RATES = (1e-4, 3e-4, 1e-3)  # the published one first
CYCLE = 16  # batches over which the profile sizes are as many as they should be
EVERY = 2.0  # seconds of the plain side between validations
Curve = list[tuple[float, float]]  # seconds so far, validation AUC


class Plain:
    """The published procedure: one profile size a batch, a tower run for every occurrence.

    Args:
        data: what visrec trains on.
        learning_rate: the learning rate of Adam.
        by_interaction: users are drawn in proportion to their interactions, not alike.
        visrec_sizes: a profile is cut to a size drawn from 1 to its length, and to 50.
        seed: the seed of weights and triples.
    """

    def __init__(
        self,
        data: TrainingData,
        learning_rate: float,
        *,
        by_interaction: bool = False,
        visrec_sizes: bool = False,
        seed: int = 0,
    ) -> None:
        torch.manual_seed(seed)
        network: Any = MODELS["curatornet"]
        self.model = network(network.Config(feature_dropout=0.0, temperature=1.0), data.sizes)
        self.model.fit(data.catalogue, data.train)
        self._data, self._random = data, np.random.default_rng(seed)
        self._input_ND = self.model.feature_scale(torch.from_numpy(data.feature_ND).float())
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY
        )
        length_U = data.train.lengths
        users = np.flatnonzero(length_U > 1)  # the positive is not in the profile
        self._of_length = {int(n): users[length_U[users] == n] for n in np.unique(length_U[users])}
        weight_L = [len(same) * (n if by_interaction else 1) for n, same in self._of_length.items()]
        self._lengths = list(self._of_length)
        self._upto_L = np.cumsum(weight_L) / sum(weight_L)
        self._coming: list[int] = []
        self._visrec_sizes = visrec_sizes

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """(B, P) profiles, (B,) positives and (B,) negatives: rows of the catalogue."""
        random, train = self._random, self._data.train
        if not self._coming:
            # A size of each of as many equal shares of the triples: their cost varies a lot.
            even = self._random.permutation(CYCLE) + self._random.random(CYCLE)
            self._coming = np.searchsorted(self._upto_L, even / CYCLE).tolist()
        length = self._lengths[self._coming.pop()]
        user_B = random.choice(self._of_length[length], BATCH)
        row_BL = train.values[train.offsets[user_B][:, None] + np.arange(length)]
        positive_B = _in_order(row_BL, random)
        negative_B = random.integers(0, len(self._data.item_ids), BATCH)
        while (taken_B := (row_BL == negative_B[:, None]).any(axis=1)).any():
            negative_B[taken_B] = random.integers(0, len(self._data.item_ids), taken_B.sum())
        size = length - 1
        if self._visrec_sizes:
            size = min(int(random.integers(1, length)), 50)
        rows = (row_BL[:, :size], positive_B, negative_B)
        profile_BP, positives, negatives = (torch.from_numpy(r.astype(np.int64)) for r in rows)
        return profile_BP, positives, negatives

    def cycle(self) -> int:
        """Trains `CYCLE` batches; returns their triples."""
        for _ in range(CYCLE):
            self.step()
        return CYCLE * BATCH

    def step(self) -> None:
        """Trains one batch."""
        profile_BP, positive_B, negative_B = self.batch()
        item_BPd = self._encode(profile_BP)
        pooled_BE = torch.cat([item_BPd.amax(dim=1), item_BPd.mean(dim=1)], dim=1)
        user_Bd = self.model.user_tower(pooled_BE)
        difference_Bd = self._encode(positive_B) - self._encode(negative_B)
        loss = functional.softplus(-(user_Bd * difference_Bd).sum(dim=1)).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _encode(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.model.item_tower(self._input_ND[rows])
        return vectors


def _in_order(row_BL: npt.NDArray[Any], random: np.random.Generator) -> npt.NDArray[Any]:
    """Puts each row into an order drawn anew, in place, and returns what came last."""
    random.permuted(row_BL, axis=1, out=row_BL)
    return row_BL[:, -1].copy()


# What is measured.


@dataclass(frozen=True)
class Measured:
    """What of, and how long.

    Args:
        config: jobs/train.py's, which names the data.
        data: as that job loads it.
        repeats: the number of repeats of the rates.
        seconds: the seconds of each repeat.
        target: validation AUC.
        limit: seconds until the plain side is given up.
    """

    config: TrainJob
    data: TrainingData
    repeats: int
    seconds: float
    target: float
    limit: float


def visrec_trainer(config: TrainJob, data: TrainingData) -> Trainer:
    """As jobs/train.py makes it, with epochs of 10 steps: what judges or stops waits as long."""
    short = 10 * config.train.batch_size
    times = max(1, config.train.triples_per_epoch // short)
    train = dataclasses.replace(
        config.train,
        triples_per_epoch=short,
        epochs=config.train.epochs * times,
        lr_patience=config.train.lr_patience * times,
        stop_patience=config.train.stop_patience * times,
    )
    recipe = training_recipe(dataclasses.replace(config, train=train))
    return Trainer(build_model(recipe, data), data, recipe.train, recipe.sampling, WorkerContext())


def rates(asked: Measured) -> dict[str, Any]:
    """Medians and spreads of triples per second, without validation, and the ratios."""
    trainer = visrec_trainer(asked.config, asked.data)
    epochs = iter(range(1 << 30))

    def visrec_step() -> int:
        trainer._train_steps(next(epochs))
        return 10 * asked.config.train.batch_size

    sides: dict[str, Callable[[], int]] = {"visrec": visrec_step}
    for name, flags in (
        ("plain", {}),
        ("plain_same_users", {"by_interaction": True}),
        ("plain_same_profiles", {"by_interaction": True, "visrec_sizes": True}),
    ):
        sides[name] = Plain(asked.data, LEARNING_RATES[0], **flags).cycle
    found: dict[str, list[float]] = {name: [] for name in sides}
    for step in sides.values():
        step()  # what is computed once
    for _ in range(asked.repeats):
        for name, step in sides.items():
            found[name].append(rate(step, asked.seconds))
    figures: dict[str, Any] = {}
    for name, values in found.items():
        figures[f"{name}_triples_per_s"] = statistics.median(values)
        figures[f"{name}_triples_per_s_spread"] = [min(values), max(values)]
    for name in list(sides)[1:]:
        suffix = name.removeprefix("plain")
        paired = [ours / theirs for ours, theirs in zip(found["visrec"], found[name], strict=True)]
        figures[f"ratio_triples{suffix}"] = statistics.median(paired)
        figures[f"ratio_triples{suffix}_spread"] = [min(paired), max(paired)]
    return figures


def rate(step: Callable[[], int], seconds: float) -> float:
    """Triples per second over about so many seconds."""
    triples, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        triples += step()
    return triples / passed


def times_to_auc(asked: Measured) -> dict[str, Any]:
    """Seconds to the target, medians over seeds for visrec, and what the plain side got to."""
    chosen = best_of(
        {lr: plain_curve(Plain(asked.data, lr), asked.data) for lr in LEARNING_RATES},
        asked.target,
        asked.limit,
    )
    learning_rate, curve = chosen
    best = max(auc for _, auc in curve)
    plain_s = first_at(curve, asked.target)
    seeded = []
    for seed in range(asked.repeats):
        train = dataclasses.replace(asked.config.train, seed=seed)
        config = dataclasses.replace(asked.config, train=train)
        seeded.append(until(visrec_curve(config, asked.data), asked.target, asked.limit))
    ours = [first_at(one, asked.target) for one in seeded]
    if None in ours:
        sys.exit(f"visrec did not reach an AUC of {asked.target} in {asked.limit} s.")
    ours_s = statistics.median(s for s in ours if s is not None)
    before = [first_at(one, min(best, asked.target)) for one in seeded]
    return {
        "target_auc": asked.target,
        "visrec_time_to_auc_s": ours_s,
        "visrec_time_to_auc_s_seeds": ours,
        "plain_time_to_auc_s": plain_s or curve[-1][0],
        "plain_reached": plain_s is not None,
        "plain_learning_rate": learning_rate,
        "plain_best_auc": best,
        "ratio_time_to_auc": (plain_s or curve[-1][0]) / ours_s,
        "visrec_time_to_plain_best_s": statistics.median(s for s in before if s is not None),
        "visrec_curve": seeded[0],
        "plain_curve": curve,
    }


def visrec_curve(config: TrainJob, data: TrainingData) -> Iterator[tuple[float, float]]:
    trainer, start = visrec_trainer(config, data), time.perf_counter()
    while not trainer.is_finished:
        trainer.run_epoch()
        yield time.perf_counter() - start, trainer.progress.history[-1]["val_auc"]


def plain_curve(side: Plain, data: TrainingData) -> Iterator[tuple[float, float]]:
    """Goes on for ever, and its clock stands still while nobody asks for more."""
    passed = 0.0
    while True:
        start = time.perf_counter()
        while time.perf_counter() - start < EVERY:
            side.step()
        auc = validation_auc(side.model, data, data.validation, WorkerContext())
        side.model.train()
        passed += time.perf_counter() - start
        yield passed, auc


def best_of(
    curves: Mapping[float, Iterator[tuple[float, float]]], target: float, limit: float
) -> tuple[float, Curve]:
    """Each curve for a quarter of the limit, the best then to its end: its key and its points."""
    tried = {key: until(curve, target, limit / 4) for key, curve in curves.items()}
    # Who gets there first, else who is highest.
    best = min(tried, key=lambda k: (first_at(tried[k], target) or limit, -_highest(tried[k])))
    points = tried[best]
    if first_at(points, target) is None:
        points = points + until(curves[best], target, limit)
    return best, points


def until(curve: Iterator[tuple[float, float]], target: float, limit: float) -> Curve:
    """The points up to the first at the target or past the limit."""
    points: Curve = []
    for seconds, auc in curve:
        points.append((seconds, auc))
        if auc >= target or seconds >= limit:
            break
    return points


def first_at(curve: Sequence[tuple[float, float]], target: float) -> float | None:
    """Seconds to the target, None where it was not reached."""
    return next((seconds for seconds, auc in curve if auc >= target), None)


def _highest(curve: Curve) -> float:
    return max(auc for _, auc in curve)


def job_flags(workspace: str, source: str) -> list[str]:
    """Flags of jobs/train.py for both measurements: the movies, and the model of `Plain`."""
    return [*movies(workspace, source, None), *CURATORNET]


def workers(flags: Sequence[str], features: str, triples: int) -> dict[str, Any]:
    """Triples per second of jobs/train.py with one and with two workers of one thread each."""
    figures: dict[str, Any] = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as workspace:
            command = [sys.executable, "jobs/train.py", "--local", "--workspace", workspace]
            command += ["--features", features, *flags, "--train.epochs", "2"]
            command += ["--train.refit", "false"]
            command += ["--train.triples_per_epoch", str(triples)]
            command += ["--resources.workers", str(count), "--resources.cpus_per_worker", "1"]
            done = subprocess.run(
                command, cwd=CHECKOUT, capture_output=True, text=True, check=False
            )
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            summary = Store.at(workspace).read_json("summaries/train.json")
        figures[f"ddp_{count}_triples_per_s"] = 2 * triples / summary["worker_s"]["train"]
    figures["ratio_ddp"] = figures["ddp_2_triples_per_s"] / figures["ddp_1_triples_per_s"]
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", required=True, help="folder of the movies data")
    parser.add_argument("--workspace", default="runs/quality/movies", help="made where not there")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each repeat (3)")
    parser.add_argument("--target", type=float, default=0.8, help="validation AUC (0.8)")
    parser.add_argument("--limit", type=float, default=60.0, help="of the plain side, s (60)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, both sides (1)")
    parser.add_argument("--ddp_triples", type=int, default=20_480, help="an epoch, of two")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    found: dict[str, Any] = {**machine(), "asked": vars(args)}
    # Ray would give its workers' cores to whatever else runs on the machine first.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # so Ray spells it
    torch.set_num_threads(args.threads)
    workspace, source = os.path.abspath(args.workspace), os.path.abspath(args.source)
    flags = job_flags(workspace, source)
    config = parse(TrainJob, ["--workspace", workspace, *flags])
    features = f"{workspace}/features"
    data = load_training_data(training_inputs(config, Store.at(features)))
    asked = Measured(config, data, args.repeats, args.seconds, args.target, args.limit)
    for part in (
        lambda: rates(asked),
        lambda: times_to_auc(asked),
        lambda: workers(flags, features, args.ddp_triples),
    ):
        figures = part()
        for name, value in figures.items():
            if not name.endswith("_curve"):
                print(f"{name:38} {value}", flush=True)
        found.update(figures)
    if args.json:
        print(json.dumps(plain(found)))


if __name__ == "__main__":
    main()
