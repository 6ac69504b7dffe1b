"""The rows of the table that need no training of their own: what a shop could publish instead.

Shapes: N items, D feature width.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.arrays import ItemArrays
from visrec.models.base import Catalogue, ModelConfig, Sizes
from visrec.models.recent_popularity import RecentPopularityConfig
from visrec.models.visrank import VisRankConfig
from visrec.storage.store import Store


@dataclass(frozen=True)
class EvaluatedModel:
    """A row of the table: a trained model from its directory, or one that needs no training.

    Attributes:
        label: its name in the table.
        model: its entry in `MODELS`; None for the oracle.
        config: its configuration; the oracle has none.
        store: the directory of a trained model; None for others.
    """

    label: str
    model: str | None
    config: ModelConfig = field(default_factory=ModelConfig)
    store: Store | None = None


# Ease is in the table up to this many items, which it fits in about 20 s.
MAX_EASE_ITEMS = 5000
EASE = EvaluatedModel("ease", "ease", MODELS["ease"].Config())
BASELINES = (
    EvaluatedModel("visrank-max", "visrank", VisRankConfig(mode="max")),
    EvaluatedModel("visrank-mean", "visrank", VisRankConfig(mode="mean")),
    EvaluatedModel("visrank-mean_top_k", "visrank", VisRankConfig(mode="mean_top_k")),
    EvaluatedModel("popularity", "popularity", MODELS["popularity"].Config()),
    EvaluatedModel("recent-popularity", "recent_popularity", RecentPopularityConfig()),
    EvaluatedModel("random", "random", MODELS["random"].Config()),
)
# The model of each of these rows, by label: rows that need no training of their own.
UNTRAINED = {row.label: str(row.model) for row in (*BASELINES, EASE)}


def baselines_for(items: int, by_night: bool) -> list[EvaluatedModel]:
    """The baselines of a table.

    By night, popularity counts what had been taken by then, too.
    """
    ever = RecentPopularityConfig(days=100_000)
    rows = [
        EvaluatedModel(row.label, "recent_popularity", ever)
        if by_night and row.label == "popularity"
        else row
        for row in BASELINES
    ]
    return [*rows, EASE] if items <= MAX_EASE_ITEMS else rows


def baseline_arrays(
    catalogue: Catalogue, train: Jagged, baselines: Sequence[EvaluatedModel]
) -> dict[str, ItemArrays]:
    """The item arrays of each kind of baseline, fitted to the users' profiles.

    All modes of VisRank share theirs, since they differ only in how they score.
    """
    items, dim = catalogue.feature_ND.shape
    catalogue = dataclasses.replace(catalogue, trained_N=np.arange(items))
    sizes = Sizes(items=items, users=0, feature_dim=dim)
    arrays = {}
    for name, config in {str(b.model): b.config for b in baselines}.items():
        model = MODELS[name](config, sizes)
        model.fit(catalogue, train)
        arrays[name] = model.item_arrays(catalogue)
    return arrays
