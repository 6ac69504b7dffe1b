"""Planted stock columns and block lists, and the items that they leave."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.recommend.eligibility import (
    BlockCounts,
    items_by_user,
    read_block_list,
    recommendable_mask,
    require_rule_columns,
)
from visrec.retrieval.rules import RulesConfig
from visrec.sources.items import Items, read_items
from visrec.storage.input_table import InputTable

IDS = pa.array(["a", "b", "c", "d", "e"])


@pytest.fixture
def items(tmp_path: Path) -> Items:
    """Items with a stock of 0, 1, an unknown number and 5; the last one is not in the table."""
    table = pa.table({"item_id": ["a", "b", "c", "d"], "stock": [0, 1, None, 5]})
    pq.write_table(table, tmp_path / "items.parquet")
    return read_items(InputTable(uri=str(tmp_path / "items.parquet"), key="items"), IDS)


@pytest.fixture
def block_list(tmp_path: Path) -> str:
    """Blocks d for everybody, a for u1, and b for u2."""
    rows = {"item_id": ["d", "a", "b", "?", "b"], "user_id": [None, "u1", "u2", "u2", "u2"]}
    pq.write_table(pa.table(rows), tmp_path / "blocked.parquet")
    return str(tmp_path / "blocked.parquet")


def test_all_items_are_recommendable_without_rules(items: Items) -> None:
    assert recommendable_mask(RulesConfig(), items, IDS).tolist() == [True] * 5


def test_items_below_the_minimum_stock_are_not_recommendable(items: Items) -> None:
    mask = recommendable_mask(RulesConfig(min_stock=1), items, IDS)
    assert mask.tolist() == [False, True, True, True, True]


def test_items_blocked_for_everybody_are_not_recommendable(items: Items, block_list: str) -> None:
    mask = recommendable_mask(RulesConfig(min_stock=2, blocked=block_list), items, IDS)
    assert mask.tolist() == [False, False, True, False, True]


def test_items_blocked_for_a_user_are_in_that_users_list_once(block_list: str) -> None:
    users = pa.array(["u0", "u1", "u2"])
    lists = items_by_user(read_block_list(RulesConfig(blocked=block_list)), users, IDS)
    assert [lists[user].tolist() for user in range(3)] == [[], [0], [1]]


def test_block_list_with_own_names_of_columns_is_read(items: Items, tmp_path: Path) -> None:
    (tmp_path / "blocked.csv").write_text("sku;customer\nd;\na;u1\n")
    rules = RulesConfig(
        blocked=str(tmp_path / "blocked.csv"),
        blocked_columns={"item_id": "sku", "user_id": "customer"},
    )
    assert recommendable_mask(rules, items, IDS).tolist() == [True, True, True, False, True]
    assert items_by_user(read_block_list(rules), pa.array(["u1"]), IDS)[0].tolist() == [0]


def test_block_list_with_other_columns_is_answered_with_a_mapping_of_its_users_too(
    tmp_path: Path,
) -> None:
    (tmp_path / "blocked.csv").write_text("sku,customer_email,reason\n")
    with pytest.raises(InputError) as caught:
        list(read_block_list(RulesConfig(blocked=str(tmp_path / "blocked.csv"))))
    mapping = "--rules.blocked_columns '{item_id: sku, user_id: customer_email}'"
    assert str(caught.value).endswith(f"If the names mean what they say, add {mapping}.")


def test_mapping_of_the_wrong_way_round_is_refused_with_the_right_one() -> None:
    with pytest.raises(InputError, match=r"--rules.blocked_columns.*mean \{item_id: sku\}\?"):
        RulesConfig(blocked="blocked.csv", blocked_columns={"sku": "item_id"})


def test_block_list_without_a_user_column_blocks_for_everybody(tmp_path: Path) -> None:
    (tmp_path / "blocked.csv").write_text("item_id\nb\n")
    ids, rules = pa.array(["a", "b"]), RulesConfig(blocked=str(tmp_path / "blocked.csv"))
    assert recommendable_mask(rules, read_items(None, ids), ids).tolist() == [True, False]
    assert not len(items_by_user(read_block_list(rules), pa.array(["u"]), ids).values)


def test_minimum_stock_without_a_stock_column_is_refused() -> None:
    with pytest.raises(InputError, match=r"no items table with a column stock.*--rules.min_stock"):
        recommendable_mask(RulesConfig(min_stock=1), read_items(None, IDS), IDS)


def test_rules_that_leave_no_item_are_refused(tmp_path: Path) -> None:
    table = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["a"], "stock": [0]}), table)
    ids = pa.array(["a"])
    with pytest.raises(InputError, match="None of the 1 available items is in stock"):
        recommendable_mask(
            RulesConfig(min_stock=1), read_items(InputTable(uri=table, key="items"), ids), ids
        )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id\na\nb\n", ()),
        ("item_id\n", ()),
        (
            "item_id\nA.jpg\nB.jpg\n",
            ("2 of the 2 rows", "'A.jpg', 'B.jpg'", "catalogue such as 'a'"),
        ),
        ("item_id\na\ngone\n", ("1 of the 2 rows",)),
        ("item_id,user_id\na,u0\nb,\n", ()),
        ("item_id,user_id\na,U0\nb,\n", ("1 of the 2 rows", "without upper and lower case")),
        ("item_id,user_id\nx,u0\nb,u9\n", ("2 of the 2 rows",)),
    ],
)
def test_rows_of_a_block_list_without_effect_are_counted_in_a_warning(
    tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "blocked.csv").write_text(text)
    rules = RulesConfig(blocked=str(tmp_path / "blocked.csv"))
    items, users = (pa.array(ids, TEXT) for ids in (["a", "b"], ["u0"]))
    warning = BlockCounts.of(read_block_list(rules), items, users).warning(rules, items)
    assert (warning is None) == (not words)
    for word in words:
        assert word in str(warning)


def test_no_block_list_gives_no_warning() -> None:
    counts = BlockCounts.of(read_block_list(RulesConfig()), IDS, pa.array(["u0"], TEXT))
    assert counts.warning(RulesConfig(), IDS) is None


@pytest.mark.parametrize("keys", [{"cap": 2, "cap_by": "maker"}, {"min_stock": 1}])
def test_rule_whose_column_the_items_table_lacks_is_refused(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    def require(*columns: str, names: dict[str, str] | None = None) -> None:
        path = tmp_path / "items.csv"
        path.write_text(",".join(["item_id", *columns]) + "\n")
        table = InputTable(uri=str(path), key="items", columns=names or {})
        require_rule_columns(RulesConfig(**keys), table)

    expected = r"Found --rules\.(cap 2|min_stock 1) and no items table with a column (maker|stock)"
    with pytest.raises(InputError, match=expected):
        require_rule_columns(RulesConfig(**keys), None)
    with pytest.raises(InputError, match=expected):
        require("price")
    require("maker", "stock")
    require("maker", "on_hand", names={"stock": "on_hand"})
    require_rule_columns(RulesConfig(), None)
