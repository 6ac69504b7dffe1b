"""Memory does not depend on the scores: equal ones, cold users and one picture of many items."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from tests.chaos.harness import amount, measured
from tests.memory import peak_memory
from visrec.jagged import Jagged
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer
from visrec.progress import Timer
from visrec.publication.run_spec import RunSpec
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.queries import Queries, QueriesInMemory
from visrec.retrieval.near_duplicates import near_duplicate_groups
from visrec.retrieval.rules import Rules
from visrec.storage.store import Store

pytestmark = pytest.mark.chaos
USERS, D, PLACEHOLDERS, TAKEN = 200, 16, 5_000, 3
MEGABYTE = 2**20
Vectors = npt.NDArray[np.float32]


def ordinary(vector_Nd: Vectors) -> Vectors:
    return vector_Nd


def all_scores_equal(vector_Nd: Vectors) -> Vectors:
    return np.repeat(vector_Nd[:1], len(vector_Nd), axis=0)


def few_scores(vector_Nd: Vectors) -> Vectors:
    return np.sign(vector_Nd) * (np.arange(D) == 0)


def one_placeholder(vector_Nd: Vectors) -> Vectors:
    same_Nd = vector_Nd.copy()
    same_Nd[: min(PLACEHOLDERS, len(same_Nd))] = same_Nd[0]
    return same_Nd


def lists_of(vector_Nd: Vectors, cold: bool, near_duplicate: bool) -> int:
    """How many lists a shard has, with the groups of near-duplicates found before."""
    n, every = len(vector_Nd), torch.from_numpy(vector_Nd)
    taken = np.random.default_rng(1).integers(0, n, USERS * (0 if cold else TAKEN))
    open_N = np.ones(n, bool)
    rules = None
    if near_duplicate:
        # Of a few thousand items besides, for each asks all for its nearest ones.
        some_N = np.arange(n) < PLACEHOLDERS + 2_000
        rules = Rules(0, None, near_duplicate_groups(vector_Nd, some_N, 0.97))
    queries = Queries(
        query_ids=pa.array([f"{row:07}" for row in range(USERS)]),
        profiles=Jagged(taken, np.arange(USERS + 1) * (len(taken) // USERS)),
        blocked=Jagged.empty(USERS),
        trained_U=np.full(USERS, -1),
        cold_U=np.full(USERS, cold),
    )
    data = ScoringData(
        item_ids=pa.array([f"{row:07}" for row in range(n)]),
        available_N=open_N,
        queries=QueriesInMemory(queries, np.array([0, USERS])),
        query_count=USERS,
        unseen_N=~open_N,
        takers_N=np.zeros(n, np.float32),
        fallback_N=np.zeros(n, np.float32),
        artist_N=None,
        fingerprint_N=np.zeros(n, np.uint64),
        rules=rules,
    )
    scorer = DotScorer(every, lambda bags, _: pool(every, bags, "mean"), every)
    quiet = Timer(SimpleNamespace(add=SimpleNamespace(remote=lambda _: None)))
    target = RunSpec(Store("/nowhere"), 1, 100, "nested", "user_to_item", {})
    return len(ShardRecommender(data, scorer, target, None, quiet)(0, queries)[0])


FORMS: dict[str, tuple[Callable[[Vectors], Vectors], bool]] = {
    "all scores equal": (all_scores_equal, False),
    "few different scores": (few_scores, False),
    "all users cold": (ordinary, True),
    "one placeholder": (one_placeholder, False),
}


def test_memory_does_not_depend_on_the_scores() -> None:
    items = amount(100_000, 1_000_000)
    vector_Nd = np.random.default_rng(0).normal(size=(items, D)).astype(np.float32)
    lists_of(vector_Nd[:1000], cold=False, near_duplicate=True)  # all is imported and compiled

    def grown(form: Callable[[Vectors], Vectors], cold: bool, near_duplicate: bool) -> int:
        vectors = form(vector_Nd)
        with peak_memory() as peak:
            assert lists_of(vectors, cold, near_duplicate) == USERS
        return peak.grown

    found, lists = {}, 0
    for near_duplicate in (False, True):
        usual = grown(ordinary, False, near_duplicate)
        for name, (form, cold) in FORMS.items():
            if near_duplicate == (name == "one placeholder"):
                found[name] = grown(form, cold, near_duplicate) - usual
                lists += USERS
        # Within 20 %, and what a small catalogue's noise is: buffers took 1.2 KB an item before.
        assert max(found.values()) <= 0.2 * usual + 8 * MEGABYTE, (usual, found)
    measured(22, forms_of_scores=len(found), items_searched=items, lists_made=lists)
