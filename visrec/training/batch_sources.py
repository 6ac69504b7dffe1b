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
    with_per_triple_negatives,
    with_random_guideline,
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


def used_sampling(trains_on: str, sampling: SamplingConfig) -> SamplingConfig | None:
    """How a source draws its triples, for which data are prepared; None if it draws none."""
    match trains_on:
        case "nothing" | "users":
            return None
        case "drawn_triples":
            return with_per_triple_negatives(sampling)
        case "ratings" | "moments":  # guidelines are ignored
            return with_random_guideline(sampling)
        case _:
            return sampling
