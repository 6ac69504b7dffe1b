"""What gates are given besides the counts over the lists: thresholds, and facts about the run.

There are two kinds of gates, and all of a run are evaluated by `visrec.recommend.run_gates`. The
integrity gates (`integrity_gates.py`) check what is true of every correct run and have no
thresholds. The judgement gates (`judgement_gates.py`, `held_out_gates.py`) check whether a run is
like other runs. Their thresholds let an ordinary run pass, including the first run of a small shop.
An unusual run may be correct and still fail them. They are skipped where there are too few lists or
nothing to compare with.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from visrec.config import check_fields
from visrec.errors import InputError, did_you_mean
from visrec.publication.manifest import RunManifest
from visrec.retrieval.metrics import METRICS
from visrec.retrieval.similar import Kind

NOT_EVALUATED = "this model has not been evaluated"
NO_LAST = "there is no publication to compare with"


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """Thresholds that hold a publication back.

    Attributes:
        min_lists: the fewest lists of the model's own with which the gates on concentration,
            overlap and score drift are evaluated, and the fewest users in the evaluation for the
            gates on it. With fewer, these gates are skipped.
        min_catalogue: least share of the available items that are in any list; a share of the
            entries, if all lists together have fewer entries than there are items. None, the
            default, switches the gate off: how much of a catalogue lists should show depends on
            its trends.
        max_item_concentration: how much the lists may favour the k most listed items, on a scale
            from how much the interactions favour k items (0) to lists of the most popular items
            for everybody (1). The gate is skipped if k is more than half of the items, and for a
            model that gives everybody the same list by design.
        max_artist_concentration: how much the lists may favour the most listed twentieth of the
            artists, on a scale from how much the interactions favour as many artists (0) to lists
            of those artists alone (1).
        min_overlap: least share of a list in the last publication that is in the same query's list
            now, on average, on a scale from chance (0) to the same items (1). The gate is skipped
            if a night chose another kind of model.
        max_score_drift: the largest change of the best scores since the last publication of the
            same model. The change of their mean is measured in standard deviations of the last
            publication, that of their spread as the ratio minus one; the larger one counts.
        min_queries_of_last: least number of users (or items) with a list, as a share of the number
            in the last publication.
        min_available_of_last: least number of available items, as a share of the number in the last
            publication.
        max_cold_rise: the largest rise since the last publication of the share of users with the
            fallback list.
        max_without_feature_rise: the largest rise since the last publication of the share without
            a feature, of interactions and of available items (of the items table) alike. A rise
            means that features are stale.
        max_without_feature: the largest share without a feature, of interactions and of available
            items alike. None, the default, switches the gate off: a shop that deletes the pictures
            of sold items has many such interactions every night.
        metric: metric of the evaluation by which the model is compared with VisRank and popularity.
        min_gain: how far the model must be above VisRank and popularity in the evaluation. The
            upper end of the model's 95 % interval is compared, so that noise holds no model back.
            In a night, a baseline serves in place of a model that does not reach this gain; with -1
            the model serves in any case.
        require_evaluation: whether a model that was not evaluated is held back.
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
        if self.metric not in METRICS:
            hint = did_you_mean(self.metric.lower(), METRICS) or "."
            raise InputError(
                f"Found --gates.metric {self.metric!r}; expected one of {', '.join(METRICS)}{hint}",
                key="gates.metric",
            )


@dataclass(frozen=True, kw_only=True)
class ServingChoice:
    """A night's choice of the model that serves it.

    Attributes:
        reason: a sentence on which model serves, and why.
        row: for a baseline, the row of the evaluation that says how good it is. A trained model is
            found there by its digest.
    """

    reason: str
    row: str | None = None


class FeatureCounts(NamedTuple):
    """How many there are (interactions or items), and how many of them lack a feature."""

    total: int
    without_feature: int


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """Facts about a run besides the counts over its lists.

    Attributes:
        kind: whether the lists are of users or of items.
        k: entries of a list.
        available_N: (N,) which items may be recommended.
        artist_N: (N,) a code for each artist, -1 for none; or None.
        takers_N: (N,) how many users took each item, as scoring counted. (`RunChecks.recounted_N`
            is counted again from the profiles.)
        popular_N: (N,) in how many of the model's own lists each item would be, if they held the
            most popular items instead.
        personalized: whether the model gives each user a different list.
        interactions_without_feature: how many interactions there are, and how many of them have an
            item without a feature.
        items_without_feature: how many items the items table calls available, and how many of them
            have no feature.
        model_digest: digest of the model.
        model_name: its kind, such as curatornet.
        tables: which of the tables `items` and `users` the run read.
        last: manifest of the publication that the run is compared with; None where there is none.
        why_no_last: why it is None.
        evaluation: content of metrics.json, as `visrec evaluate` wrote it; None without one.
        choice: why a night chose this model; None if no night chose it.
    """

    kind: Kind
    k: int
    available_N: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    takers_N: npt.NDArray[np.float32]
    popular_N: npt.NDArray[np.int64]
    personalized: bool
    interactions_without_feature: FeatureCounts
    items_without_feature: FeatureCounts
    model_digest: str
    model_name: str
    tables: Sequence[str]
    last: RunManifest | None
    evaluation: Mapping[str, Any] | None  # JSON of another job
    choice: ServingChoice | None = None
    why_no_last: str = NO_LAST

    @property
    def query_noun(self) -> str:
        """What the queries are: users or items."""
        return "users" if self.kind == "user_to_item" else "items"

    @property
    def available(self) -> int:
        """Number of items that may be recommended."""
        return int(self.available_N.sum())

    @property
    def feature_counts(self) -> dict[str, FeatureCounts]:
        """`interactions_without_feature` and `items_without_feature`, by the manifest's names."""
        return {
            "interactions": self.interactions_without_feature,
            "items": self.items_without_feature,
        }

    @property
    def without_feature(self) -> dict[str, float]:
        """The same as shares of the interactions and of the available items."""
        return {
            name: share(counts.without_feature, counts.total, 0.0)
            for name, counts in self.feature_counts.items()
        }


def share(part: int, total: int, if_none: float = 1.0) -> float:
    """part / total, or `if_none` where the total is 0."""
    return part / total if total else if_none
