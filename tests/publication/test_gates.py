"""The gates: every kind of bad run is held back, clean runs are not."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.chaos.harness import measured
from tests.publication.runs import draft_manifest
from tests.recommend import with_queries
from tests.shop import (
    MODEL,
    K,
    Shop,
    evaluated,
    failed,
    open_shop,
    scores_of,
    shape,
    through_a_file,
)
from visrec.errors import GateError, InputError
from visrec.jagged import Jagged
from visrec.publication.completion import finish_run
from visrec.publication.gate import Gate
from visrec.publication.gate_context import (
    NO_LAST,
    NOT_EVALUATED,
    FeatureCounts,
    GateContext,
    GatesConfig,
    ServingChoice,
)
from visrec.publication.integrity_gates import integrity_gates
from visrec.publication.judgement_gates import concentration, judgement_gates
from visrec.publication.list_tables import similar_table
from visrec.publication.manifest import HELD_BACK
from visrec.publication.verify import Expected, count_faults
from visrec.recommend.popular import PopularLists
from visrec.storage.store import Store

# Names of the gates without a threshold.
WITH_LIST = "share of the users with a list"
WRONG_FILES = "files that were changed, are of another run or have other columns"
EXTRA_LISTS = "lists of an unknown user, and second lists of one"
WRONG_LENGTH = f"lists with fewer than {K} items although there are more, or with too many"
DUPLICATES = "lists with an item twice"
AGAINST_RULES = "lists against the rules"
UNKNOWN = "entries with an item that is not in the catalogue"
UNAVAILABLE = "entries with an item that is not available"
CONSUMED = "entries that the user has taken or that are blocked"
NOT_FINITE = "entries with a NaN or infinite score"
UNSORTED = "lists that are not sorted, best item first"
WRONG_REASONS = "reasons with an item that the user never took, and wrong fallback flags"
MISSING_TABLES = "input tables of the last publication that are missing now"

# -------------------------------------------------------------------------------------- clean runs


@pytest.mark.parametrize("seed", range(20))
def test_clean_run_is_not_held_back(seed: int) -> None:
    shop = open_shop(seed, users=100 + 40 * seed, items=300 + 25 * seed,
                     layout="long" if seed % 2 else "nested")  # fmt: skip
    gates = shop.gates()
    assert [gate.sentence for gate in gates if gate.outcome == "failed"] == []
    assert [gate.name for gate in gates if gate.outcome == "skipped" and gate.key] == []
    measured(9, clean_nights=1)


@pytest.mark.parametrize(("users", "items"), [(1, 12), (3, 30), (60, 15), (40, 500)])
def test_small_first_run_is_not_held_back(users: int, items: int) -> None:
    """Without a last publication or an evaluation; and with fewer items than k for some."""
    shop = open_shop(users=users, items=items)
    shop.before, shop.context = [], {"evaluation": None}
    gates = shop.gates()
    assert [gate.sentence for gate in gates if gate.outcome == "failed"] == []
    notes = {gate.key: gate.note for gate in gates if gate.outcome == "skipped" and gate.key}
    assert notes["gates.min_overlap"] == NO_LAST
    assert notes["gates.min_gain"] == NOT_EVALUATED


def test_gate_without_a_publication_to_compare_with_says_why_there_is_none() -> None:
    shop, why = open_shop(), "the last publication, 2026-11-24, has a later cutoff"
    shop.before, shop.context = [], {"why_no_last": why}
    gates = [gate for gate in shop.gates() if "last" in gate.name]
    assert len(gates) > 4
    assert all(why in gate.note for gate in gates), gates


@pytest.mark.parametrize("seed", range(5))
def test_first_run_of_a_catalogue_with_trends_is_not_held_back(seed: int) -> None:
    """A few items are most of what is taken, and of what is liked: so are they of the lists."""
    shop = open_shop(seed, users=400, items=600, trend=3.0)
    shop.before, shop.context = [], {"evaluation": None}
    data = shop.data
    listed_N = np.bincount(shop.row_UK[~shop.queries.cold_U].ravel(), minlength=600)
    assert concentration(listed_N, data.available_N, K)[0] > 0.7
    assert concentration(data.takers_N, np.ones(600), K)[0] > 0.3
    assert [gate.sentence for gate in shop.gates() if gate.outcome == "failed"] == []
    measured(9, clean_nights=1)
    # What is the same for all is held back there, too.
    for score_N in (np.random.default_rng(seed).random(600), data.takers_N):
        scores_of(shop, np.broadcast_to(score_N, shape(shop)))
        shop.tables = shop.write()
        assert "max_item_concentration" in failed(shop)
        measured(9, mutants_tried=1, mutants_held_back=1)
    # By design where the model is of popularity alone.
    shop.context["personalized"] = False
    assert not failed(shop)


def test_features_that_were_always_missing_hold_back_no_run() -> None:
    """Pictures of what was sold are gone, and the last publication was like that, or is none."""
    shop = open_shop()
    shop.context = {
        "interactions_without_feature": FeatureCounts(1000, 600),
        "items_without_feature": FeatureCounts(400, 200),
    }
    assert failed(shop) == {"max_without_feature_rise"}
    shares = {"interactions": 0.6, "items": 0.5}
    shop.context["last"] = shop.last_manifest(without_feature=shares)
    assert not failed(shop)
    shop.context["interactions_without_feature"] = FeatureCounts(1000, 790)
    assert not failed(shop)
    shop.context["interactions_without_feature"] = FeatureCounts(1000, 810)
    assert failed(shop) == {"max_without_feature_rise"}
    shop.before, shop.context["last"] = [], None
    assert not failed(shop)
    shop.config = GatesConfig(max_without_feature=0.8)
    assert failed(shop) == {"max_without_feature"}


def test_counts_of_popular_lists_equal_those_of_a_plain_loop() -> None:
    shop = open_shop(2, users=60, items=40, blocked=Jagged(np.arange(60) % 40, np.arange(61)))
    data, queries, expected_N = shop.data, shop.queries, np.zeros(40, np.int64)
    order = sorted(range(40), key=lambda row: (-data.takers_N[row], row))
    for user in np.flatnonzero(~queries.cold_U).tolist():
        closed = {*queries.profiles[user].tolist(), *queries.blocked[user].tolist()}
        mine = [row for row in order if data.available_N[row] and row not in closed][:K]
        expected_N[mine] += 1
    np.testing.assert_array_equal(PopularLists(data, K).counts(queries), expected_N)


# ----------------------------------------------------------------------------------------- mutants


def entry(change: Callable[[Shop, dict[str, Any]], Any]) -> Callable[[Shop], None]:
    """A mutant of the second entry of one user's list."""

    def mutate(shop: Shop) -> None:
        shop.edit(0, lambda rows: change(shop, warm(rows)["items"][1]))

    return mutate


def warm(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if not row["cold"])


def rows(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Shop], None]:
    """A mutant of one shard's rows."""
    return lambda shop: shop.edit(0, change)


def scored(change: Callable[[Shop], Any]) -> Callable[[Shop], None]:
    """A mutant of the lists before they are written."""

    def mutate(shop: Shop) -> None:
        change(shop)
        shop.tables = shop.write()

    return mutate


def known(**context: Any) -> Callable[[Shop], None]:
    """A mutant of what is known of the run besides its lists."""
    return lambda shop: shop.context.update(context)


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Shop], None]:
    """A mutant of one file's columns."""

    def mutate(shop: Shop) -> None:
        shop.tables[1] = change(shop.tables[1])

    return mutate


def take_consumed(shop: Shop, found: dict[str, Any]) -> None:
    user = int(np.flatnonzero(~shop.queries.cold_U)[0])
    found["item_id"] = shop.data.item_ids[int(shop.queries.profiles[user][0])].as_py()


def take_unavailable(shop: Shop, found: dict[str, Any]) -> None:
    gone = shop.data.available_N.copy()
    gone[shop.queries.profiles.values] = True  # so that it is this that is wrong, and no more
    found["item_id"] = shop.data.item_ids[int(np.argmin(gone))].as_py()


def swap_scores(rows: list[dict[str, Any]]) -> None:
    first, second = warm(rows)["items"][:2]
    first["score"], second["score"] = second["score"] - 1, first["score"]


def all_alike(shop: Shop) -> None:
    scores_of(shop, np.broadcast_to(np.random.default_rng(1).random(shape(shop)[1]), shape(shop)))


def few_artists(shop: Shop) -> None:
    artist_N = shop.data.artist_N
    assert artist_N is not None
    scores_of(shop, np.random.default_rng(1).random(shape(shop)) + 9.0 * (artist_N < 2))


def fallback_for_half(shop: Shop) -> None:
    shop.context["last"] = shop.last_manifest()
    half_U = np.arange(shop.data.query_count) % 2 == 0
    shop.data = with_queries(shop.data, cold_U=shop.queries.cold_U | half_U)
    scores_of(shop, np.random.default_rng(1).random(shape(shop)))


def a_user_of_another_shard(shop: Shop) -> None:
    shop.tables[0] = pa.concat_tables([shop.tables[0].slice(1), shop.tables[1].slice(0, 1)])


def of_last(**fields: Any) -> Callable[[Shop], None]:
    """A mutant of the manifest of the last publication."""
    return lambda shop: shop.context.update(last=shop.last_manifest(**fields))


MUTANTS: Mapping[str, tuple[str, Callable[[Shop], None]]] = {
    "99 items": (WRONG_LENGTH, rows(lambda r: r[3]["items"].pop())),
    "101 items": (
        WRONG_LENGTH,
        rows(lambda r: r[3]["items"].append({**r[3]["items"][-1], "item_id": "i0001"})),
    ),
    "an empty list": (WRONG_LENGTH, rows(lambda r: r[5].update(items=[]))),
    "an item twice": (DUPLICATES, rows(lambda r: r[2]["items"][4].update(r[2]["items"][3]))),
    "NaN": (NOT_FINITE, entry(lambda _, e: e.update(score=float("nan")))),
    "infinite": (NOT_FINITE, entry(lambda _, e: e.update(score=float("inf")))),
    "an unknown id": (UNKNOWN, entry(lambda _, e: e.update(item_id="nothing of ours"))),
    "no id": (UNKNOWN, entry(lambda _, e: e.update(item_id=None))),
    "an item that is sold": (UNAVAILABLE, entry(take_unavailable)),
    "a consumed item": (CONSUMED, entry(take_consumed)),
    "not sorted": (UNSORTED, rows(swap_scores)),
    "worst first": (UNSORTED, rows(lambda r: r[1]["items"].reverse())),
    "a reason never taken": (
        WRONG_REASONS,
        entry(lambda _, e: e.update(because_item_id=e["item_id"])),
    ),
    "a fallback not marked": (
        WRONG_REASONS,
        rows(lambda r: [row.update(cold=False) for row in r]),
    ),
    "a user without a list": (WITH_LIST, rows(lambda r: r.pop())),
    "half of the users": (WITH_LIST, rows(lambda r: r.__delitem__(slice(0, None, 2)))),
    "an empty file": (WITH_LIST, rows(lambda r: r.clear())),
    "a user twice": (EXTRA_LISTS, rows(lambda r: r.append(r[0]))),
    "an unknown user": (EXTRA_LISTS, rows(lambda r: r.append({**r[0], "user_id": "who"}))),
    "a user of another shard": (EXTRA_LISTS, a_user_of_another_shard),
    "a column renamed": (
        WRONG_FILES,
        table(lambda t: t.rename_columns(["user", "items", "cold"])),
    ),
    "a column more": (WRONG_FILES, table(lambda t: t.append_column("x", t["cold"]))),
    "a column less": (WRONG_FILES, table(lambda t: t.drop_columns(["cold"]))),
    "ids of another type": (
        WRONG_FILES,
        table(lambda t: t.set_column(0, "user_id", t["user_id"].cast(pa.large_string()))),
    ),
    "everyone the same list": ("max_item_concentration", scored(all_alike)),
    "popularity collapse": (
        "max_item_concentration",
        scored(lambda s: scores_of(s, np.broadcast_to(s.data.takers_N, shape(s)))),
    ),
    "few artists": ("max_artist_concentration", scored(few_artists)),
    "little of the catalogue": ("min_catalogue", scored(all_alike)),
    "features shuffled": (
        "min_overlap",
        scored(lambda s: scores_of(s, np.random.default_rng(9).normal(size=shape(s)))),
    ),
    "scores moved": ("max_score_drift", scored(lambda s: s.score_UK.__iadd__(50))),
    "scores collapsed": ("max_score_drift", scored(lambda s: s.score_UK.__imul__(1e-3))),
    "half the users of the last time": ("min_queries_of_last", of_last(queries=401)),
    "the fallback for half": ("max_cold_rise", scored(fallback_for_half)),
    "stale features of interactions": (
        "max_without_feature_rise", known(interactions_without_feature=FeatureCounts(1000, 300))),
    "stale features of the catalogue": (
        "max_without_feature_rise", known(items_without_feature=FeatureCounts(400, 160))),
    "worse than VisRank": ("min_gain", known(evaluation=evaluated(0.6, visrank=0.7))),
    "worse than popularity": ("min_gain", known(evaluation=evaluated(0.75, popularity=0.8))),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_run_with_one_planted_fault_is_held_back_by_the_gate_for_it(
    name: str, tmp_path: Path
) -> None:
    key, mutate = MUTANTS[name]
    shop = open_shop()
    assert not failed(shop)
    mutate(shop)
    if key == "min_catalogue":  # off by default
        shop.config = GatesConfig(min_catalogue=0.1)
    assert key in failed(shop)
    run = Store(str(tmp_path))
    found = f"{key}: found" if " " in key else f"(--gates.{key})"
    with pytest.raises(GateError, match=rf"the pointer has not moved.*{re.escape(found)}"):
        finish_run(run, draft_manifest(), shop.gates())
    assert [entry.name for entry in run.list()] == [HELD_BACK]
    measured(9, mutants_tried=1, mutants_held_back=1)


# ------------------------------------------------------------------------------------- single gates


@pytest.mark.parametrize("missing", [1, 3, 40])
def test_failing_figure_near_its_threshold_is_printed_with_enough_digits_to_differ(
    missing: int,
) -> None:
    """One user of two million without a list is 1.0, rounded to four digits."""
    shop = open_shop()
    users = 2_000_000
    checks = replace(shop.checks(), queries=users - missing, queries_expected=users)
    gate = shop.gates(checks)[0]
    assert gate.outcome == "failed"
    assert isinstance(gate.found, float)
    assert 0.9999 < gate.found < 1
    assert f"found {gate.found} " in gate.sentence
    full = shop.gates(replace(checks, queries=users))[0]
    assert (full.outcome, full.found) == ("passed", 1.0)


@pytest.mark.parametrize("least", [0.99999995, 1 / 3, 0.05])
def test_threshold_is_printed_with_all_its_digits(least: float) -> None:
    shop = open_shop()
    shop.config = GatesConfig(min_queries_of_last=least)
    [gate] = [gate for gate in shop.gates() if gate.key == "gates.min_queries_of_last"]
    assert float(str(gate.expected).removeprefix("at least ")) == least


def test_baseline_that_a_night_chose_is_compared_with_the_others_only() -> None:
    shop = open_shop()
    shop.context = {
        "model_digest": "of VisRank",
        "choice": ServingChoice(reason="", row="visrank-mean"),
        "evaluation": evaluated(0.6, visrank=0.7),
    }
    notes = {gate.name: (gate.outcome, gate.note) for gate in shop.gates()}
    assert notes["auc on the held-out set, above VisRank"] == ("skipped", "VisRank itself serves")
    assert notes["auc on the held-out set, above popularity"][0] == "passed"
    shop.context["evaluation"] = evaluated(0.6, visrank=0.7, popularity=0.8)
    assert failed(shop) == {"min_gain"}


def test_overlap_counts_only_for_the_same_kind_of_model_if_a_night_chose_it() -> None:
    shop = open_shop()
    MUTANTS["features shuffled"][1](shop)
    other = {"model": "of VisRank", "items": "a digest", "users": None}
    shop.context = {"last": shop.last_manifest(model_name="visrank", inputs=other)}
    assert failed(shop) == {"min_overlap"}
    shop.context["choice"] = ServingChoice(reason="")
    assert not failed(shop)
    shop.context["last"] = shop.last_manifest(inputs=other)
    assert failed(shop) == {"min_overlap"}


def test_model_without_evaluation_is_held_back_if_one_is_required() -> None:
    shop = open_shop()
    shop.config = GatesConfig(require_evaluation=True)
    assert not failed(shop)
    shop.context["evaluation"] = None
    assert failed(shop) == {"require_evaluation"}
    shop.context["evaluation"] = {**evaluated(), "digests": {"mine": "an older model"}}
    assert failed(shop) == {"require_evaluation"}


def test_every_threshold_can_be_moved_to_let_its_mutant_through() -> None:
    """Each gate looks at the key that its sentence names."""
    for name, (key, mutate) in MUTANTS.items():
        if " " in key:
            continue
        shop = open_shop()
        mutate(shop)
        may_be_negative = key in ("min_gain", "min_overlap")
        open_wide: Any = -1.0 if may_be_negative else 0.0 if key.startswith("min") else 10_000
        shop.config = GatesConfig(**{key: open_wide})
        assert key not in failed(shop), name


def test_scores_of_another_model_are_not_compared() -> None:
    shop = open_shop()
    shop.score_UK += 50
    shop.tables = shop.write()
    shop.context["last"] = shop.last_manifest(inputs={"model": "another"})
    assert not failed(shop)


def test_lists_of_cold_users_do_not_count_as_concentration() -> None:
    """They are the same for all by design; with nine in ten of them, the others still count."""
    shop = open_shop(users=1000)
    cold_U = np.arange(1000) % 10 > 0
    shop.data = with_queries(shop.data, cold_U=cold_U)
    scores_of(shop, np.random.default_rng(0).normal(size=shape(shop)))
    shop.before, shop.tables = [], shop.write()
    assert not failed(shop)
    all_alike(shop)
    shop.tables = shop.write()
    assert failed(shop) == {"max_item_concentration"}


def test_wrong_ranks_of_the_long_layout_are_held_back() -> None:
    shop = open_shop(layout="long")
    assert not failed(shop)
    shop.edit(0, lambda r: r[1].update(rank=3))
    assert failed(shop) == {UNSORTED}
    shop = open_shop(layout="long")
    shop.edit(0, lambda r: r.append(r.pop(0)))  # one list in two places
    assert {EXTRA_LISTS, WRONG_LENGTH, UNSORTED} <= failed(shop)
    shop.tables = open_shop().tables
    assert WRONG_FILES in failed(shop)


def test_item_to_item_run_has_no_gate_about_users_or_evaluation() -> None:
    names = pa.array([f"i{n:03}" for n in range(100)])
    vector_Nd = np.random.default_rng(0).normal(size=(100, 6))
    score_NN = vector_Nd @ vector_Nd.T / np.linalg.norm(vector_Nd, axis=1) ** 2
    np.fill_diagonal(score_NN, -np.inf)
    row_NK = np.argsort(-score_NN, axis=1)[:, :K]
    score_NK = np.take_along_axis(score_NN, row_NK, axis=1).astype(np.float32)
    expected = Expected(
        item_ids=names, available_N=np.ones(100, bool), query_ids=names,
        consumed=Jagged(np.arange(100), np.arange(101)), blocked=Jagged.empty(100),
        cold_U=np.zeros(100, bool), k=K, layout="nested", kind="item_to_item",
    )  # fmt: skip
    context = GateContext(
        kind="item_to_item", k=K, available_N=expected.available_N, artist_N=None,
        takers_N=np.ones(100, np.float32), popular_N=np.eye(100, dtype=np.int64)[:K].sum(axis=0),
        personalized=True, interactions_without_feature=FeatureCounts(10, 9),
        items_without_feature=FeatureCounts(100, 0),
        model_digest=MODEL, model_name="curatornet", tables=[], last=None,
        evaluation=None,
    )  # fmt: skip

    def gates() -> list[Gate]:
        table = through_a_file(similar_table(names, names, row_NK, score_NK, "nested"))
        checks, config = count_faults(table, expected), GatesConfig(require_evaluation=True)
        return [*integrity_gates(checks, context), *judgement_gates(checks, context, config)]

    assert [gate.sentence for gate in gates() if gate.outcome == "failed"] == []
    assert not [gate for gate in gates() if "user" in gate.sentence or "held-out" in gate.name]
    row_NK[7, 0] = 7
    failed_names = [gate.name for gate in gates() if gate.outcome == "failed"]
    assert failed_names == ["entries with the item itself"]


def test_run_of_a_nearly_empty_catalogue_is_held_back() -> None:
    """All lists are as long as there are candidates, and nothing else can tell."""
    shop = open_shop()
    shop.context = {"available_N": np.arange(400) < 150}
    assert "min_available_of_last" in failed(shop)
    shop.config = GatesConfig(min_available_of_last=0.2)
    assert "min_available_of_last" not in failed(shop)


@pytest.mark.parametrize(("tables", "missing"), [([], 1), (["items"], 0), (["items", "users"], 0)])
def test_run_without_a_table_of_the_last_publication_is_held_back(
    tables: list[str], missing: int
) -> None:
    shop = open_shop()
    shop.context = {"tables": tables}
    assert (MISSING_TABLES in failed(shop)) == bool(missing)


def test_concentration_is_0_for_equal_shares_and_1_for_all() -> None:
    ones = np.ones(10)
    assert concentration(ones, ones, 2) == (pytest.approx(0), pytest.approx(0.2))
    assert concentration(np.array([5, 0, 5, 0, 0]), np.ones(5), 2) == (1.0, 1.0)
    # Two artists of five works each: one has 3/4 of the entries, half more than its share.
    assert concentration(np.array([3, 1]), np.array([5, 5]), 1)[0] == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------ config


def test_negative_threshold_is_refused() -> None:
    with pytest.raises(InputError, match=r"Found --gates\.min_lists -1; expected a whole number"):
        GatesConfig(min_lists=-1)
    with pytest.raises(InputError, match=r"--gates\.min_overlap nan"):
        GatesConfig(min_overlap=float("nan"))
    GatesConfig(min_gain=-0.1)


def test_metric_that_the_evaluation_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match=r"--gates\.metric 'AUC'; .* auc, .*did you mean auc\?"):
        GatesConfig(metric="AUC")
    with pytest.raises(InputError, match=r"--gates\.metric 'recall@10'"):
        GatesConfig(metric="recall@10")


def test_every_gate_has_a_known_key_a_unique_name_and_is_valid_json() -> None:
    gates = open_shop().gates()
    keys = set(GatesConfig.__dataclass_fields__)
    assert {gate.key.removeprefix("gates.") for gate in gates if gate.key} <= keys
    assert len({gate.name for gate in gates}) == len(gates)
    for gate in gates:
        record = gate.to_dict()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert Gate.from_dict(record) == gate
