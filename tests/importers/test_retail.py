"""Order exports of shops: Shopify, WooCommerce and others."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.importers.imports import imported, pairs, rows, titles, write
from visrec.errors import InputError
from visrec.importers.retail import cancellation_columns
from visrec.storage import csv_files
from visrec.storage.input_table import InputTable


def test_shopify_export_loses_cancelled_orders_with_all_their_lines(tmp_path: Path) -> None:
    header = (
        "Name,Email,Financial Status,Created at,Lineitem quantity,Lineitem name,Lineitem sku,"
        "Cancelled at\n"
    )
    source = tmp_path / "orders_export.csv"
    source.write_text(
        header + "#1,a@x.com,paid,2026-11-20 10:00:00 +0100,1,Red chair,S1,\n"
        "#1,a@x.com,,2026-11-20 10:00:00 +0100,2,Blue chair,S2,\n"
        "#2,b@x.com,refunded,2026-11-21 10:00:00 +0100,1,Red chair,S1,\n"
        "#2,b@x.com,,2026-11-21 10:00:00 +0100,1,Blue chair,S2,\n"
        "#3,c@x.com,paid,2026-11-22 10:00:00 +0100,1,Red chair,S1,2026-11-23 10:00:00 +0100\n"
        "#4,,paid,2026-11-22 10:00:00 +0100,1,Red chair,S1,\n"
    )
    workspace, summary = imported(source, "retail", tmp_path)
    found = rows(workspace / "interactions.parquet", "user_id", "item_id", "timestamp")
    assert found == [("a@x.com", "S1", 1763629200 + 31536000), ("a@x.com", "S2", 1795165200)]
    assert summary["left out"] == {"of cancelled or refunded orders": 3, "without user_id": 1}
    assert titles(workspace) == {"S1": "Red chair", "S2": "Blue chair"}


@pytest.mark.parametrize("block_bytes", [4 << 20, 128])
def test_line_items_of_an_order_share_the_user_and_the_time_of_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    """As Shopify writes them; in some exports the later lines lack even Email and Created at."""
    monkeypatch.setattr(csv_files, "_BLOCK_BYTES", block_bytes)
    source = tmp_path / "orders_export.csv"
    source.write_text(
        "Name,Email,Financial Status,Paid at,Created at,Lineitem quantity,Lineitem name,"
        "Lineitem sku,Cancelled at\n"
        "#1,a@x.com,paid,2026-11-20 10:05:00,2026-11-20 10:00:00,1,Red chair,S1,\n"
        "#1,a@x.com,,,2026-11-20 10:00:00,2,Blue chair,S2,\n"
        "#2,b@x.com,pending,,2026-11-21 10:00:00,1,Red chair,S1,\n"
        "#2,,,,,1,Blue chair,S2,\n"
        "#3,,paid,,2026-11-22 10:00:00,1,Red chair,S1,\n"
        "#4,c@x.com,refunded,,2026-11-22 10:00:00,1,Red chair,S1,\n"
        "#4,,,,,1,Blue chair,S2,\n"
    )
    workspace, summary = imported(source, "retail", tmp_path)
    found = rows(workspace / "interactions.parquet", "user_id", "item_id", "timestamp")
    assert found == [
        ("a@x.com", "S1", 1795168800), ("a@x.com", "S2", 1795168800),
        ("b@x.com", "S1", 1795255200), ("b@x.com", "S2", 1795255200),
    ]  # fmt: skip
    assert summary["left out"] == {"of cancelled or refunded orders": 2, "without user_id": 1}


def test_woocommerce_export_loses_cancelled_orders_and_what_was_given_back(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_text(
        "Order Number,Order Status,Order Date,Email (Billing),SKU,Name,Quantity (- Refund)\n"
        "1,wc-completed,2026-11-20 10:00,a@x.com,S1,Shirt,1\n"
        "2,wc-cancelled,2026-11-20 10:00,b@x.com,S1,Shirt,1\n"
        "3,Refunded,2026-11-20 10:00,b@x.com,S1,Shirt,1\n"
        "4,wc-completed,2026-11-20 10:00,b@x.com,S1,Shirt,0\n"
    )
    workspace, summary = imported(source, "retail", tmp_path)
    assert rows(workspace / "interactions.parquet", "user_id", "item_id") == [("a@x.com", "S1")]
    assert summary["left out"] == {"of cancelled or refunded orders": 2, "returns": 1}


def test_product_named_like_the_order_column_of_shopify_voids_no_other_order(
    tmp_path: Path,
) -> None:
    source = tmp_path / "orders.csv"
    source.write_text(
        "Name,Order ID,Status,Date,Email,SKU\n"
        "Shirt,1,cancelled,2026-11-20,a@x.com,S1\nShirt,2,paid,2026-11-20,b@x.com,S1\n"
    )
    workspace, _ = imported(source, "retail", tmp_path)
    assert rows(workspace / "interactions.parquet", "user_id", "item_id") == [("b@x.com", "S1")]


@pytest.mark.parametrize(
    ("second", "seconds"),
    [("12/13/2010", (1291191960, 1292228760)), ("13/1/2011", (1263284760, 1294907160))],
)
def test_online_retail_of_other_archives(
    tmp_path: Path, second: str, seconds: tuple[int, int]
) -> None:
    """In Windows-1252 with slashes in the dates, and with users that pandas made floats of."""
    source = tmp_path / "data.csv"
    text = (
        "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
        "536365,85123A,CAFÉ £5,6,12/1/2010 8:26,2.55,17850.0,UK\n"
        f"536366,22752,LIGHTS,2,{second} 8:26,7.65,,UK\n"
        f"536367,22752,LIGHTS,2,{second} 8:26,7.65,13047.0,UK\n"
    )
    source.write_bytes(text.encode("cp1252"))
    workspace, summary = imported(source, "retail", tmp_path)
    found = rows(workspace / "interactions.parquet", "user_id", "item_id", "timestamp")
    assert found == [("17850", "85123A", seconds[0]), ("13047", "22752", seconds[1])]
    assert summary["left out"] == {"without user_id": 1}
    assert titles(workspace) == {"85123A": "CAFÉ £5", "22752": "LIGHTS"}


def test_dates_whose_order_no_row_tells_are_refused(tmp_path: Path) -> None:
    source = tmp_path / "data.csv"
    source.write_text("CustomerID,StockCode,InvoiceDate\n1,2,12/1/2010 8:26\n")
    with pytest.raises(InputError, match="which may have the day first or the month first"):
        imported(source, "retail", tmp_path)


def test_online_retail_export_loses_credit_notes_and_returns(tmp_path: Path) -> None:
    source = tmp_path / "online_retail.csv"
    source.write_text(
        "Invoice;StockCode;Description;Quantity;InvoiceDate;Price;Customer ID;Country\n"
        "489434;85048;LIGHTS;12;2009-12-01 07:45:00;6,95;13085;UK\n"
        "C489449;22087;BUNTING;-12;2009-12-01 10:33:00;2,95;16321;AU\n"
        "489450;22087;BUNTING;-1;2009-12-01 10:34:00;2,95;16321;AU\n"
    )
    workspace, summary = imported(source, "retail", tmp_path)
    found = rows(workspace / "interactions.parquet", "user_id", "item_id", "timestamp")
    assert found == [("13085", "85048", 1259653500)]
    assert summary["left out"] == {"of cancelled or refunded orders": 1, "returns": 1}


@pytest.mark.parametrize(
    ("status", "found"),
    [
        (["paid", None], []),
        (["paid", "wc-Refunded"], ["status"]),
        ([1, 2], []),
        ([[1], [2]], []),
    ],
)
def test_columns_of_cancellations_are_known_by_names_and_a_status_by_its_words(
    tmp_path: Path, status: list[Any], found: list[str]
) -> None:
    words = {"Name": "1", "Financial Status": "paid", "Cancelled at": "", "order_status": "paid"}
    table = pa.table({**{name: [word] * 2 for name, word in words.items()}, "status": status})
    pq.write_table(table, tmp_path / "orders.parquet")
    columns = cancellation_columns(InputTable(uri=str(tmp_path / "orders.parquet"), key="x"))
    assert columns == ["Financial Status", "Cancelled at", "order_status", *found]


def test_parts_of_a_shopify_export_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """An order may end in the next part, and the tenth part comes after the second one."""
    header = "Name,Email,Created at,Lineitem quantity,Lineitem sku\n"
    source = write(
        tmp_path / "parts",
        orders_export_1__csv=header + "#1,a@x.com,2026-11-20 10:00:00 +0100,1,S1\n",
        orders_export_2__csv=header + "#2,b@x.com,2026-11-20 10:00:00 +0100,1,S1\n",
        orders_export_10__csv=header + "#2,,,1,S2\n",
    )
    workspace, _ = imported(source, "retail", tmp_path)
    assert pairs(workspace) == [("a@x.com", "S1"), ("b@x.com", "S1"), ("b@x.com", "S2")]


def test_order_that_a_later_export_has_as_refunded_is_left_out_of_both(tmp_path: Path) -> None:
    header = "Order Number,Order Status,Order Date,Email,SKU\n"
    source = write(
        tmp_path / "parts",
        a__csv=header + "1,wc-completed,2026-11-20,a@x.com,S1\n2,paid,2026-11-20,b@x.com,S1\n",
        b__csv=header + "1,wc-refunded,2026-11-20,a@x.com,S1\n3,paid,2026-11-21,c@x.com,S1\n",
    )
    workspace, summary = imported(source, "retail", tmp_path)
    assert pairs(workspace) == [("b@x.com", "S1"), ("c@x.com", "S1")]
    assert summary["left out"] == {"of cancelled or refunded orders": 2}


def test_order_of_dates_is_told_by_any_part_of_an_export(tmp_path: Path) -> None:
    header = "CustomerID,StockCode,InvoiceDate\n"
    source = write(
        tmp_path / "parts",
        a__csv=header + "1,2,12/1/2010 8:26\n",
        b__csv=header + "1,3,13/1/2010 8:26\n",
    )
    workspace, _ = imported(source, "retail", tmp_path)
    found = rows(workspace / "interactions.parquet", "item_id", "timestamp")
    assert found == [("2", 1263284760), ("3", 1263371160)]


def test_export_beside_a_table_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    source = write(
        tmp_path / "shop-export",
        customers__csv="Customer ID,Email\n1,a@x.com\n",
        orders__csv="Email,SKU,Date\na@x.com,S1,2026-11-20\n",
    )
    with pytest.raises(
        InputError,
        match=r"Found customers\.csv, orders\.csv at .* in customers\.csv .*, and in orders\.csv",
    ):
        imported(source, "retail", tmp_path)
