"""The ranks and the lists of a row of the table."""

from collections.abc import Callable
from functools import partial

from visrec.evaluation.baselines import EvaluatedModel
from visrec.evaluation.data import EvaluationData
from visrec.evaluation.list_metrics import LENGTH
from visrec.evaluation.oracle import Oracle, oracle_at
from visrec.models import MODELS
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import load_artifact
from visrec.models.base import Sizes
from visrec.models.scorers import Scorer
from visrec.retrieval.moments import MomentRanker


def ranker(evaluated: EvaluatedModel, data: EvaluationData, k: int = LENGTH) -> MomentRanker:
    """The ranker of a row of the table.

    Args:
        evaluated: the row.
        data: shared by all workers.
        k: length of the lists.
    """
    arrays, user_E = data.arrays[evaluated.label], data.user_rows[evaluated.label]
    scorer_of = _scorer_of(evaluated, len(data.item_ids))
    arrays_at = partial(oracle_at, arrays) if evaluated.model is None else None
    return MomentRanker(scorer_of, arrays, user_E, data.moments, k, arrays_at)


def _scorer_of(evaluated: EvaluatedModel, items: int) -> Callable[[ItemArrays], Scorer]:
    """The function that makes a scorer of a model's item arrays."""
    if evaluated.model is None:
        return Oracle.scorer
    if evaluated.store:
        return load_artifact(evaluated.store).model.without_item_tables().scorer
    sizes = Sizes(items=items, users=0, feature_dim=0)
    return MODELS[evaluated.model](evaluated.config, sizes).scorer
