"""Which model would serve tonight, predicted from the interactions alone.

It applies the rule of `visrec.pipelines.night_choice`, except the evaluation, which is not
available yet.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from visrec.cli.job import ModelChoice
from visrec.errors import NoExamplesError
from visrec.interactions.log import InteractionLog
from visrec.interactions.split import SplitConfig, SplitPart, select_held_out, split
from visrec.pipelines.night_choice import DEFAULT_ROW, NO_TEST_USERS
from visrec.pipelines.night_model import training_day
from visrec.pipelines.nightly import NightlyJob
from visrec.publication.gate_context import GatesConfig
from visrec.publication.held_out_gates import why_too_few
from visrec.sampling.index import SamplingIndex
from visrec.training.moments import require_two_baskets


@dataclass(frozen=True)
class Prediction:
    """What a night would do.

    Attributes:
        sentence: which model would serve, and why.
        is_trained: whether there is enough to train a model on.
        may_serve: whether the trained model can be the one that serves.
    """

    sentence: str
    is_trained: bool
    may_serve: bool


def predict_served(log: InteractionLog, items: int, config: SplitConfig, night: date) -> Prediction:
    """Which model would serve a night with default settings, and why.

    Args:
        log: the interactions.
        items: number of items of the catalogue.
        config: what a training holds out.
        night: its date.
    """
    name = ModelChoice().name
    why_untrained = ""
    days = dict.fromkeys([training_day(night, NightlyJob().train_every), night])
    for day in days:
        known = log.before(int(datetime.combine(day, time(), UTC).timestamp()))
        why_untrained = _why_untrained(known, items, config)
        if not why_untrained:
            return _predict_comparison(name, known, config)
    sentence = f"{DEFAULT_ROW}: {name} could not be trained, because {why_untrained}"
    return Prediction(sentence, is_trained=False, may_serve=False)


def _why_untrained(log: InteractionLog, items: int, config: SplitConfig) -> str:
    """Why the interactions give nothing to train on; empty if they do."""
    if not len(log.item_R):
        return "all interactions are from the date of the night or later"
    train_R = split(log, config) == SplitPart.TRAIN
    index = SamplingIndex(log.items_where(train_R), log.basket_numbers()[train_R], items)
    try:
        require_two_baskets(index)
    except NoExamplesError as error:
        return error.found or str(error)
    return ""


def _predict_comparison(name: str, log: InteractionLog, config: SplitConfig) -> Prediction:
    """What an evaluation of the trained model can decide."""
    if not config.test:
        return _trained(f"{name}, compared with no other model: --split.test false")
    users = len(select_held_out(log, split(log, config), SplitPart.TEST, config))
    gates = GatesConfig()
    why = why_too_few(users, gates) if users else NO_TEST_USERS
    if why:
        sentence = f"{DEFAULT_ROW}, until it is known whether {name} is better: {why}"
        return Prediction(sentence, is_trained=True, may_serve=False)
    return _trained(
        f"{name} if its {gates.metric} on the held-out items of {users:,} users reaches that of "
        "VisRank and of popularity, otherwise the better of these"
    )


def _trained(sentence: str) -> Prediction:
    return Prediction(sentence, is_trained=True, may_serve=True)
