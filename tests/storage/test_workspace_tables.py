"""The tables of a workspace, found by name in any format."""

import pytest

from visrec.errors import InputError
from visrec.storage.store import Store
from visrec.storage.workspace_tables import find_workspace_table, is_block_list, missing_table

KEY = "interactions.path"


@pytest.mark.parametrize(
    "name",
    [
        *("interactions.csv", "interactions.tsv.gz", "interactions.jsonl", "interactions.PARQUET"),
        *("interactions.parquet/part-0.parquet", "interactions/2026-11-22.csv.gz"),
        "interactions.csv/part-0.csv",
    ],
)
def test_table_is_found_in_any_format(store: Store, name: str) -> None:
    for other in ("interactions.csv.bak", "interactions_old.csv", "images/interactions.csv",
                  "old/interactions/a.csv", "interactions.json"):  # fmt: skip
        store.write(other, b"")
    assert find_workspace_table(store, "interactions", KEY) is None
    store.write(name, b"")
    found = find_workspace_table(store, "interactions", KEY)
    assert found == store.uri(name.partition("/")[0])


@pytest.mark.parametrize(
    "other", ["interactions.parquet", "interactions/a.csv", "interactions.csv.gz"]
)
def test_two_tables_of_one_name_are_refused_with_both(store: Store, other: str) -> None:
    store.write("interactions.csv", b"")
    store.write(other, b"")
    with pytest.raises(InputError) as caught:
        find_workspace_table(store, "interactions", KEY)
    assert f"{other.partition('/')[0]}" in str(caught.value)
    assert "interactions.csv" in str(caught.value)
    assert f"name one with --{KEY}" in str(caught.value)


def test_missing_table_names_what_is_there(store: Store) -> None:
    store.write("images/a.jpg", b"")
    store.write("orders.csv", b"")
    message = str(missing_table(store, "interactions", KEY))
    assert f"Found no interactions in {store.root}, only orders.csv; expected" in message
    assert message.endswith(f"--{KEY} {store.uri('orders.csv')}")


def test_folder_without_tables_is_none(store: Store) -> None:
    for name in ("items/i1.jpg", "items/more/i2.jpg", "items_old.csv"):
        store.write(name, b"")
    assert find_workspace_table(store, "items", "items") is None
    store.write("items.csv", b"")
    assert find_workspace_table(store, "items", "items") == store.uri("items.csv")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *[(name, True) for name in (
            "blocked.csv", "my-blocked.csv", "blockedItems.csv", "myBlocklist.csv",
            "black list.csv", "exclude.csv", "excluded_items.csv", "exclusions.csv",
            "do-not-recommend.csv",
            "Sperrliste_2026.csv", "gesperrte Artikel.csv", "banned.csv", "2026_deny_list.csv",
        )],
        *[(name, False) for name in (
            "orders_excluding_vat.csv", "woodblock_orders.csv", "unblocked.csv",
            "block_prints.csv", "exclusive_orders.csv", "turbanned.csv", "orders.csv",
        )],
    ],
)  # fmt: skip
def test_block_list_is_known_by_a_whole_word(name: str, expected: bool) -> None:
    assert is_block_list(name) is expected
