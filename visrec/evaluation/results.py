"""What evaluation measured, as `metrics.json` and `costs.json` hold it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

METRICS, COSTS = "metrics.json", "costs.json"
PER_USER, REPORT = "per_user.parquet", "report.html"

# "mean", and for most metrics "low" and "high" (the 95 % interval) and "n" (users); for a
# difference also "above", the share of bootstrap samples in which it is above 0.
Figure = Mapping[str, float]
Metrics = Mapping[str, Mapping[str, Figure]]  # by model, or by pair of models, and by metric


@dataclass(frozen=True, kw_only=True)
class EvaluationResults:
    """The content of `metrics.json`: the same for the same inputs.

    Gates and nights read it as JSON, because they may not import this module.

    Attributes:
        models: ranking metrics of each model.
        lists: beyond-accuracy metrics of each model; coverage@K has a mean alone.
        by_profile_size: all metrics of each model, for users with profiles of one size; sizes that
            no user has are left out.
        paired: differences between two models, by "a - b".
        digests: the artifact digest of each trained model, by which `visrec recommend` finds the
            metrics of the model that it publishes.
    """

    models: Metrics
    lists: Metrics
    by_profile_size: Mapping[str, Metrics]
    paired: Metrics
    digests: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class TrainingCost:
    """What it cost to train a model.

    Attributes:
        parameters: number of trainable parameters.
        train_s: seconds of training; None where nobody measured them.
    """

    parameters: int
    train_s: float | None


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """One entry of `costs.json`: what a model costs. Its seconds differ from run to run.

    Attributes:
        parameters: number of trainable parameters; None for a model that needs no training.
        train_s: seconds of training; None for such a model, or where nobody measured them.
        score_ms: milliseconds to rank the catalogue for one user and to list the best items.
    """

    parameters: int | None
    train_s: float | None
    score_ms: float

    def to_dict(self) -> dict[str, float | None]:
        """The cost as JSON values."""
        return asdict(self)
