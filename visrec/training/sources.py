"""Every source of batches, by the kind of batch that a model trains on."""

from collections.abc import Callable

from visrec.models.base import ModelTraits
from visrec.sampling.triples import SamplingConfig
from visrec.training.batches import (
    BatchSource,
    PerTripleNegativesSource,
    RatingSource,
    TripleSource,
    UserSource,
)
from visrec.training.data import TrainingData
from visrec.training.moments import MomentSource

SOURCES: dict[str, Callable[[TrainingData, SamplingConfig, int, ModelTraits], BatchSource]] = {
    "triples": TripleSource,
    "drawn_triples": PerTripleNegativesSource,
    "moments": MomentSource,
    "users": UserSource,
    "ratings": RatingSource,
}
