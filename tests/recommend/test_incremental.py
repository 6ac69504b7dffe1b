"""Lists that are carried over are, to the last bit, those of a night that scores every user."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory import peak_memory
from tests.recommend.changing_shop import (
    SHARDS,
    ChangingShop,
    RuleChoice,
    published_run,
    quiet_timer,
    write_run,
)
from visrec.publication.list_tables import Layout
from visrec.publication.run_spec import RunSpec
from visrec.recommend import fingerprint_files, writer
from visrec.recommend.fingerprint_files import library_versions
from visrec.recommend.lists import ShardRecommender
from visrec.recommend.published_run import PublishedRun
from visrec.storage.store import Store


def write_and_read(
    shop: ChangingShop,
    run: Store,
    last: PublishedRun | None = None,
    *,
    layout: Layout = "nested",
    rules: RuleChoice = (None, False),
) -> tuple[list[pa.Table], int]:
    """The tables of a night, and how many of its lists were carried over."""
    written = write_run(shop, run, last, layout=layout, rules=rules)
    tables = [run.read_table(shard.name) for shard in written]
    return tables, sum(shard.carried for shard in written)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(None, False), (1, False), (2, False), (None, True), (2, True)]),
    st.sampled_from(["nested", "long"]),
)
@settings(max_examples=25)
def test_incremental_nights_equal_nights_that_score_everybody(
    tmp_path_factory: pytest.TempPathFactory, seed: int, rules: RuleChoice, layout: Layout
) -> None:
    """Four nights, each from the run before, beside the same nights scored without one."""
    root = Store(str(tmp_path_factory.mktemp("nights")))
    shop, last = ChangingShop(seed), None
    for night in range(4):
        run = root / f"incremental-{night}"
        tables, _ = write_and_read(shop, run, last, layout=layout, rules=rules)
        expected, carried = write_and_read(shop, root / f"full-{night}", layout=layout, rules=rules)
        assert carried == 0
        for table, other in zip(tables, expected, strict=True):
            assert table.to_pylist() == other.to_pylist()
        last = published_run(run, run.name)
        shop.pass_a_day()


def count_carried(tmp_path: Path, change: Callable[[ChangingShop], object]) -> tuple[int, int]:
    """How many lists could be carried over before a change, and how many are after it."""
    shop = ChangingShop(1)
    first, second = Store(str(tmp_path / "a")), Store(str(tmp_path / "b"))
    write_run(shop, first)
    warm = shop.warm_users()
    change(shop)
    return warm, write_and_read(shop, second, published_run(first, "a"))[1]


def test_all_lists_of_warm_users_are_carried_over_if_nothing_changes(tmp_path: Path) -> None:
    warm, carried = count_carried(tmp_path, lambda _: None)
    assert carried == warm > 50


def test_all_lists_are_carried_over_if_few_items_are_new(tmp_path: Path) -> None:
    warm, carried = count_carried(tmp_path, lambda shop: shop.add_items(10))
    assert carried == warm


def test_user_with_a_new_interaction_is_scored_again(tmp_path: Path) -> None:
    def take(shop: ChangingShop) -> None:
        user = next(user for user, taken in sorted(shop.users.items()) if taken)
        shop.users[user].append(next(i for i in sorted(shop.items) if i not in shop.users[user]))

    warm, carried = count_carried(tmp_path, take)
    assert carried == warm - 1


def test_lists_with_an_item_that_becomes_unavailable_are_scored_again(tmp_path: Path) -> None:
    tables, _ = write_and_read(ChangingShop(1), Store(str(tmp_path / "x")))
    rows = [row for table in tables for row in table.to_pylist() if not row["cold"]]
    item = rows[0]["items"][0]["item_id"]
    affected = sum(item in [entry["item_id"] for entry in row["items"]] for row in rows)

    def withdraw(shop: ChangingShop) -> None:
        shop.items[item]["available"] = False

    warm, carried = count_carried(tmp_path, withdraw)
    assert carried == warm - affected < warm


def carried_from(tmp_path: Path, last: PublishedRun) -> int:
    run = Store(str(tmp_path / f"next-{len(list(tmp_path.iterdir()))}"))
    return write_and_read(ChangingShop(1), run, last)[1]


def test_fingerprints_are_used_only_with_their_own_inputs_and_versions(tmp_path: Path) -> None:
    first = Store(str(tmp_path / "a"))
    write_run(ChangingShop(1), first)
    other_versions = {**library_versions(), "visrec.torch": "0"}
    assert carried_from(tmp_path, published_run(first, "a")) > 0
    assert carried_from(tmp_path, published_run(first, "other inputs")) == 0
    assert carried_from(tmp_path, published_run(first, "a", other_versions)) == 0


@pytest.mark.parametrize("lost", ["_fingerprints/", "_fingerprints/items"])
def test_lists_are_not_carried_over_if_an_upgrade_came_between_two_starts_of_their_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """The second start keeps the lists, and makes fingerprints again under the new versions."""
    shop, first = ChangingShop(1), Store(str(tmp_path / "a"))
    new_versions = library_versions()
    old_versions = {**new_versions, "visrec.torch": "0"}
    for module in (fingerprint_files, writer):
        monkeypatch.setattr(module, "library_versions", lambda: old_versions)
    write_run(shop, first)
    monkeypatch.undo()
    first.delete([entry.name for entry in first.list(lost)])
    assert all(shard.kept for shard in write_run(shop, first))
    assert carried_from(tmp_path, published_run(first, "a", new_versions)) == 0


def test_nothing_is_carried_over_without_item_fingerprints(tmp_path: Path) -> None:
    first = Store(str(tmp_path / "a"))
    write_run(ChangingShop(1), first)
    first.delete([entry.name for entry in first.list("_fingerprints/items")])
    assert carried_from(tmp_path, published_run(first, "a")) == 0


def test_file_that_changed_since_it_was_published_is_not_used(tmp_path: Path) -> None:
    shop, first = ChangingShop(1), Store(str(tmp_path / "a"))
    write_run(shop, first)
    last = published_run(first, "a")
    part = last.parts[0]
    lists = len(first.read_table(part))
    first.write_table(part, first.read_table(part).replace_schema_metadata({"by": "another"}))
    warm, carried = shop.warm_users(), carried_from(tmp_path, last)
    assert warm - lists <= carried < warm


def test_shard_without_a_single_list_is_scored_again(tmp_path: Path) -> None:
    """In the long layout, a user without any eligible item has no row."""
    shop, first = ChangingShop(1), Store(str(tmp_path / "a"))
    users, items = dict(shop.users), dict(shop.items)
    shop.users = {user: sorted(items) for user in users}
    tables, _ = write_and_read(shop, first, layout="long")
    assert sum(len(table) for table in tables) == 0
    shop.users = users
    second = Store(str(tmp_path / "b"))
    tables, carried = write_and_read(shop, second, published_run(first, "a"), layout="long")
    assert carried == 0
    assert sum(len(table) for table in tables) > 0


def test_nothing_is_carried_over_if_too_many_items_are_new(tmp_path: Path) -> None:
    assert count_carried(tmp_path, lambda shop: shop.add_items(60))[1] == 0


def test_lists_take_no_more_memory_if_k_is_larger_than_the_catalogue() -> None:
    shop = ChangingShop(6, users=4)
    spec = RunSpec(Store("/nowhere"), SHARDS, 2_000_000, "nested", "user_to_item", {})
    data = shop.data((None, False))
    recommend = ShardRecommender(data, shop.scorer(), spec, None, quiet_timer())
    with peak_memory() as peak:
        tables = [recommend(shard, data.queries.read(shard))[0] for shard in range(SHARDS)]
    assert peak.grown < 2**25
    assert sum(table.num_rows for table in tables) == len(shop.users)
