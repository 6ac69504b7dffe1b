"""The training loop: triples, steps, exact validation AUC, one report an epoch. No Ray in here.

One process or one of several under `torch.distributed`: every worker has its share of the triples
of a step, gradients are averaged, and the validation AUC is that of all workers' users, so that the
schedule and the early stop are the same everywhere.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from visrec.config import COUNTS, SEEDS, check_fields
from visrec.errors import InputError, VisrecError
from visrec.interactions.split import HeldOut
from visrec.models.base import Catalogue
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import stand
from visrec.sampling.triples import SamplingConfig
from visrec.training.batches import SOURCES
from visrec.training.data import TrainingData
from visrec.training.optimizer import RowAdamW, WeightEma
from visrec.training.replicas import replicate


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is fitted. The optimiser is AdamW, the loss a sum over the batch as in the paper.

    Attributes:
        epochs: at most this many.
        triples_per_epoch: drawn anew each epoch.
        batch_size: triples a step, all workers together.
        learning_rate: of AdamW, at the start.
        weight_decay: each step multiplies the weights by 1 - weight_decay * the learning rate that
            it has, apart from the gradient and so whatever the batch size; biases do not decay.
        warmup_steps: the learning rate rises linearly over this many steps at the start.
        ema_decay: what is validated and kept is the running average of the weights, to which each
            step adds 1 - ema_decay of its own; 0 keeps the last step's alone.
        lr_factor: the learning rate is multiplied by this when validation AUC stands still.
        lr_patience: epochs without a better validation AUC after which it does.
        stop_patience: training ends when it has not risen for this many epochs.
        refit: once the best epoch is known, train anew for as many with the validation baskets
            among the training items.
        validation_users: at most this many users, drawn once, are validated with.
        precision: bfloat16 computes the towers in autocast; float32 does not.
        seed: of weights and triples.
    """

    epochs: int = 20
    triples_per_epoch: int = 40_960
    batch_size: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 0
    ema_decay: float = 0.99
    lr_factor: float = 0.6
    lr_patience: int = 2
    stop_patience: int = 6
    refit: bool = True
    validation_users: int = 10_000
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            "train",
            epochs="[1, 1000000]",
            triples_per_epoch=COUNTS,
            batch_size="[1, 1048576]",
            learning_rate="(0, inf)",
            weight_decay="[0, 100]",
            warmup_steps="[0, 2147483647]",
            ema_decay="[0, 1)",
            lr_factor="(0, 1)",
            lr_patience="[0, 1000000]",
            stop_patience="[1, 1000000]",
            validation_users=COUNTS,
            seed=SEEDS,
        )


def require_equal_shares(config: TrainConfig, workers: int) -> None:
    """Refuses a batch that the workers cannot share equally.

    Raises:
        InputError: names both keys.
    """
    if config.batch_size % workers:
        raise InputError(
            f"Found --train.batch_size {config.batch_size}; expected a multiple of the "
            f"{workers} workers (--resources.workers)."
        )


# The threshold below which a rise of the AUC is none: ReduceLROnPlateau's in the reference run.
_THRESHOLD = 1e-4


@dataclass(frozen=True)
class WorkerContext:
    """Which worker of how many this process is, and where it computes."""

    rank: int = 0
    workers: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Progress:
    """Everything that a checkpoint has to bring back besides weights and optimiser.

    Args:
        epoch: epochs done.
        history: one entry an epoch: loss, val_auc, learning_rate, seconds, triples.
        best_auc: the highest validation AUC so far.
        best_epoch: how many epochs were done when it was.
        epochs_without_improvement: epochs since.
        chosen: of the fit that found out for how many epochs this one goes; None for such a fit.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_auc: float = -math.inf
    best_epoch: int = 0
    epochs_without_improvement: int = 0
    chosen: "Progress | None" = None


class Trainer:
    """One worker's training of one model.

    Args:
        model: built and fitted, the same on every worker, on `context.device`.
        data: shared, read only.
        config: how to fit.
        sampling: how to draw.
        context: which worker this is.
        wrap: makes a DDP module, where there are several workers.
    """

    def __init__(
        self,
        model: Any,
        data: TrainingData,
        config: TrainConfig,
        sampling: SamplingConfig,
        context: WorkerContext,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.model, self.data, self.config, self.context = model, data, config, context
        self.wrap = wrap
        self.average = WeightEma(model, config.ema_decay)
        self.wrapped = replicate(model, wrap) if context.workers > 1 else model
        self.optimizer = RowAdamW(
            model, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = ReduceLROnPlateau(
            self.optimizer,
            mode="max",
            factor=config.lr_factor,
            patience=config.lr_patience,
            threshold=_THRESHOLD,
            threshold_mode="abs",
        )
        self.source = SOURCES[model.trains_on](data, sampling, config.seed, model.needs)
        self.validation = _some(data.validation, config.validation_users, config.seed)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._steps = max(1, config.triples_per_epoch // config.batch_size)
        require_equal_shares(config, context.workers)

    def run(self, report: Callable[["Trainer"], None]) -> None:
        """Trains to the end, from where `progress` stands, with a report after each epoch.

        Raises:
            VisrecError: it diverged before any weights were kept; later, it ends with those.
        """
        while not self.finished:
            self.epoch()
            report(self)
        if not self.best:
            raise VisrecError(
                f"Training diverged: the loss was {self.progress.history[-1]['loss']} and weights "
                "became no numbers before any epoch was kept. Lower --train.learning_rate, or "
                "raise --train.warmup_steps."
            )

    def epoch(self) -> None:
        """Trains one epoch more, judges it and books it."""
        start, epoch = time.perf_counter(), self.progress.epoch
        if chosen := self.progress.chosen:
            self._set_learning_rate(chosen.history[epoch]["learning_rate"])
        loss = self._epoch(epoch)
        # Scores that are no numbers would stand above and below all: they are not ranked at all.
        weights_are_finite = math.isfinite(loss) and self.weights_are_finite
        auc = math.nan
        if weights_are_finite:
            auc = validation_auc(self.eval_model, self.data, self.validation, self.context)
            weights_are_finite = not (len(self.validation) and math.isnan(auc))
        self._record_epoch(loss, auc, weights_are_finite)
        self.progress.history[-1]["seconds"] = time.perf_counter() - start
        self.progress.epoch = epoch + 1

    @property
    def eval_model(self) -> Any:
        """What is judged and kept: the averaged weights, or the model itself."""
        return self.average.eval_model

    @property
    def weights_are_finite(self) -> bool:
        """Whether the weights that are judged are numbers, and so were their last scores."""
        last = self.progress.history[-1:]
        if len(self.validation) and any(math.isnan(epoch["val_auc"]) for epoch in last):
            return False
        return all(bool(weight.isfinite().all()) for weight in self.eval_model.parameters())

    @property
    def finished(self) -> bool:
        progress = self.progress
        most = progress.chosen.best_epoch if progress.chosen else self.config.epochs
        return is_over(progress, most, self.config)

    def _epoch(self, epoch: int) -> float:
        """One epoch's steps; returns the mean loss of its triples, all workers together."""
        self.model.train()
        context, size = self.context, self.config.batch_size
        self.source.start_epoch(epoch, self._steps * size)
        losses = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for step in range(self._steps):
            batch = self.source.batch(step, size, context.rank, context.workers, context.device)
            with self._autocast():
                loss = self.wrapped(batch)
            self.optimizer.zero_grad(set_to_none=True)
            self._warm_up(epoch * self._steps + step)
            # Workers' gradients are averaged: of means over equal shares, the mean over the batch.
            (loss * self.config.batch_size).backward()
            self.average.before()
            self.optimizer.step()
            self.average.after(epoch * self._steps + step, self.optimizer.scale)
            if self.optimizer.needs_flush:
                self._flush()
            losses += loss.detach()
        self._flush()
        return float(_mean_over_workers(losses / self._steps, self.context))

    def _flush(self) -> None:
        """Leaves nothing but weights and their average: see `visrec.training.optimizer`."""
        self.average.flush()
        self.optimizer.flush()

    def _warm_up(self, steps: int) -> None:
        if steps < self.config.warmup_steps:
            share = (steps + 1) / self.config.warmup_steps
            self._set_learning_rate(self.config.learning_rate * share)

    def _set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            self.context.device.type,
            torch.bfloat16,
            enabled=self.config.precision == "bfloat16",
        )

    def _record_epoch(self, loss: float, auc: float, weights_are_finite: bool) -> None:
        """Books the epoch, keeps the best weights, moves the learning rate, ends what diverged."""
        progress = self.progress
        learning_rate = self.optimizer.param_groups[0]["lr"]
        progress.history.append(
            {
                "loss": loss,
                "val_auc": auc,
                "learning_rate": learning_rate,
                "triples": float(self._steps * self.config.batch_size),
            }
        )
        if not weights_are_finite:
            progress.epochs_without_improvement = self.config.stop_patience
            return
        # Without anybody to validate with, the last weights are the best there are.
        if math.isnan(auc) or auc > progress.best_auc + _THRESHOLD:
            progress.best_auc, progress.best_epoch, progress.epochs_without_improvement = (
                auc,
                progress.epoch + 1,
                0,
            )
            self.best = {k: v.detach().clone() for k, v in self.eval_model.state_dict().items()}
        else:
            progress.epochs_without_improvement += 1
        if not math.isnan(auc):
            self.scheduler.step(auc)


def is_over(progress: Progress, epochs: int, config: TrainConfig) -> bool:
    """Whether a fit of at most so many epochs is at its end."""
    return progress.epoch >= epochs or progress.epochs_without_improvement >= config.stop_patience


def validation_auc(model: Any, data: TrainingData, held: HeldOut, context: WorkerContext) -> float:
    """The exact AUC, mean over the users of all workers; NaN where nobody is held out, and where
    float32 cannot hold the scores of a model that re-ranks.

    Args:
        model: scored as it stands.
        data: its catalogue is ranked.
        held: all users; this worker takes its share.
        context: which share.
    """
    mine = held.take(np.arange(context.rank, len(held), context.workers))
    total = torch.zeros(2, dtype=torch.float64, device=context.device)
    if len(mine):
        try:
            auc_E = score_held_out(model, data.catalogue, mine)
        except VisrecError:
            auc_E = np.full(len(mine), np.nan)  # which all workers then have, and end with
        total += torch.tensor([auc_E.sum(), len(auc_E)], dtype=total.dtype, device=total.device)
    total = _mean_over_workers(total, context)
    return float(total[0] / total[1])


def score_held_out(model: Any, catalogue: Catalogue, held: HeldOut) -> npt.NDArray[np.float64]:
    """(E,) the AUC of each held-out user."""
    model.eval()
    scorer = model.scorer(model.item_arrays(catalogue))
    return per_user(stand(scorer, held.profiles, held.user_E, held.targets), ())["auc"]


def _some(held: HeldOut, most: int, seed: int) -> HeldOut:
    """At most that many of the users, drawn without replacement, in their order."""
    if len(held) <= most:
        return held
    rows = np.random.default_rng(seed).choice(len(held), most, replace=False)
    return held.take(np.sort(rows))


def _mean_over_workers(value: Tensor, context: WorkerContext) -> Tensor:
    if context.workers > 1:
        torch.distributed.all_reduce(value)
    return value / context.workers
