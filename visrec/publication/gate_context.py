"""Thresholds of the gates before publication, and what the gates know of a run.

There are two kinds. `integrity_gates.py` checks what is true of every correct list, and has no
thresholds. `judgement_gates.py` checks whether a run is like other runs: its thresholds are wide
enough for an honest one, the first run of a small shop included, and its gates are skipped where
there is too little to decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.config import check_fields
from visrec.publication.manifest import RunManifest
from visrec.retrieval.similar import Kind

NOT_EVALUATED = "this model has not been evaluated"
NO_LAST = "there is no publication before this one"


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """Thresholds that hold a publication back.

    Attributes:
        min_lists: the gates on concentration, overlap and drift are skipped if fewer lists are the
            model's own.
        min_catalogue: share of the available items that are in any list; where there are fewer
            entries than items, share of the entries. None, the default, switches the gate off: how
            much of a catalogue should be shown depends on its trends.
        max_item_concentration: how far the k most listed items are ahead of the others, on a scale
            from what the interactions have (0) to lists of the most popular items for everybody
            (1). Skipped where k is more than half of the items, and for a model that gives
            everybody the same list by design.
        max_artist_concentration: how far the most listed twentieth of the artists is ahead, on a
            scale from what the interactions have (0) to lists of those artists alone (1).
        min_overlap: how much of the last publication's list a query still has, on average, beyond
            chance: 0 is chance, 1 is the same list.
        max_score_drift: how far the mean of the best scores may move from the last publication of
            the same model, in its standard deviations; also how many times wider or narrower the
            scores may spread, minus one.
        min_queries_of_last: number of users (or items) with a list, as a share of the last
            publication's.
        min_available_of_last: number of available items, as a share of the last publication's.
        max_cold_rise: rise, since then, of the share of users with the fallback list.
        max_without_feature_rise: rise, since then, of the share of the interactions, and of the
            available items of the items table, whose item has no feature: features are stale.
        max_without_feature: the same share itself. None, the default, switches the gate off: a shop
            that deletes the pictures of sold items has many such interactions every night.
        metric: metric of the held-out set by which the model is compared with the baselines.
        min_gain: how far the model must be above VisRank and popularity, noise allowed for: the
            upper end of its 95 % interval counts.
        require_evaluation: hold back a model that was not evaluated.
    """

    min_lists: int = 50
    min_catalogue: float | None = None
    # Measured on catalogues with trends and without: docs/decisions.md.
    max_item_concentration: float = 0.98
    max_artist_concentration: float = 0.5
    min_overlap: float = 0.05
    max_score_drift: float = 2.0
    min_queries_of_last: float = 0.8
    min_available_of_last: float = 0.5
    max_cold_rise: float = 0.2
    max_without_feature_rise: float = 0.2
    max_without_feature: float | None = None
    metric: str = "auc"
    min_gain: float = 0.0
    require_evaluation: bool = False

    def __post_init__(self) -> None:
        thresholds = {f.name: "[0, 1000000000]" for f in fields(self) if f.type not in (bool, str)}
        may_be_negative = {"min_gain": "[-1, 1]", "min_overlap": "[-1, 1]"}
        check_fields(self, "gates", **{**thresholds, **may_be_negative})


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """What is known of a run besides its lists.

    Attributes:
        kind: whose lists they are.
        k: entries of a list.
        available_N: (N,) which items may be recommended.
        artist_N: (N,) a code for each artist, -1 for none; or None.
        taken_N: (N,) how many users took each item.
        popular_N: (N,) in how many of the model's own lists each item would be, if these were lists
            of the most popular items.
        personalized: whether the model gives each user a different list.
        interactions: their number, and how many of them are with items without a feature.
        items: number of items that the items table calls available, and how many of them have no
            feature.
        model_digest: of the model.
        tables: which of the tables `items` and `users` the run has.
        last: manifest of the last publication of this kind; None where there is none.
        evaluation: content of metrics.json, as jobs/evaluate.py wrote it; None where there is none.
    """

    kind: Kind
    k: int
    available_N: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    taken_N: npt.NDArray[np.float32]
    popular_N: npt.NDArray[np.int64]
    personalized: bool
    interactions: tuple[int, int]
    items: tuple[int, int]
    model_digest: str
    tables: Sequence[str]
    last: RunManifest | None
    evaluation: Mapping[str, Any] | None  # JSON of another job

    @property
    def query_noun(self) -> str:
        """What the queries are: users or items."""
        return "users" if self.kind == "user_to_item" else "items"

    @property
    def available(self) -> int:
        """Number of items that may be recommended."""
        return int(self.available_N.sum())

    @property
    def without_feature(self) -> dict[str, float]:
        """Shares of the interactions and of the available items whose item has no feature."""
        counts = {"interactions": self.interactions, "items": self.items}
        return {name: share(missing, total, 0.0) for name, (total, missing) in counts.items()}


def share(part: int, total: int, if_none: float = 1.0) -> float:
    """part / total, or `if_none` where the total is 0."""
    return part / total if total else if_none
