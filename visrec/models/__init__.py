"""Every model by its name. A model is one file, and one entry here."""

from typing import Any

from visrec.models.curatornet import CuratorNet
from visrec.models.popularity import Popularity
from visrec.models.random import Random
from visrec.models.visrank import VisRank

MODELS: dict[str, Any] = {
    "curatornet": CuratorNet,
    "popularity": Popularity,
    "random": Random,
    "visrank": VisRank,
}
