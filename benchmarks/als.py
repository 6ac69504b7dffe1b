"""implicit's ALS as a row of the quality tables: the best of its settings on the validation users.

Shapes: N items, E held-out users, U users of the training, d factors.
"""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import torch
from implicit.cpu.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from visrec.evaluation.baselines import EvaluatedModel
from visrec.evaluation.data import EvaluationData
from visrec.ids import index_in
from visrec.jagged import Jagged
from visrec.models.scorers import DotScorer
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets
from visrec.training.data import TrainingData

LABEL = "als"
FACTORS, REGULARIZATION, ALPHA = (16, 64, 128), (0.1, 10.0), (1.0, 10.0)
ITERATIONS = 15
METRIC = "recall@20"  # by which a setting is chosen: what ALS is best at

Settings = tuple[int, float, float]  # of FACTORS, REGULARIZATION and ALPHA
Floats = npt.NDArray[np.float32]


def with_als(data: EvaluationData, training: TrainingData) -> EvaluationData:
    """The data with one more row, of ALS fitted to all that was known before the test.

    A user's factors are computed from the profile at the user's moment, as those of EASE are.
    """
    settings = max(
        itertools.product(FACTORS, REGULARIZATION, ALPHA), key=lambda s: _try(s, training)
    )
    print(f"{LABEL}: factors, regularization, alpha {settings}", flush=True)
    known, items = training.for_refit.train, len(data.item_ids)
    item_N = index_in(training.item_ids, data.item_ids)
    known = known.keep(item_N[known.values] >= 0)
    known = Jagged(item_N[known.values], known.offsets)
    vectors, users = factors(settings, known, data.held_out.profiles, items)
    return dataclasses.replace(
        data,
        evaluated_models=[*data.evaluated_models, EvaluatedModel(LABEL, None)],
        arrays={**data.arrays, LABEL: {"vectors": vectors, "users": users}},
        user_rows={**data.user_rows, LABEL: np.arange(len(users))},
    )


def factors(
    settings: Settings, train: Jagged, profiles: Jagged, items: int
) -> tuple[Floats, Floats]:
    """(N, d) of the items and (E, d) of the users with these profiles.

    Args:
        settings: of the fit.
        train: U lists of items to fit to.
        profiles: E lists of items.
        items: N.
    """
    size, regularization, alpha = settings
    model = AlternatingLeastSquares(
        factors=size,
        regularization=regularization,
        alpha=alpha,
        iterations=ITERATIONS,
        random_state=0,
        num_threads=1,
    )
    with threadpool_limits(1, "blas"):  # its threads and those of the library stop each other
        model.fit(_matrix(train, items), show_progress=False)
        users = model.recalculate_user(np.arange(len(profiles)), _matrix(profiles, items))
    return model.item_factors, users


def _try(settings: Settings, training: TrainingData) -> float:
    """The validation users' mean of `METRIC`."""
    held, items = training.validation, len(training.item_ids)
    vectors, users = factors(settings, training.train, held.profiles, items)
    user_Ed = torch.from_numpy(users)
    scorer = DotScorer(torch.from_numpy(vectors), lambda _, user_B: user_Ed[user_B])
    ranks = rank_targets(scorer, held.profiles, np.arange(len(held)), held.targets)
    return float(per_user(ranks)[METRIC].mean())


def _matrix(lists: Jagged, items: int) -> csr_matrix:
    ones = np.ones(len(lists.values), np.float32)
    return csr_matrix((ones, lists.values, lists.offsets), (len(lists), items))
