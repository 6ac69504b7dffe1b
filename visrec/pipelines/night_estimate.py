"""How long a night will take, estimated from the rates of docs/scaling.md and the cores here."""

from dataclasses import dataclass

import torch

from visrec.capacity import LISTED_DIM
from visrec.features.backbones import fastest_precision
from visrec.sampling.triples import SamplingConfig
from visrec.training.loop import TrainConfig, steps_per_epoch

# Rates of one core, as measured in docs/scaling.md.
_PICTURES_PER_S = {"bfloat16": 41.0, "float32": 30.0}  # through EfficientNet-Lite0
# An example of the hybrid with its defaults, and each candidate that a step compares it with:
# 8,700, 4,000 and 3,000 examples a second for catalogues of 150, 1,500 and 2,300 items.
_EXAMPLE_S, _CANDIDATE_S = 1e-4, 1e-7
_PAIRS_PER_S = 2.8e8  # pairs of a user and an item, in the evaluation
_MULTIPLICATIONS_PER_S = 2.5e11  # in the search
_USER_S = 140e-6  # for the list of a user, in addition to the search
_PREPARED_USER_S, _CHECKED_USER_S = 12e-6, 21e-6  # serial: the same on any number of cores
# Seconds until each step of a local night has its first result; the first one imports everything.
_START_S = {"extract": 8.0, "train": 4.0, "evaluate": 6.0, "recommend": 2.0}
_FITS = 2  # the second one has the validation baskets too


@dataclass(frozen=True, kw_only=True)
class NightSize:
    """What decides how long a night takes.

    Attributes:
        new_pictures: pictures without a feature.
        items: items with a picture.
        users: users who get a list.
        test_users: users who are evaluated; with 0, nothing is.
        training_rows: interactions that a model is trained on; 0 if there are not enough.
        cores: the cores of this machine.
    """

    new_pictures: int
    items: int
    users: int
    test_users: int
    training_rows: int
    cores: int

    @property
    def pictures_per_second(self) -> float:
        """How many pictures all cores send through the network."""
        return _PICTURES_PER_S[fastest_precision(torch.device("cpu"))] * self.cores

    @property
    def seconds(self) -> dict[str, float]:
        """The seconds of each step with default settings.

        Training counts in full, as on a training day, unless there is nothing to train on.
        """
        train = TrainConfig()
        steps = steps_per_epoch(train, self.training_rows) if self.training_rows else 0
        examples = _FITS * train.epochs * steps * train.batch_size
        candidates = min(self.items, SamplingConfig().candidates)
        work = {
            "extract": self.new_pictures / self.pictures_per_second,
            "train": examples * (_EXAMPLE_S + candidates * _CANDIDATE_S),
            "evaluate": self.test_users * self.items / (_PAIRS_PER_S * self.cores),
            "recommend": self.users * (_PREPARED_USER_S + _CHECKED_USER_S)
            + self.users
            / self.cores
            * (self.items * LISTED_DIM / _MULTIPLICATIONS_PER_S + _USER_S),
        }
        if not self.test_users:
            del work["evaluate"]
        return {step: seconds + _START_S[step] for step, seconds in work.items()}


def format_duration(seconds: float) -> str:
    """A duration with one unit and no more digits than an estimate deserves."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
