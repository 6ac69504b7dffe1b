"""Lists as JSON and the difference of two tables, against plain Python."""

import json
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.exports.lists import Listed, Lists, as_table, seen
from tests.shop import through_a_file
from visrec.exports import batches
from visrec.exports.batches import ListBatch, all_batches, changed_batches, have_same_shards
from visrec.interactions.log import assign_shards
from visrec.publication.list_tables import Layout, read_lists
from visrec.publication.list_tables import Lists as ListArrays
from visrec.retrieval.similar import Kind

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Listed]:
    """Lists of a few users; some have none."""
    found = {}
    for user in draw(st.lists(IDS, max_size=5, unique=True)):
        items = draw(st.lists(IDS, max_size=3, unique=True))
        entries = tuple((item, draw(SCORES), draw(st.none() | IDS)) for item in items)
        found[user] = Listed(entries, cold=draw(st.booleans()))
    return found


def arrays(lists: Lists, layout: Layout = "nested", kind: Kind = "user_to_item") -> ListArrays:
    """The lists as an export reads them."""
    found = read_lists(through_a_file(as_table(lists, layout, kind)), kind)
    assert found is not None
    return found


def parsed(found: list[ListBatch]) -> dict[str, object]:
    """What batches say of each id: the entries and the flag, or None for a removed list."""
    every = list(chain.from_iterable(zip(b.ids, b.items, b.cold, strict=True) for b in found))
    assert len({id for id, _, _ in every}) == len(every)
    return {id: items and (json.loads(items), cold) for id, items, cold in every}


def plain(lists: Lists) -> dict[str, object]:
    entries = seen(lists)
    return {id: (entries[id], each.cold) for id, each in lists.items()}


@settings(max_examples=60)
@given(tables())
def test_all_batches_have_every_list_as_json(lists: Lists) -> None:
    assert parsed(list(all_batches(arrays(lists)))) == plain(lists)


@settings(max_examples=60)
@given(tables(), tables(), st.data())
def test_changed_batches_are_the_difference_of_two_tables(
    lists: dict[str, Listed], base: dict[str, Listed], data: st.DataObject
) -> None:
    for user in data.draw(
        st.lists(st.sampled_from(sorted(lists)), unique=True) if lists else st.just([])
    ):
        base[user] = lists[user]
    now, before = plain(lists), plain(base)
    expected = {id: value for id, value in now.items() if before.get(id) != value}
    expected |= dict.fromkeys(before.keys() - now.keys())
    assert parsed(list(changed_batches(arrays(lists), arrays(base)))) == expected


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_lists_of_both_layouts_and_kinds_have_the_same_entries(layout: Layout) -> None:
    lists = {"u1": Listed((("a", 0.5, "b"), ("b", 0.25, None))), "u2": Listed((("c", 1.0, None),))}
    for kind in ("user_to_item", "item_to_item"):
        found = parsed(list(all_batches(arrays(lists, layout, kind))))
        has_flags = (kind, layout) == ("user_to_item", "nested")
        flag = False if has_flags else None
        assert found == {id: (entries, flag) for id, entries in seen(lists, kind).items()}


def test_change_of_the_fallback_flag_alone_is_a_change() -> None:
    items = (("a", 0.5, None),)
    before = {"u1": Listed(items), "u2": Listed(items)}
    now = {"u1": Listed(items, cold=True), "u2": Listed(items)}
    assert list(parsed(list(changed_batches(arrays(now), arrays(before))))) == ["u1"]


def test_batches_are_small_also_where_lists_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_BATCH_ENTRIES", 4)
    lists = {f"u{n}": Listed((("a", 0.5, None),) * (n % 3 > 0)) for n in range(20)}
    found = list(all_batches(arrays(lists)))
    assert max(map(len, found)) <= 4
    assert parsed(found) == plain(lists)
    gone = list(changed_batches(arrays({}), arrays(lists)))
    assert max(map(len, gone)) <= 4
    assert [sum(batch.removed for batch in gone), sum(map(len, gone))] == [20, 20]


def test_scores_that_json_does_not_have_are_null() -> None:
    lists = {"u1": Listed((("a", np.nan, None), ("b", np.inf, None), ("c", 1e-30, None)))}
    found = parsed(list(all_batches(arrays(lists))))["u1"]
    assert isinstance(found, tuple)
    assert [entry["score"] for entry in found[0]] == [None, None, 1e-30]


def test_list_that_moved_to_another_shard_is_noticed() -> None:
    ids = [f"u{n}" for n in range(50)]
    shard_of = assign_shards(pa.array(ids), 2).tolist()
    zero = {id: Listed(()) for id, shard in zip(ids, shard_of, strict=True) if shard == 0}
    one = {id: Listed(()) for id, shard in zip(ids, shard_of, strict=True) if shard == 1}
    kept = dict(list(zero.items())[:3])
    assert have_same_shards(arrays(kept), arrays(zero), 0, 2)
    assert not have_same_shards(arrays(kept), arrays({**zero, **dict([one.popitem()])}), 0, 2)
