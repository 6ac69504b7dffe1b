"""What Ray Tune is told: which trial comes next, and which goes on."""

import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from visrec.training.records import Record
from visrec.training.spaces import Choice, Range, Space, Values, draw

DEFAULT = 0  # the number of the trial that has the default configuration
METRIC = "val_auc"  # of a step's result: the best of the trial so far
_REDUCTION = 3  # of ASHA: a third of the trials goes on from each rung


def has_optuna() -> bool:
    """Whether Optuna, which Ray Tune does not bring, is installed."""
    return find_spec("optuna") is not None


class Proposals(Searcher):
    """Numbers the trials and says what each has: recorded ones first, then the others in order.

    Args:
        space: what is searched.
        default: the values of trial 0.
        recorded: trials that are over, and have the values that they had.
        trials: how many there are to be in all.
        seed: the others are drawn from it and their number,
        optuna: or proposed by Optuna, which is told of the recorded ones too.
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
        known = {number: record.values for number, record in recorded.items()}
        missing = [number for number in range(trials) if number not in known]
        self._order = [*sorted(known), *missing]
        self._new = set(missing)
        self._known = {DEFAULT: default, **known}
        self._space, self._seed = space, seed
        # A sweep that goes on must not propose once more what it proposed first.
        self._optuna = _Optuna(space, seed + len(recorded)) if optuna else None
        self._given: dict[str, Values] = {}
        if self._optuna:
            for record in recorded.values():
                self._optuna.learn(record.values, record.auc if record.counts else math.nan)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        number = self._order.pop(0)
        if number in self._known:
            values = self._known[number]
            if number in self._new:
                self._given[trial_id] = values
        elif self._optuna:
            values = self._optuna.propose(trial_id)
        else:
            values = draw(self._space, self._seed, number)
        return {"number": number, "values": dict(values)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        if self._optuna:
            auc = math.nan if error or not result else result[METRIC]
            if trial_id in self._given:
                self._optuna.learn(self._given[trial_id], auc)
            else:
                self._optuna.judge(trial_id, auc)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records are what a sweep goes on by."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""


class _Optuna:
    """Ray Tune's Optuna search, over the places of a choice's values instead of the values."""

    def __init__(self, space: Space, seed: int) -> None:
        self._space = space
        domains = {key: _as_tune(domain) for key, domain in space.items()}
        self._search = OptunaSearch(
            OptunaSearch.convert_search_space(domains), metric=METRIC, mode="max", seed=seed
        )
        self._proposed: set[str] = set()

    def learn(self, values: Values, auc: float) -> None:
        """Takes what came of values that it did not propose; NaN where they failed."""
        if all(self._space[key].holds(value) for key, value in values.items()):
            places = {
                key: domain.values.index(values[key]) if isinstance(domain, Choice) else values[key]
                for key, domain in self._space.items()
            }
            self._search.add_evaluated_point(places, auc, error=math.isnan(auc))

    def propose(self, trial_id: str) -> Values:
        self._proposed.add(trial_id)
        found = self._search.suggest(trial_id) or {}
        return {
            key: domain.values[found[key]] if isinstance(domain, Choice) else found[key]
            for key, domain in self._space.items()
        }

    def judge(self, trial_id: str, auc: float) -> None:
        """Takes what came of a proposal; NaN where it failed."""
        if trial_id in self._proposed:
            failed = math.isnan(auc)
            self._search.on_trial_complete(trial_id, None if failed else {METRIC: auc}, failed)


def _as_tune(domain: Range | Choice) -> Any:
    if isinstance(domain, Choice):
        return tune.choice(list(range(len(domain.values))))
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


class Asha(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934) over epochs.

    The first rung is at a ninth of the epochs. The default configuration goes to its end, since the
    best is compared with it, and so do recorded trials, which cost nothing.

    Args:
        epochs: of a trial.
        recorded: the numbers of the trials that are over.
    """

    def __init__(self, epochs: int, recorded: Iterable[int]) -> None:
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=max(1, epochs // _REDUCTION**2),
            reduction_factor=_REDUCTION,
        )
        self._spared = {DEFAULT, *recorded}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return str(self.CONTINUE if trial.config["number"] in self._spared else decision)
