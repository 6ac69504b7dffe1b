"""Exports to real servers, as shops read them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.exports.lists import Listed, Lists, made_lists, publish, seen
from tests.exports.memory_store import Killed
from tests.exports.readers import PostgresShop, Reader, RedisShop, open_shop
from tests.stores import Server
from visrec.errors import ConflictError, InputError, StorageError
from visrec.exports import batches, generations
from visrec.exports.batches import ListBatch
from visrec.exports.dynamodb_store import DynamoStore
from visrec.exports.generations import ExportReport
from visrec.exports.published import export_published
from visrec.exports.targets import parse_target
from visrec.publication.rollback import roll_back
from visrec.storage.store import Store

ODD = {
    'Ä "quoted", {braced}\\': Listed((('i"1', 0.5, "ü"), ("i\\2", 0.25, None))),
    "no items": Listed((), cold=True),
    "visrec:recommendations": Listed((("a", 1e-9, None),)),
}
RUNS: dict[str, Lists] = {f"r{n}": {**made_lists(9, n, changed=0.6), **ODD} for n in range(1, 4)}


@pytest.fixture
def lists(tmp_path: Path) -> Store:
    """Where the first run is published."""
    found = Store.at(str(tmp_path / "recommendations"))
    publish(found, "r1", RUNS["r1"])
    return found


def export(lists: Store, shop: Reader, *, only_changed: bool = True) -> ExportReport:
    """Exports what is published."""
    leases = Store.at(f"{lists.root}/../exports")
    return export_published(parse_target(shop.url), lists, leases, only_changed=only_changed)


def holds(shop: Reader, run_id: str, runs: dict[str, Lists] = RUNS) -> bool:
    """Whether the store has this run and nothing else."""
    run = runs[run_id]
    return (shop.read_all(), shop.run_id(), shop.entries()) == (seen(run), run_id, len(run))


def test_shop_reads_the_published_run(lists: Store, shop: Reader) -> None:
    assert shop.read_all() == {}
    assert export(lists, shop) == ExportReport(run_id="r1", written=12)
    assert holds(shop, "r1")
    for user, items in seen(RUNS["r1"]).items():
        assert shop.read(user) == items
    assert shop.read("nobody") is None
    assert export(lists, shop) == ExportReport(run_id="r1")

    # Six lists of the next run are others, one of them of a new user, and one user is gone.
    publish(lists, "r2", RUNS["r2"])
    expected = ExportReport(run_id="r2", written=6, unchanged=6, removed=1, old_entries=7)
    assert export(lists, shop) == expected
    assert holds(shop, "r2")
    roll_back(lists)
    assert export(lists, shop, only_changed=False).written == 12
    assert holds(shop, "r1")


@contextmanager
def killed_after(entries: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An export ends after so many batches of one list, as if it was killed."""
    left = entries

    def some(found: Iterator[ListBatch]) -> Iterator[ListBatch]:
        nonlocal left
        for batch in found:
            if not left:
                raise Killed
            left -= 1
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(batches, "_BATCH_ENTRIES", 1)
        patch.setattr(generations, "_prefetch", some)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("shop", ["postgresql", "redis", "dynamodb"], indirect=True)
def test_export_that_is_killed_while_it_writes_shows_nothing_and_goes_on(
    lists: Store, shop: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(lists, shop)
    publish(lists, "r2", RUNS["r2"])
    for entries in (0, 1, 3):
        with killed_after(entries, monkeypatch):
            export(lists, shop)
        assert shop.read_all() == seen(RUNS["r1"])
    export(lists, shop)
    assert holds(shop, "r2")
    # Killed, and then another run is exported.
    publish(lists, "r3", RUNS["r3"])
    with killed_after(4, monkeypatch):
        export(lists, shop, only_changed=False)
    roll_back(lists)
    export(lists, shop)
    assert holds(shop, "r2")


@pytest.mark.parametrize(
    ("shop", "id"), [("postgresql", "a\0b"), ("dynamodb", "x" * 2100)], indirect=["shop"]
)
def test_run_with_an_id_that_the_store_cannot_have_is_refused_and_the_next_one_is_exported(
    lists: Store, shop: Reader, id: str
) -> None:
    export(lists, shop)
    publish(lists, "odd", {**RUNS["r2"], id: Listed((("a", 0.5, None),))})
    with pytest.raises(InputError, match="expected"):
        export(lists, shop)
    assert shop.read_all() == seen(RUNS["r1"])
    publish(lists, "r2", RUNS["r2"])
    export(lists, shop)
    assert holds(shop, "r2")


@pytest.mark.parametrize("shop", ["postgresql", "redis", "dynamodb"], indirect=True)
def test_process_that_was_taken_over_cannot_switch(
    lists: Store, shop: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(lists, shop)
    publish(lists, "r2", RUNS["r2"])
    target, real, taken = parse_target(shop.url), generations._prefetch, []

    def suspended(found: Iterator[ListBatch]) -> Iterator[ListBatch]:
        yield from real(found)
        if not taken:
            taken.append(True)
            publish(lists, "r3", RUNS["r3"])
            # Another workspace's lease does not help.
            export_published(target, lists, lists / "elsewhere", only_changed=True)

    monkeypatch.setattr(generations, "_prefetch", suspended)
    with pytest.raises(ConflictError, match="Another process exports to"):
        export(lists, shop)
    assert shop.read_all() == seen(RUNS["r3"])
    export(lists, shop)
    export(lists, shop, only_changed=False)
    assert holds(shop, "r3")


@pytest.mark.parametrize("kind", ["postgresql", "redis", "dynamodb"])
def test_similar_items_lie_beside_the_lists_of_users(
    kind: str,
    start_store: Callable[[str], Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = start_store(kind)
    users = open_shop(kind, server)
    for name, value in users.env.items():
        monkeypatch.setenv(name, value)
    similar, items = Store.at(str(tmp_path / "similar_items")), made_lists(5)
    publish(similar, "r1", items, kind="item_to_item")
    lists = Store.at(str(tmp_path / "recommendations"))
    publish(lists, "r1", RUNS["r1"])
    export(similar, users)
    export(lists, users)
    assert holds(users, "r1")
    users.name = "similar_items"
    assert users.read_all() == seen(items, "item_to_item")


# ---------------------------------------------------------------------------------- each store


def test_transaction_that_began_before_the_switch_sees_one_whole_run(
    lists: Store, start_store: Callable[[str], Server]
) -> None:
    shop = open_shop("postgresql", start_store("postgresql"))
    assert isinstance(shop, PostgresShop)
    export(lists, shop)
    with shop.snapshot() as read_all:
        for run_id in ("r2", "r3"):
            publish(lists, run_id, RUNS[run_id])
            export(lists, shop, only_changed=run_id == "r2")
            assert read_all() == seen(RUNS["r1"])
    assert holds(shop, "r3")


def test_password_may_come_from_the_environment(
    lists: Store, start_store: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, variable in (("postgresql", "PGPASSWORD"), ("redis", "REDISCLI_AUTH")):
        server = start_store(kind)
        target = parse_target(server.url)
        leases = lists / kind
        with pytest.raises(StorageError, match="Could not export to"):
            export_published(target, lists, leases, only_changed=True)
        monkeypatch.setenv(variable, server.password)
        export_published(target, lists, leases, only_changed=True)
        monkeypatch.setenv(variable, "another")
        with pytest.raises(StorageError) as caught:
            export_published(target, lists, leases, only_changed=True)
        assert server.password not in str(caught.value)


def test_keys_of_other_programs_in_redis_stay(
    lists: Store, start_store: Callable[[str], Server]
) -> None:
    shop = open_shop("redis", start_store("redis"))
    assert isinstance(shop, RedisShop)
    shop.client.set("visrec:recommended", "mine")
    shop.client.set("session:u1", "mine")
    export(lists, shop, only_changed=False)
    export(lists, shop, only_changed=False)
    assert shop.client.mget("visrec:recommended", "session:u1") == ["mine", "mine"]
    assert holds(shop, "r1")


def test_store_that_lost_its_record_is_filled_again(
    lists: Store, start_store: Callable[[str], Server]
) -> None:
    shop = open_shop("redis", start_store("redis"))
    assert isinstance(shop, RedisShop)
    export(lists, shop)
    publish(lists, "r2", RUNS["r2"])
    shop.client.delete("visrec:recommendations")
    assert export(lists, shop).written == 12
    assert holds(shop, "r2")


def test_dynamodb_writes_that_were_not_processed_are_sent_again(
    lists: Store, start_store: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop("dynamodb", start_store("dynamodb"))
    for name, value in shop.env.items():
        monkeypatch.setenv(name, value)
    pauses: list[float] = []
    monkeypatch.setattr("visrec.exports.dynamodb_store.time.sleep", pauses.append)
    real = DynamoStore._send

    def throttled(self: DynamoStore, requests: list[dict[str, object]]) -> list[dict[str, object]]:
        """Processes half of each batch."""
        half = len(requests) // 2
        return [*requests[:half], *real(self, requests[half:])]

    monkeypatch.setattr(DynamoStore, "_send", throttled)
    export(lists, shop)
    assert holds(shop, "r1")
    assert max(pauses) > 0
    monkeypatch.setattr(DynamoStore, "_send", lambda _, requests: requests)
    publish(lists, "r2", RUNS["r2"])
    with pytest.raises(StorageError, match="raise its write capacity"):
        export(lists, shop)
    assert shop.read_all() == seen(RUNS["r1"])


def test_dynamodb_table_with_other_keys_is_refused(
    lists: Store, start_store: Callable[[str], Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop("dynamodb", start_store("dynamodb"))
    for name, value in shop.env.items():
        monkeypatch.setenv(name, value)
    shop.create_table({"user": "S"})
    with pytest.raises(InputError, match=r"keys user \(S\); expected id \(S\), generation \(N\)"):
        export(lists, shop)
