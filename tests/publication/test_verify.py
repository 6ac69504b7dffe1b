"""Counts of checks against plain loops over the rows, and files read back in any groups."""

from collections import Counter
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.recommend import with_queries
from tests.shop import SHARDS, K, Rows, Shop, fill_in_order, groups_of, may_follow, open_shop
from visrec.interactions.log import assign_shards
from visrec.jagged import Jagged
from visrec.publication.list_tables import Layout, lists_file, read_lists
from visrec.publication.run_spec import RunSpec
from visrec.publication.verify import Expected, ListChecks, count_faults
from visrec.recommend import readback
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.readback import (
    WrittenRun,
    count_items_without_feature,
    expected_shard,
    read_back_shards,
)
from visrec.retrieval.rules import Rules
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import RECOMMENDATIONS, RECOMMENDATIONS_LONG
from visrec.storage.store import Store

# ------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize("seed", range(5))
def test_counts_of_random_lists_equal_those_of_a_plain_loop(seed: int) -> None:
    """Lists of any length of any ids, some of them nobody's, against a loop over their rows."""
    rng = np.random.default_rng(seed)
    shop = open_shop(seed, users=30, items=25)
    data, queries, names = shop.data, shop.queries, [*shop.data.item_ids.to_pylist(), "?", "??"]
    users = [*queries.query_ids.to_pylist(), *[f"nobody{n}" for n in range(5)]]
    found: list[dict[str, Any]] = [
        {
            "user_id": str(rng.choice(users)),
            "items": [
                {
                    "item_id": str(rng.choice(names)),
                    "score": float(rng.choice([1, 2, 3, np.nan])),
                    "because_item_id": None if rng.random() < 0.5 else str(rng.choice(names)),
                }
                for _ in range(rng.integers(0, 12))
            ],
            "cold": bool(rng.random() < 0.3),
        }
        for _ in range(40)
    ]
    spec = RunSpec(Store("/nowhere"), 1, K, "nested", "user_to_item", {})
    checks = count_faults(
        pa.Table.from_pylist(found, RECOMMENDATIONS), expected_shard(data, queries, spec)
    )
    ids = data.item_ids.to_pylist()
    free = {i for i, yes in zip(ids, data.available_N, strict=True) if yes}
    mine = {
        user: {ids[row] for row in queries.profiles[u]}
        for u, user in enumerate(queries.query_ids.to_pylist())
    }
    known = [row for row in found if row["user_id"] in mine]
    entries = [(row["user_id"], e) for row in found for e in row["items"]]
    assert checks.rows == 40
    assert checks.queries == len({row["user_id"] for row in known})
    assert checks.extra_lists == 40 - checks.queries
    assert checks.entries == len(entries)
    assert checks.unknown == sum(e["item_id"] not in ids for _, e in entries)
    gone = [e for _, e in entries if e["item_id"] in ids and e["item_id"] not in free]
    assert checks.unavailable == len(gone)
    assert checks.excluded == sum(e["item_id"] in mine.get(u, ()) for u, e in entries)
    assert checks.not_finite == sum(np.isnan(e["score"]) for _, e in entries)
    reasons = [(u, e["because_item_id"]) for u, e in entries if e["because_item_id"] and u in mine]
    assert checks.wrong_reasons == sum(reason not in mine[u] for u, reason in reasons)
    assert checks.wrong_lengths == sum(
        len(row["items"]) != min(K, len(free - mine[row["user_id"]])) for row in known
    )
    in_lists = [[e["item_id"] for e in row["items"] if e["item_id"] in ids] for row in found]
    assert checks.with_duplicates == sum(len(set(one)) < len(one) for one in in_lists)
    rising = [
        any(
            b["score"] > a["score"]
            or (
                b["score"] == a["score"]
                and b["item_id"] < a["item_id"]
                and {a["item_id"], b["item_id"]} <= set(ids)
            )
            for a, b in zip(row["items"], row["items"][1:], strict=False)
        )
        for row in found
    ]
    assert checks.unsorted == sum(rising)
    cold = {u for u, items in mine.items() if not items}
    assert checks.wrong_fallback_flags == sum(
        row["cold"] != (row["user_id"] in cold) for row in known
    )
    assert checks.model_lists == sum(row["user_id"] not in cold for row in known)
    warm_entries = [e["item_id"] for u, e in entries if u in mine and u not in cold]
    assert checks.listed_N.tolist() == [warm_entries.count(item) for item in ids]


@pytest.mark.parametrize("layout", ["nested", "long"])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("cap", [None, 1, 2])
def test_counts_with_rules_equal_those_of_a_plain_loop(
    cap: int | None, alike: bool, layout: Layout
) -> None:
    """Lists that keep to the rules, some cut or with one entry more, and garbage of any length."""
    n, users, seen = 25, 30, Counter[str]()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        group_N = np.where(rng.random(n) < 0.1, -1, rng.integers(0, 4, n)) if cap else None
        pairs = [(a, b) for a, b in rng.integers(0, n, (14, 2)).tolist() if alike and a != b]
        rules = Rules(cap or 0, group_N, groups_of(pairs, n) if alike else None)
        owner_P, item_P = np.divmod(np.unique(rng.integers(0, users * n, 90)), n)
        shop = open_shop(seed, users=users, items=n)
        data = replace(shop.data, rules=rules)
        queries = replace(shop.queries, blocked=Jagged.from_row_ids(owner_P, item_P, users))
        closed = [
            {*queries.profiles[u].tolist(), *queries.blocked[u].tolist()} for u in range(users)
        ]
        open_N = data.available_N
        left = [set(np.flatnonzero(open_N).tolist()) - gone for gone in closed]
        found: list[tuple[int, list[int]]] = []
        for user in rng.integers(-3, users, 60).tolist():  # below 0 is nobody we know
            score_N = np.array([0.0 if row in left[user] else -np.inf for row in range(n)])
            fine = fill_in_order(rng.permutation(n), score_N, rules)
            mine = fine[fine >= 0].tolist()
            kind = rng.integers(0, 4)
            if kind == 0:
                mine = rng.integers(0, n + 1, rng.integers(0, 14)).tolist()  # n is not an item
            elif kind == 1:
                mine = mine[:-1]
            elif kind == 2:
                mine = [*mine, int(rng.integers(0, n))]
            # Two lists of a user in turn are one in the long layout, where an empty one has no row.
            if (mine or layout == "nested") and (not found or found[-1][0] != user):
                found.append((user, mine))
        table = as_table(found, layout, data.item_ids, queries.query_ids)
        spec = RunSpec(Store("/nowhere"), 1, K, layout, "user_to_item", {})
        checks = count_faults(table, expected_shard(data, queries, spec))

        against = wrong = 0
        for user, mine in found:
            listed = [row for row in mine if row < n]
            against += not all(may_follow(row, listed[:place], rules)
                               for place, row in enumerate(listed))  # fmt: skip
            if user >= 0:
                wanted = min(K, len(left[user]))
                more = [row for row in left[user] - set(listed) if may_follow(row, listed, rules)]
                right = len(mine) == wanted or (len(mine) < wanted and not more)
                wrong += not right
                seen["short and right"] += right and len(mine) < wanted
                seen["too short"] += not right and len(mine) < wanted
                seen["too long"] += len(mine) > wanted
        assert checks.against_rules == against
        assert checks.wrong_lengths == wrong
        assert checks.excluded == sum(
            row in closed[user] for user, mine in found if user >= 0 for row in mine
        )
        seen["against"] += against
    # What is looked for was there.
    assert min(seen["too short"], seen["too long"]) > 0
    assert (seen["against"] > 0) == (seen["short and right"] > 0) == (bool(cap) or alike)


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_item_that_is_both_taken_and_blocked_is_excluded_once(layout: Layout) -> None:
    """Where fewer than k candidates are left, so that one more or less of them counts."""
    shop = open_shop(2, users=60, items=14, layout=layout)
    assert (shop.row_UK < 0).any()
    assert not shop.checks().wrong_lengths
    shop.data = with_queries(shop.data, blocked=shop.queries.profiles)
    assert not shop.checks().wrong_lengths
    short = int(np.argmax((shop.row_UK < 0).any(axis=1)))
    shop.row_UK[short, (shop.row_UK[short] >= 0).sum() - 1] = -1
    shop.tables = shop.write()
    assert shop.checks().wrong_lengths == 1


def as_table(
    found: list[tuple[int, list[int]]], layout: Layout, item_ids: pa.Array, query_ids: pa.Array
) -> pa.Table:
    """Lists of rows as a table of either layout; rows beyond the last are ids that nobody knows."""
    items, users = [*item_ids.to_pylist(), "?"], [*query_ids.to_pylist(), "c", "b", "a"]
    rows = [
        (users[user], [{"item_id": items[row], "score": 1.0, "because_item_id": None}
                       for row in mine])
        for user, mine in found
    ]  # fmt: skip
    if layout == "nested":
        nested = [{"user_id": user, "items": entries, "cold": False} for user, entries in rows]
        return pa.Table.from_pylist(nested, RECOMMENDATIONS)
    flat = [
        {"user_id": user, "rank": place + 1, **entry}
        for user, entries in rows
        for place, entry in enumerate(entries)
    ]
    return pa.Table.from_pylist(flat, RECOMMENDATIONS_LONG)


def test_overlap_and_first_scores_equal_those_of_a_plain_loop() -> None:
    shop = open_shop(3, users=60)
    checks = shop.checks()

    def lists(tables: list[pa.Table]) -> dict[str, list[dict[str, Any]]]:
        every = [row for table in tables for row in table.to_pylist()]
        return {row["user_id"]: row["items"] for row in every if not row["cold"]}

    now, then = lists(shop.tables), lists(shop.before)
    assert checks.compared == len(now)
    assert checks.overlap == sum(
        len({e["item_id"] for e in now[u]} & {e["item_id"] for e in then[u]}) for u in now
    )
    assert checks.overlap_possible == K * len(now)
    first = np.array([[now[u][0]["score"], then[u][0]["score"]] for u in now], np.float64)
    found = [
        checks.score_sum,
        checks.last_score_sum,
        checks.score_squares,
        checks.last_score_squares,
    ]
    np.testing.assert_allclose(found, [*first.sum(axis=0), *(first**2).sum(axis=0)])


@settings(max_examples=30)
@given(st.data())
def test_counts_add_up_whatever_the_shards(data: st.DataObject) -> None:
    shop = open_shop(4, users=40, items=60)
    shop.edit(0, lambda r: r[0]["items"].pop())
    shop.edit(1, lambda r: r[0]["items"][0].update(item_id="?"))
    table, before = pa.concat_tables(shop.tables), pa.concat_tables(shop.before)
    then = read_lists(before, "user_to_item")
    names = shop.queries.query_ids.to_pylist()
    shards = data.draw(st.integers(1, 5))
    shards_of_users = st.lists(st.integers(0, shards - 1), min_size=40, max_size=40)
    shard_U = np.array(data.draw(shards_of_users))

    def checks_of(users: Rows) -> ListChecks:
        row_of = {row["user_id"]: row for row in table.to_pylist()}
        part = pa.Table.from_pylist([row_of[names[u]] for u in users], table.schema)
        expected = Expected(
            item_ids=shop.data.item_ids, available_N=shop.data.available_N,
            query_ids=shop.queries.query_ids.take(pa.array(users)),
            consumed=shop.queries.profiles.take(users), blocked=Jagged.empty(len(users)),
            cold_U=shop.queries.cold_U[users], k=K, layout="nested", kind="user_to_item",
        )  # fmt: skip
        return replace(count_faults(part, expected, then), files=1)

    parts = [checks_of(np.flatnonzero(shard_U == shard)) for shard in range(shards)]
    whole, summed = vars(checks_of(np.arange(40))), vars(reduce(add, parts))
    assert summed.pop("files") == shards
    for name, value in summed.items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12, err_msg=name)


# ------------------------------------------------------------------------------- files read back


def written(shop: Shop, run: Store, tables: list[pa.Table], shards: int = SHARDS) -> RunSpec:
    metadata = {"visrec.run_id": run.name, "visrec.inputs": "0123456789abcdef"}
    spec = RunSpec(run, shards, K, shop.layout, "user_to_item", metadata)
    for shard, table in enumerate(tables):
        shard_metadata = {**metadata, "visrec.shard": str(shard)}
        run.write(spec.part(shard), lists_file(table.replace_schema_metadata(shard_metadata)))
    return spec


def hashes(run: Store) -> dict[str, str]:
    return {entry.name: run.read_versioned(entry.name)[1] for entry in run.list()}


def test_files_read_back_in_any_groups_give_the_same_counts(tmp_path: Path) -> None:
    shop, run = open_shop(), Store(str(tmp_path / "now"))
    spec = written(shop, run, shop.tables)
    one = read_back_shards(shop.data, WrittenRun(spec, hashes(run)), range(SHARDS)).lists
    two = [
        read_back_shards(shop.data, WrittenRun(spec, hashes(run)), part).lists
        for part in ([0, 2], [1], [])
    ]
    assert one.files == SHARDS
    assert one.altered_files == 0
    shop.before = []
    for found in (reduce(add, two), shop.checks()):
        np.testing.assert_equal(vars(found), vars(one))


def test_file_that_changed_after_it_was_written_is_counted(tmp_path: Path) -> None:
    shop, run = open_shop(), Store(str(tmp_path / "now"))
    spec = written(shop, run, shop.tables)
    sha256 = hashes(run)
    run.write(spec.part(1), lists_file(shop.tables[1].slice(1)))
    checks = read_back_shards(shop.data, WrittenRun(spec, sha256), range(SHARDS)).lists
    assert checks.altered_files == 1
    stale = replace(spec, metadata={**spec.metadata, "visrec.run_id": "another"})
    assert (
        read_back_shards(
            shop.data, WrittenRun(stale, hashes(run)), range(SHARDS)
        ).lists.altered_files
        == SHARDS
    )


@pytest.mark.parametrize("layout", ["nested", "long"])
@pytest.mark.parametrize("shards", [1, SHARDS, 7])
def test_last_publication_is_compared_whatever_its_number_of_shards(
    tmp_path: Path, shards: int, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, run, old = open_shop(), Store(str(tmp_path / "now")), Store(str(tmp_path / "old"))
    spec = written(shop, run, shop.tables)
    expected = shop.checks()
    shop.row_UK, shop.score_UK = recover(shop)
    shop.layout = layout
    whole = pa.concat_tables(shop.write())
    shard_B = assign_shards(whole[0].combine_chunks(), shards)
    tables = [whole.filter(pa.array(shard_B == shard)) for shard in range(shards)]
    written(shop, old, tables, shards)
    last = PublishedRun(old, "inputs", hashes(old))
    found = read_back_shards(shop.data, WrittenRun(spec, hashes(run), last), range(SHARDS)).lists
    if layout == "nested":  # the long one does not tell who was cold
        assert (found.compared, found.overlap) == (expected.compared, expected.overlap)
    assert found.compared == expected.compared
    # To read all of another cut for each shard would take shards times as long.
    monkeypatch.setattr(readback, "_COMPARED_QUERIES", 1)
    first = read_back_shards(shop.data, WrittenRun(spec, hashes(run), last), [0]).lists
    sampled = read_back_shards(shop.data, WrittenRun(spec, hashes(run), last), range(SHARDS)).lists
    assert 0 < first.compared < expected.compared
    assert sampled.compared == (expected.compared if shards == SHARDS else first.compared)
    gone = replace(last, run=Store(str(tmp_path / "gone")))
    checks = read_back_shards(shop.data, WrittenRun(spec, hashes(run), gone), range(SHARDS)).lists
    assert (checks.compared, checks.damaged_last_files > 0) == (0, True)


def recover(shop: Shop) -> tuple[Rows, npt.NDArray[np.float32]]:
    """The lists of the last publication as arrays."""
    row_of = {item: row for row, item in enumerate(shop.data.item_ids.to_pylist())}
    every = [row for table in shop.before for row in table.to_pylist()]
    row_UK = np.array([[row_of[e["item_id"]] for e in row["items"]] for row in every])
    score_UK = np.array([[e["score"] for e in row["items"]] for row in every], np.float32)
    return row_UK, score_UK


def test_items_without_a_feature_are_counted(tmp_path: Path) -> None:
    known, uri = pa.array(["a", "b"]), str(tmp_path / "items.parquet")
    ids, available = ["a", "b", "c", "d", "e"], [True, False, None, True, False]
    pq.write_table(pa.table({"item_id": ids, "available": available}), uri)
    table = InputTable(uri=uri, key="items")
    assert count_items_without_feature(table, known) == (3, 2)
    pq.write_table(pa.table({"item_id": ids}), uri)
    assert count_items_without_feature(table, known) == (5, 3)
    assert count_items_without_feature(None, known) == (0, 0)
