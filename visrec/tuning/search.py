"""The searcher and the scheduler of Ray Tune: which trial comes next, and which is stopped."""

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from visrec.tuning.records import TrialRecord, best_auc
from visrec.tuning.spaces import Choice, Range, Space, Values, sample_values

DEFAULT_TRIAL = 0  # number of the trial with the default configuration
# In the result of a step: the best AUC of the trial so far, NaN once it has diverged or failed.
METRIC = "val_auc"
_REDUCTION = 3  # of ASHA: at each rung, a third of the trials continues


def has_optuna() -> bool:
    """Whether Optuna is installed, which is optional."""
    return find_spec("optuna") is not None


class TrialSearcher(Searcher):
    """Proposes the trials that have no record, with the values of each.

    The values depend only on the seed, the trial's number and the records, so that a sweep that was
    killed and resumed proposes what an uninterrupted one would.

    Args:
        space: what is searched.
        default: the values of trial 0.
        recorded: the trials that have ended, by number.
        trials: number of trials in the sweep.
        seed: the seed of the sampled values.
        optuna: let Optuna propose the values, from the seed and the records. Otherwise they are
            sampled from the seed and the trial's number.
    """

    # Ray Tune pickles it with the experiment, so it holds nothing that would pin the data.
    def __init__(
        self,
        space: Space,
        default: Values,
        recorded: Mapping[int, TrialRecord],
        trials: int,
        seed: int,
        optuna: bool,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._order = [number for number in range(trials) if number not in recorded]
        self._records = dict(recorded)
        self._space, self._default = space, default
        self._seed, self._optuna = seed, optuna

    def suggest(self, trial_id: str) -> dict[str, Any]:
        del trial_id
        number = self._order.pop(0)
        return {"number": number, "values": dict(self._values(number))}

    def _values(self, number: int) -> Values:
        if number == DEFAULT_TRIAL:
            return self._default
        if self._optuna:
            return _propose(self._space, self._seed, number, self._records)
        return sample_values(self._space, self._seed, number)

    def add_record(self, record: TrialRecord) -> None:
        """Takes the record of a trial that has ended."""
        self._records[record.number] = record

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Does nothing: only trials with a record count, and `add_record` takes these."""

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a sweep is resumed from its records."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: see `save`."""


def _propose(space: Space, seed: int, number: int, records: Mapping[int, TrialRecord]) -> Values:
    """What Optuna's tree-structured Parzen estimator proposes after the records, through Ray Tune.

    Optuna sees the index of a choice's value instead of the value. A trial that is not eligible is
    reported as pruned, and Optuna ranks it below all others.
    """
    domains = {key: _as_tune(domain) for key, domain in space.items()}
    search = OptunaSearch(
        OptunaSearch.convert_search_space(domains),
        metric=METRIC,
        mode="max",
        seed=int(np.random.default_rng((seed, number)).integers(2**32)),
    )
    for _, record in sorted(records.items()):
        if all(space[key].contains(value) for key, value in record.values.items()):
            point = _with_indices(space, record.values)
            if record.is_eligible:
                search.add_evaluated_point(point, record.auc)
            else:
                search.add_evaluated_point(point, None, pruned=True)  # type: ignore[arg-type]
    proposed = search.suggest(str(number)) or {}
    return {
        key: domain.values[proposed[key]] if isinstance(domain, Choice) else proposed[key]
        for key, domain in space.items()
    }


def _with_indices(space: Space, values: Values) -> dict[str, Any]:
    """The values; the value of a choice is replaced by its index."""
    return {
        key: domain.values.index(values[key]) if isinstance(domain, Choice) else values[key]
        for key, domain in space.items()
    }


def _as_tune(domain: Range | Choice) -> Any:
    if isinstance(domain, Choice):
        return tune.choice(list(range(len(domain.values))))
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class ResumableAsha(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) over epochs.

    The first rung is at a ninth of the epochs. The default configuration always trains to its end,
    because the table compares the best one with it. When a trial diverges or fails, its results at
    the rungs are dropped, so that no other trial is compared with them, now or after a resume.

    Args:
        epochs: maximum number of epochs of a trial.
        recorded: the trials that have ended, with which the others are compared.
    """

    def __init__(self, epochs: int, recorded: Mapping[int, TrialRecord]) -> None:
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=max(1, epochs // _REDUCTION**2),
            reduction_factor=_REDUCTION,
        )
        for number, record in recorded.items():
            for epoch, aucs in self._rungs():
                if record.is_eligible and len(record.history) >= epoch:
                    aucs[f"recorded-{number}"] = best_auc(record.history[: int(epoch)])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(self.CONTINUE if trial.config["number"] == DEFAULT_TRIAL else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        if math.isnan(result[METRIC]):
            self._drop_results(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        self._drop_results(trial)

    def _rungs(self) -> Iterator[tuple[float, dict[str, float]]]:
        """The epoch of each rung and the AUC of each trial there. Ray has no public call for it."""
        for bracket in self._brackets:
            yield from bracket._rungs

    def _drop_results(self, trial: Any) -> None:
        for _, aucs in self._rungs():
            aucs.pop(trial.trial_id, None)
