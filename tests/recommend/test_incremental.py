"""Lists carried over from night to night are to the last bit those of a night that scores all."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import peak_memory
from tests.shop import groups_of
from visrec.interactions.log import shard_of
from visrec.jagged import Jagged, offsets_of
from visrec.models.pooling import pool
from visrec.models.scorers import DotScorer
from visrec.progress import Timer
from visrec.publication.claims import CLAIM, claim
from visrec.publication.list_tables import Layout
from visrec.publication.run_spec import RunSpec
from visrec.recommend.fingerprints import item_fingerprints, query_fingerprints
from visrec.recommend.incremental import Last, write_item_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.recommend.lists import ShardLists
from visrec.recommend.writer import ShardWriter
from visrec.retrieval.rules import Rules
from visrec.storage.store import Store

K, SHARDS, D = 6, 2, 5


class Shop:
    """A shop from one night to the next: items with vectors and makers, users with what they took.

    Vectors are of small whole numbers, so that many scores are equal.
    """

    def __init__(self, seed: int, items: int = 90, users: int = 70) -> None:
        self.rng = np.random.default_rng(seed)
        self.items: dict[str, Any] = {}
        self.users: dict[str, list[str]] = {}
        self.blocked: dict[str, list[str]] = {}
        self.add_items(items)
        for _ in range(users):
            self.add_user()

    def add_items(self, count: int) -> None:
        for _ in range(count):
            # Ids anywhere among the others, so that rows move.
            self.items[f"i{self.rng.integers(10**6):06}"] = {
                "vector": self.rng.integers(-2, 3, D).astype(np.float32),
                "maker": int(self.rng.integers(-1, 12)),
                "open": bool(self.rng.random() < 0.9),
            }

    def add_user(self) -> None:
        some = self.rng.choice(list(self.items), self.rng.integers(0, 6), replace=False)
        self.users[f"u{self.rng.integers(10**6):06}"] = some.tolist()

    def pick(self, of: Any) -> Any:
        return sorted(of)[self.rng.integers(len(of))]

    def pass_a_day(self) -> None:
        """Some of all that may happen."""
        for change in self.rng.choice(7, self.rng.integers(0, 5), replace=False):
            item = self.items[self.pick(self.items)]
            if change == 0:
                self.add_items(int(self.rng.integers(1, 9)))
            elif change == 1:
                del self.items[self.pick(self.items)]
            elif change == 2:
                item["vector"] = self.rng.integers(-2, 3, D).astype(np.float32)
            elif change == 3:
                item["open"] = not item["open"]
            elif change == 4:
                self.users[self.pick(self.users)].append(self.pick(self.items))
            elif change == 5:
                self.blocked.setdefault(self.pick(self.users), []).append(self.pick(self.items))
            else:
                item["maker"] = int(self.rng.integers(-1, 12))
                self.add_user()

    def data(self, rules: tuple[int | None, bool]) -> ScoringData:
        ids = sorted(self.items)
        place = {name: row for row, name in enumerate(ids)}
        names = sorted(self.users)
        shard_U = shard_of(pa.array(names), SHARDS)
        order = np.argsort(shard_U, kind="stable")
        owners = [names[u] for u in order]

        def lists(of: dict[str, list[str]], ordered: bool) -> Jagged:
            rows = [list(dict.fromkeys(place[i] for i in of.get(u, []) if i in place))
                    for u in owners]  # fmt: skip
            rows = rows if ordered else [sorted(one) for one in rows]
            flat = np.array([row for one in rows for row in one], np.int64)
            return Jagged(flat, offsets_of(np.array([len(one) for one in rows])))

        profiles = lists(self.users, ordered=True)
        vector_Nd = np.stack([self.items[i]["vector"] for i in ids])
        maker_N = np.array([self.items[i]["maker"] for i in ids])
        cap, alike = rules
        # Near-duplicates are all that chains of vectors a step apart in one number connect.
        apart_NN = np.abs(vector_Nd[:, None] - vector_Nd[None]).sum(axis=2)
        near_NN = (apart_NN <= 1) & (vector_Nd[:, 0] == 2)[:, None] & (vector_Nd[:, 0] == 2)[None]
        same_N = groups_of(np.argwhere(near_NN | (apart_NN == 0)).tolist(), len(ids))
        names_N = pa.array(ids).take(pa.array(same_N, mask=same_N < 0))
        text = pa.array([None if m < 0 else str(m) for m in maker_N.tolist()], pa.string())
        return ScoringData(
            item_ids=pa.array(ids),
            available_N=np.array([self.items[i]["open"] for i in ids]),
            query_ids=pa.array(owners),
            shard_offsets=offsets_of(np.bincount(shard_U, minlength=SHARDS)),
            profiles=profiles,
            blocked=lists(self.blocked, ordered=False),
            unseen_N=np.zeros(len(ids), bool),
            trained_U=np.full(len(owners), -1),
            count_N=np.bincount(profiles.values, minlength=len(ids)).astype(np.float32),
            cold_U=profiles.lengths == 0,
            artist_N=None,
            without_item=0,
            fingerprint_N=item_fingerprints([pa.array(ids), text, *[names_N] * alike], [vector_Nd]),
            rules=Rules(cap or 0, maker_N if cap else None, same_N if alike else None)
            if cap or alike
            else None,
        )

    def scorer(self) -> DotScorer:
        table_Nd = torch.from_numpy(np.stack([self.items[i]["vector"] for i in sorted(self.items)]))
        return DotScorer(table_Nd, lambda bags, _: pool(table_Nd, bags, "mean"), table_Nd)


def a_night(
    shop: Shop, run: Store, layout: Layout, rules: tuple[int | None, bool], last: Last | None
) -> tuple[list[pa.Table], int]:
    """The tables of a night, left in its run with its marks; and how many lists were carried."""
    facts = write_night(shop, run, layout, rules, last)
    tables = [run.read_table(shard["name"]) for shard in facts]
    return tables, sum(shard["carried"] for shard in facts)


def write_night(
    shop: Shop,
    run: Store,
    layout: Layout,
    rules: tuple[int | None, bool],
    last: Last | None,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """What a night's shards are, once they are in its run with their marks."""
    data = shop.data(rules)
    target = RunSpec(run, SHARDS, K, layout, "user_to_item", {"visrec.inputs": run.name})
    timer = _timer(say)
    claim(run, target.inputs)
    write_item_fingerprints(data, target)
    lists = ShardLists(data, shop.scorer(), target, last, timer)
    write = ShardWriter(data, target, lists, timer)
    return [write(shard) for shard in range(SHARDS)]


def _timer(say: Callable[[str], None] = lambda _: None) -> Timer:
    remote = lambda call: SimpleNamespace(remote=call)  # noqa: E731
    return Timer(SimpleNamespace(add=remote(lambda _: None), say_once=remote(say)))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(None, False), (1, False), (2, False), (None, True), (2, True)]),
    st.sampled_from(["nested", "long"]),
)
@settings(max_examples=25, deadline=None)
def test_nights_carried_over_are_nights_scored_whole(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    rules: tuple[int | None, bool],
    layout: Layout,
) -> None:
    """Three days, each from the run before, beside the same days from nothing."""
    root = Store(str(tmp_path_factory.mktemp("nights")))
    shop, last = Shop(seed), None
    for night in range(4):
        run = root / f"carried-{night}"
        tables, _ = a_night(shop, run, layout, rules, last)
        whole, none = a_night(shop, root / f"whole-{night}", layout, rules, None)
        assert none == 0
        for mine, theirs in zip(tables, whole, strict=True):
            assert mine.to_pylist() == theirs.to_pylist()
        last = published(run, run.name)
        shop.pass_a_day()


def published(run: Store, inputs: str) -> Last:
    files = [entry.name for entry in run.list() if entry.name != CLAIM]
    return Last(run, inputs, {name: hashlib.sha256(run.read(name)).hexdigest() for name in files})


def lists_carried(tmp_path: Path, change: Any, rules: Any = (None, False)) -> tuple[int, int]:
    """Lists that could be carried over, and those that were, after a change."""
    shop = Shop(1)
    first, second = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    a_night(shop, first, "nested", rules, None)
    warm = sum(bool(taken) for taken in shop.users.values())
    change(shop)
    return warm, a_night(shop, second, "nested", rules, published(first, "a"))[1]


def test_where_nothing_changes_all_but_cold_users_are_carried(tmp_path: Path) -> None:
    warm, carried = lists_carried(tmp_path, lambda _: None)
    assert carried == warm > 50


def test_new_items_cost_no_list(tmp_path: Path) -> None:
    warm, carried = lists_carried(tmp_path, lambda shop: shop.add_items(10))
    assert carried == warm


def test_a_user_who_took_something_is_scored_again(tmp_path: Path) -> None:
    def take(shop: Shop) -> None:
        user = next(user for user, taken in sorted(shop.users.items()) if taken)
        shop.users[user].append(next(i for i in sorted(shop.items) if i not in shop.users[user]))

    warm, carried = lists_carried(tmp_path, take)
    assert carried == warm - 1


def test_an_item_that_is_closed_costs_the_lists_that_had_it(tmp_path: Path) -> None:
    shop = Shop(1)
    tables, _ = a_night(shop, Store(str(tmp_path / "x")), "nested", (None, False), None)
    rows = [row for table in tables for row in table.to_pylist() if not row["cold"]]
    item = rows[0]["items"][0]["item_id"]
    having = sum(item in [entry["item_id"] for entry in row["items"]] for row in rows)

    def close(shop: Shop) -> None:
        shop.items[item]["open"] = False

    warm, carried = lists_carried(tmp_path, close)
    assert carried == warm - having < warm


def test_marks_of_other_inputs_or_versions_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, first = Shop(1), Store(str(tmp_path / "a"))
    a_night(shop, first, "nested", (None, False), None)

    def again(inputs: str) -> int:
        last = published(first, inputs)
        second = Store(str(tmp_path / f"b-{len(list(tmp_path.iterdir()))}"))
        return a_night(shop, second, "nested", (None, False), last)[1]

    assert again("other inputs") == 0
    monkeypatch.setattr("visrec.recommend.incremental._versions", lambda: {"visrec.torch": "0"})
    assert again("a") == 0
    monkeypatch.undo()
    assert again("a") > 0
    first.delete([entry.name for entry in first.list("_marks/items")])
    assert again("a") == 0


def test_a_file_that_was_changed_since_it_was_published_is_not_used(tmp_path: Path) -> None:
    shop, first = Shop(1), Store(str(tmp_path / "a"))
    a_night(shop, first, "nested", (None, False), None)
    last = published(first, "a")
    part = last.part(0)
    kept = len(first.read_table(part))
    first.write_table(part, first.read_table(part).replace_schema_metadata({"by": "another"}))
    second = Store(str(tmp_path / "b"))
    carried = a_night(shop, second, "nested", (None, False), last)[1]
    warm = sum(bool(taken) for taken in shop.users.values())
    assert warm - kept <= carried < warm


def test_a_shard_that_had_no_list_at_all_is_scored(tmp_path: Path) -> None:
    """In the long layout who has no candidate has no row."""
    shop, first = Shop(1), Store(str(tmp_path / "a"))
    owners, items = dict(shop.users), dict(shop.items)
    shop.users = {user: sorted(items) for user in owners}
    tables, _ = a_night(shop, first, "long", (None, False), None)
    assert sum(len(table) for table in tables) == 0
    shop.users = owners
    second = Store(str(tmp_path / "b"))
    tables, carried = a_night(shop, second, "long", (None, False), published(first, "a"))
    assert carried == 0
    assert sum(len(table) for table in tables) > 0


def test_too_many_new_items_are_a_night_like_the_first(tmp_path: Path) -> None:
    assert lists_carried(tmp_path, lambda shop: shop.add_items(60))[1] == 0


def test_marks_change_with_all_that_they_are_of() -> None:
    ids, numbers = pa.array(["a", "b"]), np.arange(4.0).reshape(2, 2)
    marks = item_fingerprints([ids], [numbers])
    assert len(set(marks.tolist())) == 2
    assert (item_fingerprints([ids], [numbers]) == marks).all()
    assert (item_fingerprints([pa.array(["a", "c"])], [numbers]) == marks).tolist() == [True, False]
    assert (item_fingerprints([ids], [numbers + np.array([[0], [1]])]) == marks).tolist() == [
        True,
        False,
    ]
    assert (item_fingerprints([ids, ids], [numbers]) != marks).all()
    # What is empty is not what is not there, and no text runs into the next.
    texts = [pa.array([None, "ab"]), pa.array(["", "c"])]
    others = [pa.array(["", "a"]), pa.array([None, "bc"], pa.string())]
    assert (item_fingerprints(texts, []) != item_fingerprints(others, [])).all()

    def of(*lists: list[int]) -> int:
        whole = [Jagged(np.array(one, np.int64), np.array([0, len(one)])) for one in lists]
        return int(query_fingerprints(marks, np.zeros((1, 1), bool), *whole)[0])

    assert len({of([0, 1], []), of([1, 0], []), of([0], [1]), of([], [0, 1]), of([], [])}) == 5
    flags = (np.zeros((1, 1), bool), np.ones((1, 1), bool))
    one = Jagged(np.array([0]), np.array([0, 1]))
    assert len({int(query_fingerprints(marks, flag, one)[0]) for flag in flags}) == 2


def test_lists_that_are_longer_than_the_catalogue_cost_no_memory() -> None:
    shop = Shop(6, users=4)
    target = RunSpec(Store("/nowhere"), SHARDS, 2_000_000, "nested", "user_to_item", {})
    lists = ShardLists(shop.data((None, False)), shop.scorer(), target, None, _timer())
    with peak_memory() as peak:
        tables = [lists(shard)[0] for shard in range(SHARDS)]
    assert peak.grown < 2**25
    assert sum(table.num_rows for table in tables) == len(shop.users)
