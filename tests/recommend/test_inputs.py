"""Planted inputs, and the scoring data that they give: queries, profiles, availability, rules."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features import feature_identity, write_features
from tests.interactions import assert_equal, prepared_root
from tests.training import jagged_lists, provenance
from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.interactions.activity import DAY
from visrec.models import MODELS
from visrec.models.artifact import Artifact, load_artifact, save_artifact
from visrec.models.base import Catalogue, Sizes
from visrec.models.provenance import InteractionsProvenance
from visrec.recommend.catalogue import load_catalogue, trained_users
from visrec.recommend.inputs import (
    ScoringData,
    ScoringInputs,
    fallback_scores,
    prepare_scoring,
)
from visrec.recommend.queries import read_all_queries
from visrec.recommend.rescore import are_fallback_scores
from visrec.recommend.users import open_users
from visrec.retrieval.rules import RulesConfig
from visrec.retrieval.similar import Kind
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import Store

IDENTITY = feature_identity(2)
# a and b look alike; d is new: training has not seen it.
FEATURES = {"a": [4.0, 0.0], "b": [4.0, 0.1], "c": [0.0, 4.0], "d": [-4.0, 1.0]}
ITEMS, TRAINED_ITEMS = list(FEATURES), ["a", "b", "c"]
TRAINED_USERS = ["u0", "u1"]
LOG = [("u0", "a", 1), ("u0", "b", 2), ("u1", "c", 1), ("u2", "d", 1), ("u2", "gone", 2)]


class Workspace:
    """Features of four items, a log of three users, a users table with a fourth; and models."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.features = folder, Store.at(str(folder / "features"))
        feature_ND = np.array(list(FEATURES.values()), np.float16)
        write_features(self.features, ITEMS, feature_ND)
        users, items, times = map(list, zip(*LOG, strict=True))
        self.log = self.write("log", user_id=users, item_id=items, timestamp=times)
        self.users = self.table("users", user_id=["u0", "visitor"])

    def table(self, name: str, **columns: list[Any]) -> InputTable:
        return InputTable(uri=self.write(name, **columns), key=name)

    def write(self, name: str, **columns: list[Any]) -> str:
        path = self.folder / f"{name}.parquet"
        pq.write_table(pa.table(columns), path)
        return str(path)

    def model(self, name: str, **changes: Any) -> Store:
        """A model trained on `TRAINED_ITEMS` and `TRAINED_USERS`; `changes` are of provenance."""
        sizes = Sizes(items=3, users=2, feature_dim=2)
        model = MODELS[name](MODELS[name].Config(), sizes)
        feature_ND = np.array([FEATURES[item] for item in TRAINED_ITEMS], np.float16)
        model.fit(Catalogue(feature_ND, np.arange(3)), jagged_lists([[0, 1], [2]]))
        changes = {"features_identity": IDENTITY, **changes}
        artifact = Artifact(
            name=name,
            model=model,
            config=MODELS[name].Config(),
            sizes=sizes,
            item_ids=pa.array(TRAINED_ITEMS),
            user_ids=pa.array(TRAINED_USERS),
            provenance=provenance(**changes),
            metrics={},
            model_id=name,
            held_out=HELD_OUT.empty_table(),
        )
        store = Store.at(str(self.folder / f"model-{name}"))
        save_artifact(artifact, store)
        return store

    def inputs(self, model: str | Store = "visrank", **changes: Any) -> ScoringInputs:
        """Inputs with a log, and without tables of items and users."""
        inputs = ScoringInputs(
            model=self.model(model) if isinstance(model, str) else model,
            features=self.features,
            interactions=InteractionsConfig(),
            interactions_uri=self.log,
            items_table=None,
            users_table=None,
        )
        return replace(inputs, **changes)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def prepare(
    inputs: ScoringInputs, *, shards: int | None = 1, kind: Kind = "user_to_item"
) -> ScoringData:
    return prepare_scoring(inputs, shards, kind, k=2)[0]


def by_query(data: ScoringData, name: Literal["profiles", "blocked"]) -> dict[str, list[str]]:
    """Each query's profile, or what is blocked for it, as item ids."""
    ids, queries = data.item_ids.to_pylist(), read_all_queries(data.queries)
    lists = getattr(queries, name)
    return {
        query: [ids[row] for row in lists[u].tolist()]
        for u, query in enumerate(queries.query_ids.to_pylist())
    }


def chosen(data: ScoringData, mask_N: npt.NDArray[np.bool_]) -> list[str]:
    """The ids of the items of a mask."""
    return [item for item, is_in in zip(data.item_ids.to_pylist(), mask_N, strict=True) if is_in]


# Queries.


def test_queries_are_all_users_of_log_and_users_table_with_their_profiles(
    workspace: Workspace,
) -> None:
    data = prepare(workspace.inputs(users_table=workspace.users))
    assert by_query(data, "profiles") == {
        "u0": ["a", "b"], "u1": ["c"], "u2": ["d"], "visitor": [],
    }  # fmt: skip
    assert read_all_queries(data.queries).cold_U.tolist() == [False, False, False, True]
    assert read_all_queries(data.queries).trained_U.tolist() == [0, 1, -1, -1]
    assert data.takers_N.tolist() == [1, 1, 1, 1]
    assert data.read_report.dropped_missing_feature == 1


def test_users_whom_the_model_has_not_seen_are_cold_if_it_needs_user_rows(
    workspace: Workspace,
) -> None:
    data = prepare(workspace.inputs("bpr_mf"))
    assert read_all_queries(data.queries).query_ids.to_pylist() == ["u0", "u1", "u2"]
    assert read_all_queries(data.queries).cold_U.tolist() == [False, False, True]


def test_users_are_cold_if_the_model_knows_no_item_of_their_profile(workspace: Workspace) -> None:
    log = workspace.write("one", user_id=["u0", "u1"], item_id=["a", "d"], timestamp=[1, 1])
    data = prepare(workspace.inputs("bpr_mf", interactions_uri=log))
    assert chosen(data, data.unseen_N) == ["d"]
    assert read_all_queries(data.queries).cold_U.tolist() == [False, True]


def test_shard_has_queries_in_order_of_their_ids(workspace: Workspace) -> None:
    users = workspace.table("many", user_id=[f"user-{n:02}" for n in range(40)])
    data = prepare(workspace.inputs(users_table=users), shards=4)
    shards = [data.queries.read(shard).query_ids.to_pylist() for shard in range(4)]
    assert sum(map(len, shards)) == data.query_count == 43
    for ids in shards:
        assert ids == sorted(ids)
    assert by_query(data, "profiles")["u0"] == ["a", "b"]


def test_number_of_shards_is_chosen_if_none_is_given(workspace: Workspace) -> None:
    assert prepare(workspace.inputs(), shards=None).overview().shards == 8


def test_queries_of_item_to_item_are_items_with_themselves_as_profiles(
    workspace: Workspace,
) -> None:
    data = prepare(workspace.inputs(), kind="item_to_item")
    assert by_query(data, "profiles") == {item: [item] for item in ITEMS}
    assert not read_all_queries(data.queries).cold_U.any()
    assert not len(read_all_queries(data.queries).blocked.values)


def test_item_to_item_needs_no_interactions(workspace: Workspace) -> None:
    data = prepare(workspace.inputs(interactions_uri=None), kind="item_to_item")
    assert read_all_queries(data.queries).query_ids.to_pylist() == ITEMS
    assert not data.takers_N.any()


# Availability.


def test_new_items_are_available_only_to_a_model_that_supports_them(workspace: Workspace) -> None:
    bpr_mf = prepare(workspace.inputs("bpr_mf"))
    for name in ("visrank", "recent_popularity"):
        data = prepare(workspace.inputs(name))
        assert chosen(data, data.available_N) == ITEMS
        assert not data.unseen_N.any()
    assert chosen(bpr_mf, bpr_mf.available_N) == TRAINED_ITEMS


def test_unavailable_items_of_the_items_table_are_not_available(workspace: Workspace) -> None:
    items = workspace.table("items", item_id=["a", "c"], available=[False, True])
    data = prepare(workspace.inputs(items_table=items))
    assert chosen(data, data.available_N) == ["b", "c", "d"]


def test_blocked_and_disliked_items_are_blocked_for_their_user_alone(workspace: Workspace) -> None:
    log = workspace.write(
        "rated", user_id=["u0", "u0", "u1"], item_id=["a", "b", "c"], timestamp=[1, 2, 3],
        rating=[5.0, 1.0, 5.0],
    )  # fmt: skip
    blocked = workspace.write("blocked", item_id=["d", "c"], user_id=["u1", None])
    model = workspace.model("visrank", interactions=InteractionsProvenance(min_rating=4.0))
    data = prepare(
        workspace.inputs(
            model,
            interactions_uri=log,
            interactions=InteractionsConfig(min_rating=4.0),
            rules=RulesConfig(blocked=blocked),
        )
    )
    assert by_query(data, "profiles") == {"u0": ["a"], "u1": ["c"]}
    assert by_query(data, "blocked") == {"u0": ["b"], "u1": ["d"]}
    assert chosen(data, data.available_N) == ["a", "b", "d"]
    assert data.block_list_warning is None


class ManyUsers:
    """Interactions, a users table and a block list that name some users together and some alone.

    Rows lack a user, an item, a time or a rating, repeat others, or are with items that have no
    feature. The last interaction is one user's alone.
    """

    def __init__(self, workspace: Workspace, min_rating: float | None) -> None:
        rng, named = np.random.default_rng(0), [f"user-{n:02}" for n in range(60)]
        user_R = [*rng.choice(named[:40], 300), "latest"]
        item_R = [*rng.choice([*ITEMS, "gone"], 300), "b"]
        time_R = [*rng.integers(0, 40 * DAY, 300), 50 * DAY]
        rating_R = [*rng.integers(1, 6, 300), 5]
        holes = [np.append(rng.random(300) < 0.03, False) for _ in range(4)]
        columns = [
            [
                None if hole else value.item() if hasattr(value, "item") else value
                for value, hole in zip(values, holes_R, strict=True)
            ]
            for values, holes_R in zip((user_R, item_R, time_R, rating_R), holes, strict=True)
        ]
        log = workspace.write(
            "rated", user_id=columns[0], item_id=columns[1], timestamp=columns[2],
            rating=[None if rating is None else float(rating) for rating in columns[3]],
        )  # fmt: skip
        blocked = workspace.write(
            "blocked", item_id=[*"abcd", "a", "unknown"], user_id=[*named[35:39], "nobody", None]
        )
        interactions = InteractionsProvenance(min_rating=min_rating)
        self.inputs = workspace.inputs(
            workspace.model("bpr_mf", interactions=interactions),
            interactions=InteractionsConfig(min_rating=min_rating),
            interactions_uri=log,
            users_table=workspace.table("many", user_id=[*named[30:], "u0"]),
            rules=RulesConfig(blocked=blocked),
        )
        self.prepared = Store.at(str(workspace.folder))


@pytest.mark.parametrize(("partitions", "shards"), [(1, 8), (3, 3), (3, 8), (4, 2), (17, 8)])
@pytest.mark.parametrize(
    ("min_rating", "as_of"), [(None, None), (3.0, None), (None, "1970-01-20"), (3.0, "1970-01-20")]
)
def test_users_in_partitions_are_those_of_the_files(
    workspace: Workspace,
    partitions: int,
    shards: int,
    min_rating: float | None,
    as_of: str | None,
) -> None:
    """The sums over all users, and each shard's queries."""
    many = ManyUsers(workspace, min_rating)
    config = replace(many.inputs.interactions, as_of=as_of)
    inputs = replace(many.inputs, interactions=config)
    root = prepared_root(many.prepared, config, str(inputs.interactions_uri), partitions)
    expected = prepare(inputs, shards=shards)
    found = prepare(replace(inputs, prepared=root), shards=shards)
    assert found.query_count == expected.query_count > 50
    for shard in range(shards):
        assert_equal(found.queries.read(shard), expected.queries.read(shard))
    assert_equal(replace(found, queries=expected.queries), expected)
    assert "2 of the 6 rows" in str(found.block_list_warning)
    assert sum(read_all_queries(found.queries).blocked.lengths) >= 4
    # What a worker is given holds no user.
    assert b"user-01" in pickle.dumps(expected)
    assert b"user-01" not in pickle.dumps(found)


def test_users_in_partitions_are_summed_up_again_if_one_of_them_was_last(
    workspace: Workspace,
) -> None:
    """Without a cutoff, activity is that of the midnight after the last interaction of all."""
    many = ManyUsers(workspace, None)
    uri, config = str(many.inputs.interactions_uri), many.inputs.interactions
    root = prepared_root(many.prepared, config, uri, 17)
    users = open_users(many.inputs.user_tables, pa.array(ITEMS, TEXT), root)
    whole = open_users(many.inputs.user_tables, pa.array(ITEMS, TEXT), None)
    assert_equal(users.summarize().activity, whole.summarize().activity)
    assert users.summarize().activity.moment == 51 * DAY


@pytest.mark.parametrize("partitions", [0, 1, 4])
def test_row_of_the_future_is_not_the_moment_of_everybody(
    workspace: Workspace, partitions: int
) -> None:
    def scored(rows: list[tuple[str, str, int]]) -> ScoringData:
        columns = zip(("user_id", "item_id", "timestamp"), zip(*rows, strict=True), strict=True)
        uri = workspace.write("log", **{name: list(values) for name, values in columns})
        inputs = workspace.inputs(interactions_uri=uri)
        if partitions:
            folder = Store.at(str(workspace.folder)) / str(len(rows))
            root = prepared_root(folder, inputs.interactions, uri, partitions)
            inputs = replace(inputs, prepared=root)
        return prepare(inputs)

    right, wrong = scored(LOG), scored([*LOG, ("u1", "a", 4_000_000_000)])
    assert by_query(wrong, "profiles") == by_query(right, "profiles")
    np.testing.assert_array_equal(wrong.fallback_N, right.fallback_N)
    np.testing.assert_array_equal(wrong.fingerprint_N, right.fingerprint_N)
    assert right.fallback_N.max() >= 1  # somebody took it in the last week
    assert wrong.read_report.left_out["dated after today"] == 1


def test_fallback_scores_order_items_by_takers_in_the_last_week_then_ever() -> None:
    rng = np.random.default_rng(0)
    week_N = rng.choice([0, 1, 2, 1000, 1001, 250_000], 3000).astype(np.float32)
    takers_N = week_N + rng.choice([0, 1, 2, 5, 10_000, 1_000_000], 3000).astype(np.float32)
    score_N = fallback_scores(week_N, takers_N)
    rows = range(len(score_N))
    expected = sorted(rows, key=lambda row: (-week_N[row], -takers_N[row], row))
    assert np.argsort(-score_N, kind="stable").tolist() == expected
    assert len(np.unique(score_N)) == len({*zip(week_N, takers_N, strict=True)})
    np.testing.assert_array_equal(np.floor(score_N), week_N)
    assert are_fallback_scores(score_N, takers_N.astype(np.int64))
    assert not are_fallback_scores(score_N, takers_N[::-1].astype(np.int64))
    assert not are_fallback_scores(score_N + 2**-10, takers_N.astype(np.int64))
    assert len(fallback_scores(week_N[:0], takers_N[:0])) == 0


def test_block_list_of_unknown_items_gives_a_warning(workspace: Workspace) -> None:
    blocked = workspace.write("blocked", item_id=["x"])
    warning = prepare(workspace.inputs(rules=RulesConfig(blocked=blocked))).block_list_warning
    assert "1 of the 1 rows" in str(warning)


# Rules and fingerprints.


def test_rules_group_items_by_a_column_and_by_near_duplicates(workspace: Workspace) -> None:
    items = workspace.table("items", item_id=ITEMS, artist_id=["x", None, "x", "y"])
    rules = RulesConfig(cap=1, near_duplicate=0.99)
    data = prepare(workspace.inputs(items_table=items, rules=rules))
    assert data.rules is not None
    assert data.rules.group_N is not None
    assert data.rules.near_duplicate_N is not None
    a, b, c, d = data.rules.group_N.tolist()
    assert (a == c, b, a == d) == (True, -1, False)
    a, b, c, d = data.rules.near_duplicate_N.tolist()
    assert (a == b >= 0, c, d) == (True, -1, -1)


def test_no_rules_between_entries_without_cap_and_near_duplicates(workspace: Workspace) -> None:
    assert prepare(workspace.inputs()).rules is None


def test_fingerprint_changes_with_the_items_features_and_its_group_alone(
    workspace: Workspace,
) -> None:
    def fingerprints(artists: list[str | None]) -> npt.NDArray[np.uint64]:
        items = workspace.table("items", item_id=ITEMS, artist_id=artists)
        inputs = workspace.inputs(items_table=items, rules=RulesConfig(cap=1))
        return prepare(inputs).fingerprint_N

    before = fingerprints(["x", None, "x", "y"])
    after = fingerprints(["x", None, "z", "y"])
    assert (before == after).tolist() == [True, True, False, True]
    assert len(set(before.tolist())) == len(ITEMS)


# Refusals.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.inputs(rules=RulesConfig(cap=1)),
            r"--rules.cap 1 and no items table.*--items",
        ),
        (
            lambda w: w.inputs(
                w.model("visrank", interactions=InteractionsProvenance(min_rating=4.0))
            ),
            "min_rating",
        ),
        (
            lambda w: w.inputs(
                w.model("visrank", features_identity=replace(IDENTITY, weights_digest="x"))
            ),
            "--model, or --features",
        ),
        (
            lambda w: w.inputs(
                "bpr_mf",
                items_table=w.table("items", item_id=TRAINED_ITEMS, available=[False] * 3),
            ),
            "None of the 1 available items was there when bpr_mf was trained",
        ),
    ],
    ids=["cap without items table", "other min_rating", "other backbone", "only unseen items"],
)
def test_inputs_that_do_not_fit_are_refused(
    workspace: Workspace, change: Callable[[Workspace], ScoringInputs], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(change(workspace))


def test_item_to_item_is_refused_for_a_model_without_item_vectors(workspace: Workspace) -> None:
    with pytest.raises(InputError, match=r"The model random.*item_to_item.*--model"):
        prepare(workspace.inputs("random"), kind="item_to_item")


# The catalogue.


def test_catalogue_holds_all_items_with_features_and_their_rows_in_training(
    workspace: Workspace,
) -> None:
    artifact = load_artifact(workspace.model("visrank"))
    item_ids, catalogue = load_catalogue(artifact, workspace.features, None)
    assert item_ids.to_pylist() == ITEMS
    assert catalogue.trained_N.tolist() == [0, 1, 2, -1]
    assert catalogue.feature_ND.tolist() == np.array(list(FEATURES.values()), np.float16).tolist()


def test_trained_users_are_minus_one_for_unseen_users_and_for_models_without_user_rows(
    workspace: Workspace,
) -> None:
    artifact = load_artifact(workspace.model("visrank"))
    ids = pa.array(["u1", "nobody"])
    assert trained_users(artifact.user_ids, ids).tolist() == [1, -1]
    assert trained_users(None, ids).tolist() == [-1, -1]
