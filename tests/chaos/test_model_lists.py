"""Lists are the model's (promise 21): a sample of each shard is scored again in float64.

Other lists are held back, also on a first publication.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, reduce
from operator import add
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from tests.chaos.harness import amount, measured
from tests.interactions import features_at
from tests.publication.runs import draft_manifest
from tests.shop import groups_of, may_follow, through_a_file
from tests.training import provenance
from visrec.errors import GateError
from visrec.ids import index_in
from visrec.interactions.activity import DAY, Activity
from visrec.jagged import Jagged, offsets_from_lengths
from visrec.models import MODELS
from visrec.models.artifact import Artifact, save_artifact
from visrec.models.base import Catalogue, Sizes
from visrec.models.convncf import ConvNcfConfig
from visrec.models.visrank import VisRankConfig
from visrec.progress import Timer
from visrec.publication.completion import finish_run
from visrec.publication.gate import Gate
from visrec.publication.gate_context import FeatureCounts, GateContext, GatesConfig
from visrec.publication.integrity_gates import integrity_gates
from visrec.publication.judgement_gates import judgement_gates
from visrec.publication.list_tables import Layout, lists_table, read_lists, similar_table
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST
from visrec.publication.run_spec import RunSpec, run_store
from visrec.publication.verify import count_faults
from visrec.recommend.inputs import ScoringData, fallback_scores
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.model_scores import ModelScores
from visrec.recommend.queries import Queries, QueriesInMemory, read_all_queries
from visrec.recommend.readback import expected_shard
from visrec.recommend.rescore import TOLERANCE, Rescorer
from visrec.retrieval.rules import Rules
from visrec.retrieval.similar import Kind, cosine_scorer, similarity_arrays
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import Store
from visrec.threads import torch_threads

ITEMS, NEW, USERS, K, SHARDS = 260, 20, 72, 10, 3
OWN, FALLBACK, REASON = (
    "lists that differ from rescoring",
    "fallback lists that are not the most popular items",
    "lists with a reason that is missing or not the nearest item",
)
CONFIGS = {
    "convncf": ConvNcfConfig(width=4, channels=4, candidates=20),
    "visrank-max": VisRankConfig(mode="max"),
    "visrank-top": VisRankConfig(mode="mean_top_k"),
}
NAMES = sorted({*MODELS, "visrank-max", "visrank-top"})
# A group of eight, and every two that look the same.
RULES = Rules(2, np.arange(ITEMS) % 33 - 1, groups_of([(n, n + 1) for n in range(0, 90, 2)], ITEMS))
Rows = npt.NDArray[np.int64]


@dataclass
class Run:
    """A run of a model, as its search makes it. Mutants change its lists.

    Attributes:
        model: the directory of the model.
        data: the input of scoring.
        arrays: the item arrays of the model.
        kind: whether the lists are of users or of items.
        layout: the layout of the tables.
        row_UK: the items of each query's list, -1 after the last.
        score_UK: their scores.
        reason_UK: their reasons, -1 for none.
    """

    model: Store
    data: ScoringData
    arrays: Any
    kind: Kind
    layout: Layout
    row_UK: Rows
    score_UK: npt.NDArray[np.float32]
    reason_UK: Rows

    @property
    def queries(self) -> Queries:
        """All queries, shard after shard."""
        return read_all_queries(self.data.queries)

    @property
    def spec(self) -> RunSpec:
        return RunSpec(Store("/nowhere"), SHARDS, K, self.layout, self.kind, {})

    def table(self, shard: int) -> pa.Table:
        queries = self.data.queries.read(shard)
        first = sum(len(self.data.queries.read(before)) for before in range(shard))
        cut = slice(first, first + len(queries))
        ids, items = queries.query_ids, self.data.item_ids
        if self.kind == "item_to_item":
            lists = similar_table(ids, items, self.row_UK[cut], self.score_UK[cut], self.layout)
        else:
            lists = lists_table(
                ids, items, self.row_UK[cut], self.score_UK[cut], self.reason_UK[cut],
                queries.cold_U, self.layout,
            )  # fmt: skip
        return through_a_file(lists)

    def failed(self, seed: int = 0) -> set[str]:
        return failed(self.gates(seed))

    def gates(self, seed: int = 0) -> list[Gate]:
        rescorer = Rescorer(self.data, self.arrays, self.model, self.kind, K, seed)
        checks = []
        for shard in range(SHARDS):
            table = self.table(shard)
            queries = self.data.queries.read(shard)
            checks.append(count_faults(table, expected_shard(self.data, queries, self.spec)))
            lists = read_lists(table, self.kind)
            assert lists is not None
            rescorer.add_shard(shard, queries, lists)
        context = GateContext(
            kind=self.kind, k=K, available_N=self.data.available_N, artist_N=None,
            takers_N=self.data.takers_N, popular_N=self.data.takers_N.astype(np.int64),
            personalized=True, interactions_without_feature=FeatureCounts(1000, 0),
            items_without_feature=FeatureCounts(ITEMS, 0),
            model_digest="m", model_name="bpr_mf", tables=[], last=None,
            evaluation=None,
        )  # fmt: skip
        total = reduce(add, checks) + rescorer.checks()
        return [*integrity_gates(total, context), *judgement_gates(total, context, GatesConfig())]


def failed(gates: Sequence[Gate]) -> set[str]:
    """Names of the gates of this promise that hold the run back."""
    names = {OWN, FALLBACK, REASON}
    return {gate.name for gate in gates if gate.outcome == "failed"} & names


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a Ray task with one CPU; tensors are too small for two threads."""
    with torch_threads(1):
        yield


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Store, Catalogue]]:
    """Every model, with random weights and fitted to random baskets, and the items to score."""
    root = tmp_path_factory.mktemp("models")

    @cache
    def made(label: str) -> tuple[Store, Catalogue]:
        torch.manual_seed(3)
        rng, name = np.random.default_rng(5), label.partition("-")[0]
        feature_ND = rng.normal(size=(ITEMS, 16)).astype(np.float16)
        feature_ND[100:130] = feature_ND[200:230]  # the same picture twice: equal scores
        known = ITEMS - NEW
        trained_N = np.where(np.arange(ITEMS) < known, np.arange(ITEMS), -1)
        category_N = rng.integers(-1, 4, ITEMS)
        sizes = Sizes(items=known, users=USERS, feature_dim=16, categories=4)
        config = CONFIGS.get(label) or MODELS[name].Config()
        model = MODELS[name](config, sizes)
        train = profiles_of(rng, known)
        seen = Catalogue(feature_ND[:known], trained_N[:known], category_N[:known])
        model.fit(seen, train)
        ids = pa.array([f"i{n:04}" for n in range(known)])
        users = (
            None
            if MODELS[name].traits.supports_new_users
            else pa.array([f"u{n}" for n in range(USERS)])
        )
        artifact = Artifact(
            name=name, model=model.eval(), config=config, sizes=sizes, item_ids=ids,
            user_ids=users, held_out=HELD_OUT.empty_table(), provenance=provenance(), metrics={},
            model_id=label, categories=tuple("abcd"),
        )  # fmt: skip
        store = Store(str(root / label))
        save_artifact(artifact, store)
        activity = Activity.from_rows(
            rng.integers(0, known, 900), rng.integers(0, 90, 900) * DAY, ITEMS
        )
        known_NK = features_at(activity, 90 * DAY)
        return store, Catalogue(feature_ND, trained_N, category_N, activity_NA=known_NK)

    return made


def profiles_of(rng: np.random.Generator, items: int) -> Jagged:
    """A tenth of the users have taken nothing; some items are taken more than others."""
    weight = rng.exponential(size=items)
    lists = [
        rng.choice(items, rng.integers(1, 9), replace=False, p=weight / weight.sum())
        if rng.random() > 0.1
        else np.zeros(0, np.int64)
        for _ in range(USERS)
    ]
    return Jagged(
        np.concatenate(lists), offsets_from_lengths(np.array([len(one) for one in lists]))
    )


def run_of(
    made: tuple[Store, Catalogue],
    kind: Kind = "user_to_item",
    layout: Layout = "nested",
    rules: Rules | None = None,
    seed: int = 0,
) -> Run:
    """A run as the scoring step makes it, but for Ray and the store."""
    from visrec.models.artifact import load_artifact

    store, catalogue = made
    artifact, rng = load_artifact(store), np.random.default_rng(seed)
    model: Any = artifact.model
    unseen_N = np.zeros(ITEMS, bool) if model.traits.supports_new_items else catalogue.trained_N < 0
    available_N = (rng.random(ITEMS) < 0.9) & ~unseen_N
    profiles, arrays = profiles_of(rng, ITEMS - NEW), model.item_arrays(catalogue)
    names, cold_U = pa.array([f"u{n}" for n in range(USERS)]), profiles.lengths == 0
    trained_U = np.full(USERS, -1) if artifact.user_ids is None else np.arange(USERS)
    ids = pa.array([f"i{n:04}" for n in range(ITEMS)])
    takers_N = np.bincount(profiles.values, minlength=ITEMS).astype(np.float32)
    blocked = Jagged(rng.integers(0, ITEMS, USERS), np.arange(USERS + 1))
    scorer = model.scorer(arrays)
    if kind == "item_to_item":
        arrays = similarity_arrays(scorer, "it")
        scorer, known = cosine_scorer(arrays, use_gpu=False), arrays["unit"].any(axis=1)
        names, row_Q = ids.filter(pa.array(known)), np.flatnonzero(known)
        profiles, available_N = Jagged(row_Q, np.arange(len(row_Q) + 1)), available_N & known
        trained_U, cold_U = np.full(len(row_Q), -1), np.zeros(len(row_Q), bool)
        blocked = Jagged.empty(len(row_Q))
    queries = QueriesInMemory.assign(Queries(names, profiles, blocked, trained_U, cold_U), SHARDS)
    data = ScoringData(
        item_ids=ids, available_N=available_N, queries=queries, query_count=len(names),
        unseen_N=unseen_N, takers_N=takers_N, fallback_N=fallback_scores(takers_N, takers_N),
        artist_N=None, fingerprint_N=np.zeros(ITEMS, np.uint64), rules=rules,
    )  # fmt: skip
    quiet = Timer(SimpleNamespace(add=SimpleNamespace(remote=lambda _: None)))
    spec = RunSpec(Store("/nowhere"), SHARDS, K, "nested", kind, {})
    search = ShardRecommender(data, scorer, spec, None, quiet)
    run = Run(
        store, data, arrays, kind, layout, np.full((len(names), K), -1),
        np.full((len(names), K), -np.inf, np.float32), np.full((len(names), K), -1),
    )  # fmt: skip
    for shard in range(SHARDS):
        lists = read_lists(through_a_file(search(shard, queries.read(shard))[0]), kind)
        assert lists is not None
        at_B = index_in(lists.query_ids, queries.queries.query_ids)
        for b, query in enumerate(at_B.tolist()):
            cut = slice(lists.offsets[b], lists.offsets[b + 1])
            length = cut.stop - cut.start
            run.row_UK[query, :length] = index_in(lists.item_ids[cut], ids)
            run.score_UK[query, :length] = lists.score_V[cut]
            if lists.reason_V is not None:
                run.reason_UK[query, :length] = index_in(lists.reason_V[cut], ids)
    return run


# ------------------------------------------------------------------------------------ clean nights


@pytest.mark.parametrize("ruled", [False, True], ids=["free", "ruled"])
@pytest.mark.parametrize("label", NAMES)
def test_clean_run_is_not_held_back(label: str, ruled: bool, models: Any) -> None:
    for seed in range(amount(1, 4)):
        layout: Layout = "long" if seed % 2 != ruled else "nested"
        run = run_of(models(label), layout=layout, rules=RULES if ruled else None, seed=seed)
        gates = {gate.name: gate for gate in run.gates(seed)}
        assert {gates[name].outcome for name in (OWN, FALLBACK, REASON)} == {"passed"}
        measured(21, clean_nights=1, false_alarms=0)


@pytest.mark.parametrize("label", ["curatornet", "vbpr", "visrank", "cooccurrence", "bpr_mf"])
def test_clean_run_of_items_is_not_held_back(label: str, models: Any) -> None:
    run = run_of(models(label), kind="item_to_item", layout="long")
    gates = run.gates()
    assert failed(gates) == set()
    assert {gate.name: gate.outcome for gate in gates}[OWN] == "passed"
    run.row_UK[:, [0, 4]] = run.row_UK[:, [4, 0]]
    assert run.failed() == {OWN}
    measured(21, clean_nights=1, false_alarms=0)


@pytest.mark.parametrize("label", NAMES)
def test_float32_stays_far_below_the_tolerance(label: str, models: Any) -> None:
    """The tolerance must be wide enough for encoders in float32, and not much wider."""
    run = run_of(models(label))
    data = run.data
    scores = ModelScores(run.model, run.arrays, run.kind)
    own = np.flatnonzero(~run.queries.cold_U)
    profiles = run.queries.profiles.take(own)
    seen = profiles.keep(~data.unseen_N[profiles.values])
    if scores.num_proposals:
        exact_UK = np.stack([scores.score_items(seen[b], run.queries.trained_U[u], run.row_UK[u])
                             for b, u in enumerate(own.tolist())])  # fmt: skip
    else:
        exact_UN = scores.score_all(seen, run.queries.trained_U[own])
        exact_UK = np.take_along_axis(exact_UN, run.row_UK[own], axis=1)
    worst = np.abs(exact_UK - run.score_UK[own]).max() / np.abs(exact_UK).max()
    assert worst < TOLERANCE / 10


@pytest.mark.parametrize("size", [1e-30, 1e-14, 1e30])
def test_unit_vectors_have_length_1_whatever_the_magnitude(size: float, models: Any) -> None:
    """A high weight decay leaves next to nothing of the vectors of rarely sampled items."""
    vectors_Nd = np.random.default_rng(0).normal(size=(6, 65)).astype(np.float32)
    vectors_Nd[::2] *= np.float32(size)
    scores = ModelScores(models("bpr_mf")[0], {"vectors": vectors_Nd}, "user_to_item")
    space = scores.unit_vectors(np.arange(6))
    assert space is not None
    np.testing.assert_allclose(np.linalg.norm(space, axis=1), 1)


# ----------------------------------------------------------------------------------------- mutants


def own_lists(run: Run, share: float, rng: np.random.Generator) -> Rows:
    own = np.flatnonzero(~run.queries.cold_U)
    return rng.permutation(own)[: round(share * len(own))]


def random_items(run: Run, query: int, rng: np.random.Generator) -> Rows:
    """As many items that may be in the list: no other gate detects them."""
    closed = [*run.queries.profiles[query].tolist(), *run.queries.blocked[query].tolist()]
    free = np.setdiff1d(np.flatnonzero(run.data.available_N), closed)
    return rng.choice(free, int((run.row_UK[query] >= 0).sum()), replace=False)


def at_random(share: float) -> Callable[[Run, np.random.Generator], None]:
    def mutate(run: Run, rng: np.random.Generator) -> None:
        for query in own_lists(run, share, rng).tolist():
            rows = random_items(run, query, rng)
            run.row_UK[query, : len(rows)] = rows

    return mutate


def of_somebody_else(run: Run, rng: np.random.Generator) -> None:
    some = own_lists(run, 0.1, rng)
    for each in (run.row_UK, run.score_UK):
        each[some] = each[np.roll(some, 1)]


def without_the_best(run: Run, rng: np.random.Generator) -> None:
    for query in own_lists(run, 0.1, rng).tolist():
        spare = np.setdiff1d(random_items(run, query, rng), run.row_UK[query])
        run.row_UK[query] = [*run.row_UK[query, 1:], spare[0]]


def in_reverse(run: Run, rng: np.random.Generator) -> None:
    some = own_lists(run, 0.1, rng)
    run.row_UK[some] = run.row_UK[some, ::-1]


def scores_of_another_scale(run: Run, rng: np.random.Generator) -> None:
    run.score_UK[own_lists(run, 0.1, rng)] *= np.float32(1.01)


def no_reasons(run: Run, rng: np.random.Generator) -> None:
    del rng
    run.reason_UK[:] = -1


def other_reasons(run: Run, rng: np.random.Generator) -> None:
    """Another item of the profile."""
    del rng
    for query in np.flatnonzero(run.queries.profiles.lengths > 1).tolist():
        profile = run.queries.profiles[query]
        place_K = [profile.tolist().index(row) for row in run.reason_UK[query].tolist()]
        run.reason_UK[query] = profile[(np.array(place_K) + 1) % len(profile)]


def popular(run: Run, order: Rows) -> None:
    for query in np.flatnonzero(run.queries.cold_U).tolist():
        closed = run.queries.blocked[query]
        rows = order[run.data.available_N[order] & ~np.isin(order, closed)][:K]
        run.row_UK[query], run.score_UK[query] = rows, np.sort(run.data.takers_N[rows])[::-1]


def least_popular(run: Run, rng: np.random.Generator) -> None:
    del rng
    popular(run, np.argsort(run.data.takers_N, kind="stable"))


def popular_in_another_order(run: Run, rng: np.random.Generator) -> None:
    """Equal counts in reverse order of their ids."""
    del rng
    popular(run, ITEMS - 1 - np.argsort(-run.data.takers_N[::-1], kind="stable"))


def random_fallback(run: Run, rng: np.random.Generator) -> None:
    popular(run, rng.permutation(ITEMS))


MUTANTS: Mapping[str, tuple[str, Callable[[Run, np.random.Generator], None]]] = {
    "10 % random": (OWN, at_random(0.1)),
    "50 % random": (OWN, at_random(0.5)),
    "90 % random": (OWN, at_random(0.9)),
    "100 % random": (OWN, at_random(1.0)),
    "10 % of somebody else": (OWN, of_somebody_else),
    "10 % without their best item": (OWN, without_the_best),
    "10 % in reverse": (OWN, in_reverse),
    "10 % with scores 1 % off": (OWN, scores_of_another_scale),
    "all reasons missing": (REASON, no_reasons),
    "other reasons": (REASON, other_reasons),
    "fallback of the least popular": (FALLBACK, least_popular),
    "fallback with ties to the greater id": (FALLBACK, popular_in_another_order),
    "fallback at random": (FALLBACK, random_fallback),
}
_REASONS = {name for name, (gate, _) in MUTANTS.items() if gate == REASON}
NO_MUTANT = {
    # There is no space in which items are near one another, so lists have no reasons.
    "ease": _REASONS,
    "random": _REASONS,
    # Everybody gets the same list, too.
    "popularity": {"10 % of somebody else", *_REASONS},
    "recent_popularity": {"10 % of somebody else", *_REASONS},
}


@pytest.mark.parametrize("label", NAMES)
def test_lists_that_are_not_the_models_are_held_back(
    label: str, models: Any, tmp_path: Path
) -> None:
    """On a first publication, with nothing before it and no evaluation."""
    short = () if label in ("curatornet", "popularity") else list(MUTANTS)[1:]
    for seed in range(amount(1, 2)):
        clean = run_of(models(label), layout="long" if seed % 2 else "nested", seed=seed)
        for name, (gate, mutate) in MUTANTS.items():
            if name in (*NO_MUTANT.get(label, ()), *short[: amount(len(short), 0)]):
                continue
            run = replace(
                clean,
                row_UK=clean.row_UK.copy(),
                score_UK=clean.score_UK.copy(),
                reason_UK=clean.reason_UK.copy(),
            )
            mutate(run, np.random.default_rng(seed))
            gates = run.gates(seed)
            assert gate in failed(gates), name
            lists = Store(str(tmp_path))
            with pytest.raises(GateError, match=rf"{gate}: found \d+ \(of .* rescored lists\)"):
                finish_run(run_store(lists, "r"), draft_manifest(), gates)
            assert not lists.exists(LATEST)
            assert not run_store(lists, "r").exists(RUN_MANIFEST)
            measured(21, mutants_tried=1, mutants_held_back=1)


@pytest.mark.parametrize("label", ["curatornet", "visrank-max", "popularity"])
def test_random_lists_that_keep_the_rules_are_held_back(label: str, models: Any) -> None:
    """Lists that keep the rules, but are not the best that the rules leave."""
    run = run_of(models(label), rules=RULES)
    rng = np.random.default_rng(1)
    some = own_lists(run, 0.1, rng)
    for query in some.tolist():
        free = random_items(run, query, rng)
        run.row_UK[query, 3] = next(
            row for row in free.tolist()
            if row not in run.row_UK[query] and may_replace(run.row_UK[query], row)
        )  # fmt: skip
    assert OWN in run.failed()
    measured(21, mutants_tried=1, mutants_held_back=1)


def may_replace(row_K: Rows, row: int) -> bool:
    return may_follow(row, np.delete(row_K, 3).tolist(), RULES)
