"""The training loop: batches, steps, the exact validation AUC, one report an epoch. No Ray in here.

The loop runs in one process, or in each of several under `torch.distributed`. Each worker takes its
share of every batch, gradients are averaged, and the validation AUC is a mean over the users of all
workers. So the learning rate and the early stop are the same on every worker.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from visrec.config import COUNTS, SEEDS, check_fields
from visrec.errors import InputError, VisrecError
from visrec.models.base import Model
from visrec.sampling.triples import SamplingConfig
from visrec.training.batch_sources import SOURCES
from visrec.training.data import TrainingData
from visrec.training.distributed import WorkerContext, mean_over_workers, replicate
from visrec.training.optimizer import RowAdamW, WeightEma
from visrec.training.validation import sample_users, validation_auc, validation_means

# The smallest gain in AUC that counts as an improvement, as in the reference implementation.
_MIN_GAIN = 1e-4
# The smallest gain in AUC for which a closed-form score is added. The bar is higher, because an
# added score makes item vectors longer and the search slower.
_MIN_ADDED_GAIN = 1e-3
# For a source that takes every row: the most passes over the rows in an epoch, and the fewest
# steps. With nine passes an epoch (40,960 triples), the demo's best validation AUC was 0.915, after
# the first epoch; with three it is 0.918.
_MAX_PASSES, _MIN_STEPS = 3, 20


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is fitted: AdamW on the loss summed over the batch, as in the CuratorNet paper.

    Attributes:
        epochs: maximum number of epochs.
        triples_per_epoch: examples of each epoch. A model that goes through the rows in turn, as
            hybrid does, has at most three examples a row in an epoch (but at least 20 steps), and
            never more than this number. An epoch has at least one step.
        batch_size: triples of a step, all workers together.
        learning_rate: initial learning rate of AdamW.
        weight_decay: each step multiplies the weights by 1 - learning rate * weight_decay, whatever
            the batch size; biases do not decay.
        warmup_steps: steps in which the learning rate rises linearly to its initial value.
        ema_decay: decay of the exponential moving average of the weights, which is what is
            validated and kept; 0 keeps the weights of the last step.
        lr_factor: the learning rate is multiplied by this when the validation AUC stops improving.
        lr_patience: epochs without improvement before the learning rate is reduced.
        stop_patience: training ends after this many epochs without improvement.
        refit: once the best epoch is known, train again from scratch up to that epoch, with the
            validation rows added to the training rows.
        validation_users: maximum number of users to validate with, sampled once.
        precision: bfloat16 computes the model under autocast; float32 does not.
        seed: seed of the initial weights and of sampling.
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
    """Checks that a batch can be divided equally among the workers.

    Raises:
        InputError: the batch size is not a multiple of the number of workers.
    """
    if config.batch_size % workers:
        raise InputError(
            f"Found --train.batch_size {config.batch_size}; expected a multiple of the "
            f"{workers} workers (--resources.workers)."
        )


@dataclass
class Progress:
    """What a checkpoint restores besides the weights and the state of the optimizer.

    Attributes:
        epoch: number of epochs trained.
        history: one entry an epoch: loss, val_auc, learning_rate, seconds, triples.
        best_auc: highest validation AUC so far; after the first fit has ended, that of the model
            with the added score.
        best_epoch: number of epochs after which it was reached.
        epochs_without_improvement: epochs since `best_epoch`.
        diverged: whether the last epoch ended with a loss, weights or scores that are NaN or
            infinite, which ends the training.
        first_fit_progress: in a refit, the progress of the first fit, which selected the number of
            epochs; None in that first fit.
        added_weight: the weight of the score that is added to the network's; 0 until the first fit
            has ended.
        tracker_run: id of the experiment tracker's run; None without a tracker.
    """

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_auc: float = -math.inf
    best_epoch: int = 0
    epochs_without_improvement: int = 0
    diverged: bool = False
    first_fit_progress: "Progress | None" = None
    added_weight: float = 0.0
    tracker_run: str | None = None

    @property
    def first_fit(self) -> "Progress":
        """The progress of the fit that held the validation rows out."""
        return self.first_fit_progress or self


class Trainer:
    """One worker's training of one model.

    Args:
        model: built and fitted, identical on every worker, on `context.device`.
        data: shared by the workers of a node and never written to.
        config: how to fit.
        sampling: how to sample.
        context: which worker this is.
        wrap: makes a DDP module, where there are several workers.
    """

    def __init__(
        self,
        model: Model,
        data: TrainingData,
        config: TrainConfig,
        sampling: SamplingConfig,
        context: WorkerContext,
        wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.model, self.data, self.config, self.context = model, data, config, context
        self.wrap = wrap
        self.ema = WeightEma(model, config.ema_decay)
        self.replica = replicate(model, wrap) if context.workers > 1 else model
        self.optimizer = RowAdamW(
            model, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.scheduler = ReduceLROnPlateau(
            self.optimizer,
            mode="max",
            factor=config.lr_factor,
            patience=config.lr_patience,
            threshold=_MIN_GAIN,
            threshold_mode="abs",
        )
        self.source = SOURCES[model.trains_on](data, sampling, config.seed, model.traits)
        self.validation = sample_users(data.validation, config.validation_users, config.seed)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] = {}
        self._steps = steps_per_epoch(config, self.source.rows)
        require_equal_shares(config, context.workers)

    def run(self, report: Callable[["Trainer"], None]) -> None:
        """Trains to the end, starting from `progress`, and calls `report` after each epoch.

        Raises:
            VisrecError: training diverged in the first epoch, or in any epoch of a refit. If a
                first fit diverges later, it ends, and `best_weights` are those of an earlier epoch.
        """
        while not self.is_finished:
            self.run_epoch()
            report(self)
        if not self.best_weights:
            raise VisrecError(
                f"Training diverged: the loss was {self.progress.history[-1]['loss']}, and the "
                "weights became NaN or infinite before an epoch could be kept. Lower "
                "--train.learning_rate, or raise --train.warmup_steps."
            )
        if self.progress.diverged and self.progress.first_fit_progress:
            raise VisrecError(
                f"The refit on training and validation rows diverged in epoch "
                f"{self.progress.epoch} of {self.progress.first_fit.best_epoch}: the loss was "
                f"{self.progress.history[-1]['loss']}. Lower --train.learning_rate, or keep the "
                "first fit with --train.refit false."
            )

    def free(self) -> None:
        """Frees what the training of another model needs room for. Only `progress` stays."""
        del self.model, self.replica, self.ema, self.optimizer, self.scheduler, self.source
        self.best_weights = {}
        self.data.free_derived()

    def choose_added_weight(self) -> None:
        """Chooses the weight of the added score on the validation rows, once this fit has ended.

        It is the weight with the highest AUC, but none that lowers nDCG@20: what ranks the rest of
        a catalogue better may still push the right items off the top.
        """
        model, progress = self.model, self.progress
        if not len(self.validation) or not model.added_score_weights:
            return
        model.load_state_dict(self.best_weights)
        if not model.fit_added_score(self.data.train):
            return
        model.set_added_score_weight(0)
        auc, least_ndcg = self._auc_and_ndcg()
        least_auc = auc + _MIN_ADDED_GAIN
        for weight in model.added_score_weights:
            model.set_added_score_weight(weight)
            auc, ndcg = self._auc_and_ndcg()
            if auc >= least_auc and auc > progress.best_auc and ndcg >= least_ndcg:
                progress.best_auc, progress.added_weight = auc, weight

    def _auc_and_ndcg(self) -> tuple[float, float]:
        """Of the model as it is, on the validation rows."""
        auc, ndcg = validation_means(
            self.model, self.data, self.validation, self.context, ("auc", "ndcg@20")
        )
        return auc, ndcg

    def keep_added_score(self, weight: float) -> None:
        """Adds the closed-form score, with this weight, to `best_weights`; does nothing for 0."""
        if weight and self.model.fit_added_score(self.data.train):
            self.model.load_state_dict(self.best_weights)
            self.model.set_added_score_weight(weight)
            self.best_weights = {k: v.clone() for k, v in self.model.state_dict().items()}

    def run_epoch(self) -> None:
        """Trains one epoch, validates it and records it."""
        start, epoch = time.perf_counter(), self.progress.epoch
        if first := self.progress.first_fit_progress:
            self._set_learning_rate(first.history[epoch]["learning_rate"])
        loss = self._train_steps(epoch)
        # NaN scores would rank arbitrarily, so a model with such weights is not validated at all.
        is_sound = math.isfinite(loss) and self.weights_and_scores_are_finite
        auc = math.nan
        if is_sound:
            auc = validation_auc(self.eval_model, self.data, self.validation, self.context)
            is_sound = not (len(self.validation) and math.isnan(auc))
        self._record_epoch(loss, auc, is_sound)
        self.progress.history[-1]["seconds"] = time.perf_counter() - start
        self.progress.epoch = epoch + 1

    @property
    def eval_model(self) -> Model:
        """The model that is validated and kept; its weights are averages if there is an average."""
        return self.ema.eval_model

    @property
    def weights_and_scores_are_finite(self) -> bool:
        """Whether the weights of `eval_model`, and its last validation scores, are finite."""
        last = self.progress.history[-1:]
        if len(self.validation) and any(math.isnan(epoch["val_auc"]) for epoch in last):
            return False
        return all(bool(weight.isfinite().all()) for weight in self.eval_model.parameters())

    @property
    def is_finished(self) -> bool:
        first = self.progress.first_fit_progress
        max_epochs = first.best_epoch if first else self.config.epochs
        return fit_is_finished(self.progress, max_epochs, self.config)

    def _train_steps(self, epoch: int) -> float:
        """Trains the steps of an epoch; returns the mean loss over the triples of all workers."""
        self.model.train()
        context, size = self.context, self.config.batch_size
        self.source.start_epoch(epoch, self._steps * size)
        losses = torch.zeros((), dtype=torch.float64, device=self.context.device)
        for step in range(self._steps):
            batch = self.source.batch(step, size, context.rank, context.workers, context.device)
            with self._autocast():
                loss = self.replica(batch)
            self.optimizer.zero_grad(set_to_none=True)
            self._warm_up(epoch * self._steps + step)
            # The loss is a mean over the worker's share, and gradients are averaged over workers,
            # whose shares are equal. Multiplied by the batch size, they are the gradients of the
            # sum over the batch.
            (loss * self.config.batch_size).backward()
            self.ema.before_step()
            self.optimizer.step()
            self.ema.after_step(epoch * self._steps + step, self.optimizer.scale)
            if self.optimizer.needs_flush:
                self._flush()
            losses += loss.detach()
        self._flush()
        return float(mean_over_workers(losses / self._steps, self.context))

    def _flush(self) -> None:
        """Writes pending decay and averages into the weights: see `visrec.training.optimizer`."""
        self.ema.flush()
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

    def _record_epoch(self, loss: float, auc: float, is_sound: bool) -> None:
        """Appends to the history, keeps the best weights and updates the learning rate.

        Args:
            loss: mean loss of the epoch.
            auc: validation AUC; NaN without validation users.
            is_sound: whether loss, weights and scores are finite; if not, training has diverged.
        """
        progress = self.progress
        progress.history.append(
            {
                "loss": loss,
                "val_auc": auc,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "triples": float(self._steps * self.config.batch_size),
            }
        )
        if not is_sound:
            progress.diverged = True
            return
        # Without validation users, the last weights are the best ones.
        if math.isnan(auc) or auc > progress.best_auc + _MIN_GAIN:
            progress.best_auc, progress.best_epoch = auc, progress.epoch + 1
            progress.epochs_without_improvement = 0
            weights = self.eval_model.state_dict()
            self.best_weights = {k: v.detach().clone() for k, v in weights.items()}
        else:
            progress.epochs_without_improvement += 1
        if not math.isnan(auc):
            self.scheduler.step(auc)


def steps_per_epoch(config: TrainConfig, rows: int | None) -> int:
    """The number of steps of an epoch.

    Args:
        config: how to fit.
        rows: see `BatchSource.rows`.
    """
    steps = max(1, config.triples_per_epoch // config.batch_size)
    if rows is None:
        return steps
    return min(steps, max(_MIN_STEPS, _MAX_PASSES * rows // config.batch_size))


def fit_is_finished(progress: Progress, max_epochs: int, config: TrainConfig) -> bool:
    """Whether a fit of at most `max_epochs` epochs has come to its end."""
    out_of_patience = progress.epochs_without_improvement >= config.stop_patience
    return progress.diverged or out_of_patience or progress.epoch >= max_epochs
