"""What Ray Tune is told: which trial comes next, and which goes on."""

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from visrec.tuning.records import Record, best_auc
from visrec.tuning.spaces import Choice, Range, Space, Values, draw

DEFAULT = 0  # the number of the trial that has the default configuration
METRIC = "val_auc"  # of a step's result: the best of the trial so far, NaN once it does not count
_REDUCTION = 3  # of ASHA: a third of the trials goes on from each rung


def has_optuna() -> bool:
    """Whether Optuna, which Ray Tune does not bring, is installed."""
    return find_spec("optuna") is not None


class Proposals(Searcher):
    """Numbers the trials that are not on record, and says what each has.

    What it proposes depends on the seed, the trial's number and the records alone, so that a sweep
    that goes on after a kill has told its search the same as one that was never killed.

    Args:
        space: what is searched.
        default: the values of trial 0.
        recorded: the trials that are over.
        trials: how many there are to be in all.
        seed: the others are drawn from it and their number,
        optuna: or proposed by Optuna, from the records as well.
    """

    # It is pickled with the rest of the experiment, so it holds nothing that pins the data.
    def __init__(
        self,
        space: Space,
        default: Values,
        recorded: Mapping[int, Record],
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
        if number == DEFAULT:
            return self._default
        if self._optuna:
            return _propose(self._space, self._seed, number, self._records)
        return draw(self._space, self._seed, number)

    def learn(self, record: Record) -> None:
        """Takes a trial that is over, as its record has it."""
        self._records[record.number] = record

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: `learn` is told, and of what is on record alone."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records are what a sweep goes on by."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


def _propose(space: Space, seed: int, number: int, records: Mapping[int, Record]) -> Values:
    """What Optuna's tree-structured Parzen estimator, through Ray Tune, makes of the records.

    It is asked for places among a choice's values instead of the values. A trial that does not
    count is to it one that was pruned, worse than all that count.
    """
    domains = {key: _as_tune(domain) for key, domain in space.items()}
    search = OptunaSearch(
        OptunaSearch.convert_search_space(domains),
        metric=METRIC,
        mode="max",
        seed=int(np.random.default_rng((seed, number)).integers(2**32)),
    )
    for _, record in sorted(records.items()):
        if all(space[key].holds(value) for key, value in record.values.items()):
            pruned: dict[str, Any] = {"value": None, "pruned": True}
            told = {"value": record.auc} if record.counts else pruned
            search.add_evaluated_point(_places(space, record.values), **told)
    found = search.suggest(str(number)) or {}
    return {
        key: domain.values[found[key]] if isinstance(domain, Choice) else found[key]
        for key, domain in space.items()
    }


def _places(space: Space, values: Values) -> dict[str, Any]:
    return {
        key: domain.values.index(values[key]) if isinstance(domain, Choice) else values[key]
        for key, domain in space.items()
    }


def _as_tune(domain: Range | Choice) -> Any:
    if isinstance(domain, Choice):
        return tune.choice(list(range(len(domain.values))))
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class Asha(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) over epochs.

    The first rung is at a ninth of the epochs. The default configuration goes to its end, since the
    best is compared with it. What a trial had at a rung is forgotten when it diverges or fails: the
    others are not held against it, in this run of the sweep or in one that goes on.

    Args:
        epochs: of a trial.
        recorded: the trials that are over, which the others are compared with.
    """

    def __init__(self, epochs: int, recorded: Mapping[int, Record]) -> None:
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=max(1, epochs // _REDUCTION**2),
            reduction_factor=_REDUCTION,
        )
        for number, record in recorded.items():
            for epoch, aucs in self._rungs():
                if record.counts and len(record.history) >= epoch:
                    aucs[f"recorded-{number}"] = best_auc(record.history[: int(epoch)])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(self.CONTINUE if trial.config["number"] == DEFAULT else decision)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        super().on_trial_complete(tune_controller, trial, result)
        if math.isnan(result[METRIC]):
            self._forget(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_error(tune_controller, trial)
        self._forget(trial)

    def _rungs(self) -> Iterator[tuple[float, dict[str, float]]]:
        """The epoch of each rung, and the AUC that each trial had there; Ray has no call for it."""
        for bracket in self._brackets:
            yield from bracket._rungs

    def _forget(self, trial: Any) -> None:
        for _, aucs in self._rungs():
            aucs.pop(trial.trial_id, None)
