"""Each format as its specification has it, into a workspace whose tables are known."""

import gzip
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visrec.cli.parse import parse_in_workspace
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.importers import base
from visrec.importers.base import Imported, Source
from visrec.importers.retail import cancellation_columns
from visrec.pipelines.import_data import ImportDataJob, check, main
from visrec.storage import csv_files
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import label_column
from visrec.storage.store import Store

RATINGS = [
    ("1", "31", 2.5, 1260759144),
    ("1", "1029", 3.0, 1260759179),
    ("2", "31", 4.0, 835355493),
]
TITLES = {"31": "Dangerous Minds (1995)", "1029": 'Dumbo, "the" elephant (1941)'}


def imported(source: Path, kind: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The workspace after an import, and the rows of the summary."""
    job = ImportDataJob(workspace=str(tmp_path / "shop"), format=kind, path=str(source))
    check(job)
    summary = Summary("import_data")
    main(job, summary)
    return tmp_path / "shop", summary.rows


def rows(path: Path, *columns: str) -> list[tuple[Any, ...]]:
    table = pq.read_table(path)
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def titles(workspace: Path) -> dict[str, str]:
    return dict(rows(workspace / "items.parquet", "item_id", "title"))


def write(folder: Path, **files: str | bytes) -> Path:
    """A folder of files; two underscores in a name stand for a dot."""
    folder.mkdir()
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def movielens(tmp_path: Path, edition: str) -> Path:
    title, dumbo = TITLES["31"], TITLES["1029"]
    if edition == "latest":
        quoted = dumbo.replace('"', '""')
        return write(
            tmp_path / "ml",
            ratings__csv="userId,movieId,rating,timestamp\n"
            + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in RATINGS),
            movies__csv=f'movieId,title,genres\n31,{title},Drama|War\n1029,"{quoted}",Animation\n',
        )
    if edition == "1m":
        return write(
            tmp_path / "ml",
            ratings__dat="".join(f"{u}::{i}::{r:g}::{t}\n" for u, i, r, t in RATINGS),
            movies__dat=f"31::{title}::Drama|War\n1029::{dumbo}::Animation\n".encode("latin-1"),
        )
    return write(
        tmp_path / "ml",
        u__data="".join(f"{u}\t{i}\t{r:g}\t{t}\n" for u, i, r, t in RATINGS),
        u__item=f"31|{title}|01-Jan-1995||x|0\n1029|{dumbo}|01-Jan-1941||x|1\n".encode("latin-1"),
    )


@pytest.mark.parametrize("edition", ["latest", "1m", "100k"])
def test_movielens_of_each_edition(edition: str, tmp_path: Path) -> None:
    workspace, summary = imported(movielens(tmp_path, edition), "movielens", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == RATINGS
    assert titles(workspace) == TITLES
    assert (summary["interactions"], summary["items"]) == (3, 2)
    assert summary["next"] == f"visrec check {workspace}"
    if edition != "100k":
        assert rows(workspace / "items.parquet", "item_id", "category")[0] == ("31", "Drama")


def test_recbole_files_lose_the_types_of_their_header(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t{r}\t{float(t)}\n" for u, i, r, t in RATINGS),
        x__item="item_id:token\tmovie_title:token_seq\tclass:token_seq\trelease:token\n"
        "31\tDangerous Minds\tDrama War\t1995\n",
    )
    workspace, _ = imported(source, "recbole", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == RATINGS
    expected = [("31", "Dangerous Minds", "Drama War", "1995")]
    assert rows(workspace / "items.parquet", "item_id", "title", "category", "release") == expected


def test_recbole_file_without_a_time_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "rb", x__inter="user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(
        InputError, match=r"user_id:token, item_id:token; expected .* and timestamp"
    ):
        imported(source, "recbole", tmp_path)


def lines(*objects: dict[str, Any]) -> bytes:
    return gzip.compress("".join(json.dumps(each) + "\n" for each in objects).encode())


def test_amazon_reviews_of_2023_with_pictures(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        Art__jsonl__gz=lines(
            {"rating": 5.0, "title": "x", "images": [], "asin": "B1", "parent_asin": "P1",
             "user_id": "A", "timestamp": 1588687728923, "verified_purchase": True},
            {"rating": 1.0, "asin": "B2", "parent_asin": "P2", "user_id": None,
             "timestamp": 1588687728923},
        ),
        meta_Art__jsonl__gz=lines(
            {"parent_asin": "P1", "title": "Brush", "main_category": "Arts", "price": None,
             "images": [{"thumb": "https://x/t.jpg", "large": "https://x/l.jpg",
                         "hi_res": "https://x/h.jpg", "variant": "MAIN"}]},
            {"parent_asin": "P2", "title": "Nothing", "main_category": None, "images": []},
        ),
    )  # fmt: skip
    workspace, summary = imported(source, "amazon", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == [
        ("A", "P1", 5.0, 1588687728)
    ]
    assert summary["left out"] == {"without user_id": 1}
    assert titles(workspace) == {"P1": "Brush", "P2": "Nothing"}
    pictures = workspace / "images" / "pictures.parquet"
    assert rows(pictures, "item_id", "uri") == [("P1", "https://x/h.jpg")]


def test_amazon_reviews_of_2018(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        AMAZON_FASHION__json__gz=lines(
            {"overall": 4.0, "reviewerID": "A", "asin": "B1", "unixReviewTime": 1413763200}
        ),
    )
    workspace, _ = imported(source, "amazon", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == [
        ("A", "B1", 4.0, 1413763200)
    ]


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_in_any_encoding_is_read_by_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(base, "_BLOCK_BYTES", 5)
    titles = [f"Café {n}" for n in range(50)]
    text = "sku,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(titles))
    (tmp_path / "x.csv").write_bytes(text.rstrip("\n").encode(encoding))
    batches = Source.at(str(tmp_path / "x.csv")).read("x.csv", [label_column("title")], {})
    assert pa.concat_tables(batches)["title"].to_pylist() == titles


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
    ("kind", "expected"),
    [
        ("movielens", r"expected ratings\.csv, ratings\.dat or u\.data"),
        ("recbole", r"expected a \.inter file"),
        ("amazon", "expected reviews as"),
        ("retail", "expected an order export"),
    ],
)
def test_folder_of_other_files_is_refused_and_nothing_is_written(
    kind: str, expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "other", readme__txt="hello")
    with pytest.raises(InputError, match=rf"Found readme\.txt at .*{expected}.*--path"):
        imported(source, kind, tmp_path)
    assert not (tmp_path / "shop").exists()


def test_failed_import_leaves_nothing_and_an_existing_table_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "ml", ratings__csv="userId,movieId,rating,timestamp\n1,2,x,3\n")
    with pytest.raises(InputError, match="rating"):
        imported(source, "movielens", tmp_path)
    assert not [path for path in (tmp_path / "shop").rglob("*") if path.is_file()]
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "shop" / "interactions.parquet")
    with pytest.raises(InputError, match="exists already"):
        imported(source, "movielens", tmp_path)


def test_workspace_of_the_demo_is_imported_into_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--format", "retail", "--path", "orders.csv"]
    with pytest.raises(InputError, match="Found no --workspace"):
        check(parse_in_workspace(ImportDataJob, flags))
    check(parse_in_workspace(ImportDataJob, [*flags, "--workspace", "runs/demo"]))


def test_workspace_with_pictures_of_its_own_is_kept(tmp_path: Path) -> None:
    (tmp_path / "shop/images").mkdir(parents=True)
    (tmp_path / "shop/images/a.jpg").touch()
    with pytest.raises(InputError, match="images exists already"):
        imported(movielens(tmp_path, "1m"), "movielens", tmp_path)


def test_import_replaces_the_tables_of_an_earlier_one(tmp_path: Path) -> None:
    def export(lines: str) -> Path:
        (tmp_path / "orders.csv").write_text(f"customer,sku,date,title\n{lines}")
        return tmp_path / "orders.csv"

    workspace, _ = imported(export("A,P1,2026-11-01,Brush\n"), "retail", tmp_path)
    assert titles(workspace) == {"P1": "Brush"}
    imported(export("A,P1,2026-11-01,\nB,P2,2026-11-02,\n"), "retail", tmp_path)
    expected = [("A", "P1"), ("B", "P2")]
    assert pairs(workspace) == expected
    assert not (workspace / "items.parquet").exists()
    for wrong in ("A,P1,soon,\n", ""):
        with pytest.raises(InputError):
            imported(export(wrong), "retail", tmp_path)
        assert pairs(workspace) == expected


@pytest.mark.parametrize(
    "line", ["interactions: {path: orders.csv}", "items_columns: {item_id: sku}"]
)
def test_workspace_that_names_other_tables_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/visrec.yaml").write_text(f"{line}\n")
    with pytest.raises(InputError, match="expected a workspace without, because jobs would read"):
        imported(movielens(tmp_path, "1m"), "movielens", tmp_path)


@pytest.mark.parametrize("kind", ["amazon", "retail"])
def test_each_file_is_read_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = {"parent_asin": "P1", "title": "Brush", "imUrl": "https://x/t.jpg"}
    review = {"user_id": "A", "parent_asin": "P1", "timestamp": 1588687728923, "rating": 5.0}
    orders = b"customer,sku,date,title\nA,P1,2026-11-01,Brush\n"
    sources = {
        "amazon": {"Art__jsonl__gz": lines(review), "meta_Art__jsonl__gz": lines(product)},
        "retail": {"orders__csv__gz": gzip.compress(orders)},
    }
    source = write(tmp_path / "source", **sources[kind])
    opened: Counter[str] = Counter()
    really = Store.open_input_stream

    def counted(store: Store, name: str, codec: str | None = None) -> Any:
        opened[name] += 1
        return really(store, name, codec)

    monkeypatch.setattr(Store, "open_input_stream", counted)
    workspace, summary = imported(source, kind, tmp_path)
    assert titles(workspace) == {"P1": "Brush"}
    assert summary["interactions"] == 1
    # The first lines say which edition it is, or which columns there are; all lines of a text that
    # may not be UTF-8 say which encoding it has.
    most = {"Art.jsonl.gz": 2, "meta_Art.jsonl.gz": 1, "orders.csv.gz": 4}
    assert opened
    assert all(times <= most[name] for name, times in opened.items()), opened


# Hypothesis needs one folder for each example.
@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([0.5, 2.5, 5.0]),
            st.integers(100_000, 2**31 - 1),
        ),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_round_trip_of_ratings_through_each_format_with_a_writer(
    ratings: list[tuple[int, int, float, int]],
) -> None:
    """MovieLens and RecBole have writers, those of pandas with the formats' separators."""
    frame = pd.DataFrame(ratings, columns=["userId", "movieId", "rating", "timestamp"])
    recbole = frame.set_axis(
        ["user_id:token", "item_id:token", "rating:float", "timestamp:float"], axis=1
    )
    expected = [(str(user), str(item), rating, time) for user, item, rating, time in ratings]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "csv").mkdir()
        frame.to_csv(root / "csv/ratings.csv", index=False)
        (root / "tabs").mkdir()
        frame.to_csv(root / "tabs/u.data", index=False, header=False, sep="\t")
        (root / "inter").mkdir()
        recbole.to_csv(root / "inter/x.inter", index=False, sep="\t")
        for source, kind in (("csv", "movielens"), ("tabs", "movielens"), ("inter", "recbole")):
            workspace, _ = imported(root / source, kind, root / f"to-{source}")
            columns = ("user_id", "item_id", "rating", "timestamp")
            assert rows(workspace / "interactions.parquet", *columns) == expected


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


def pairs(workspace: Path) -> list[tuple[Any, ...]]:
    return rows(workspace / "interactions.parquet", "user_id", "item_id")


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


INTER = "user_id:token\titem_id:token\ttimestamp:float\n"


def test_parts_of_a_recbole_data_set_are_one_table(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__test__inter=INTER + "u3\ti\t3\n",
        x__train__inter=INTER + "u1\ti\t1\n",
        x__valid__inter=INTER + "u2\ti\t2\n",
        x__item="item_id:token\ttitle:token\ni\tChair\n",
    )
    workspace, _ = imported(source, "recbole", tmp_path)
    assert pairs(workspace) == [("u1", "i"), ("u2", "i"), ("u3", "i")]
    assert titles(workspace) == {"i": "Chair"}


@pytest.mark.parametrize(
    "names",
    [
        ("x.inter", "y.inter"),
        ("x.inter", "x.train.inter"),
        ("x.train.inter", "y.test.inter"),
        ("x.v1.inter", "x.v2.inter"),
        ("x.inter", "y.item"),
        ("x.inter", "x.item", "y.item"),
    ],
)
def test_recbole_files_of_several_data_sets_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "rb", **{name.replace(".", "__"): INTER for name in names})
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* files of one data set"):
        imported(source, "recbole", tmp_path)


def test_recbole_parts_with_different_fields_are_refused(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__train__inter=INTER,
        x__test__inter=INTER.replace("\n", "\trating:float\n"),
    )
    with pytest.raises(
        InputError, match=r"x\.train\.inter has .*x\.test\.inter has .* rating:float"
    ):
        imported(source, "recbole", tmp_path)


REVIEW = {"reviewerID": "A", "asin": "B1", "unixReviewTime": 1413763200, "overall": 4.0}


def json_lines(*objects: dict[str, Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in objects)


@pytest.mark.parametrize(
    "names",
    [
        ("Books.json", "CDs.json"),
        ("Books.json", "Books_5.json"),
        ("CDs.json", "meta_Books.json"),
        ("Books.json", "meta_Books.json", "meta_CDs.json"),
    ],
)
def test_amazon_files_of_several_categories_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(
        tmp_path / "amazon", **{name.replace(".", "__"): json_lines(REVIEW) for name in names}
    )
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* same category"):
        imported(source, "amazon", tmp_path)


def test_repeated_product_of_amazon_is_one_item_with_its_first_values(tmp_path: Path) -> None:
    product = {"asin": "B1", "title": "Brush", "imUrl": "https://x/1.jpg"}
    source = write(
        tmp_path / "amazon",
        reviews_Art_5__json=json_lines(REVIEW),
        meta_Art__json=json_lines(product, {**product, "title": "Brush, again"}, {"asin": " "}),
    )
    workspace, summary = imported(source, "amazon", tmp_path)
    assert rows(workspace / "items.parquet", "item_id", "title") == [("B1", "Brush")]
    pictures = workspace / "images" / "pictures.parquet"
    assert rows(pictures, "item_id", "uri") == [("B1", "https://x/1.jpg")]
    assert summary["left out"] == {"repeated items": 1, "items without item_id": 1}


def test_repeated_items_of_all_batches_are_counted() -> None:
    tables = [pa.table({"item_id": ["a", "b", "a"]}), pa.table({"item_id": ["b", "c", None]})]
    data = Imported(interactions=(), items=tables)
    found = pa.concat_tables(data.distinct_items())
    assert found["item_id"].to_pylist() == ["a", "b", "c"]
    assert data.left_out == {"repeated items": 2, "items without item_id": 1}


def test_amazon_values_of_other_types_become_text(tmp_path: Path) -> None:
    source = write(
        tmp_path / "amazon",
        Art__json="\n" + json_lines(REVIEW, {**REVIEW, "reviewerID": 7}),
        meta_Art__json=json_lines(
            {"asin": "B1", "title": "Brush"},
            {"asin": 12, "title": 5, "imageURLHighRes": ["https://x/1.jpg"]},
            {"asin": "B3", "title": float("nan"), "images": [{"large": "https://x/2.jpg", "n": 1}]},
        ),
    )
    workspace, _ = imported(source, "amazon", tmp_path)
    assert pairs(workspace) == [("A", "B1"), ("7", "B1")]
    assert titles(workspace) == {"B1": "Brush", "12": "5", "B3": None}
    pictures = workspace / "images" / "pictures.parquet"
    found = rows(pictures, "item_id", "uri")
    assert found == [("12", "https://x/1.jpg"), ("B3", "https://x/2.jpg")]


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        (b'{"reviewerID": "\xe9"}\n', r"found the line .* expected a JSON object in UTF-8"),
        (b'{"reviewerID": \n', "found the line .*reviewerID"),
        (b'{"unixReviewTime": "soon"}\n', "the field unixReviewTime: .*soon"),
    ],
)
def test_damaged_amazon_review_is_refused_and_shown(
    review: bytes, expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "amazon", Art__json=json_lines(REVIEW).encode() + review)
    with pytest.raises(InputError, match=expected):
        imported(source, "amazon", tmp_path)


@pytest.mark.parametrize("kind", ["amazon", "movielens", "recbole"])
def test_rows_with_blank_ids_are_counted_as_without_a_user_or_item(
    kind: str, tmp_path: Path
) -> None:
    reviews = [REVIEW, {**REVIEW, "reviewerID": ""}, {**REVIEW, "asin": " "}]
    tabs = "A\tB1\t4\t1\n\tB1\t4\t1\nA\t \t4\t1\n"
    sources = {
        "amazon": {"Art__json": json_lines(*reviews)},
        "movielens": {"u__data": tabs},
        "recbole": {"x__inter": INTER.replace("timestamp", "rating:float\ttimestamp") + tabs},
    }
    workspace, summary = imported(write(tmp_path / "source", **sources[kind]), kind, tmp_path)
    assert pairs(workspace) == [("A", "B1")]
    assert summary["left out"] == {"without user_id": 1, "without item_id": 1}


def test_movielens_titles_in_utf_8_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """ml-10m is in UTF-8, in which one byte of Å is a line end of Latin-1."""
    known = {"122": "Ådalen 31 (1969)", "123": "L’Âge d’or", "124": "A\x0bB\u2028C"}
    source = write(
        tmp_path / "ml",
        ratings__dat="1::122::5::838985046\n",
        movies__dat="".join(f"{i}::{title}::Drama|War\r\n" for i, title in known.items()),
    )
    workspace, summary = imported(source, "movielens", tmp_path)
    assert titles(workspace) == known
    assert {*dict(rows(workspace / "items.parquet", "item_id", "category")).values()} == {"Drama"}
    assert summary["encodings"] == {}


def test_movielens_titles_in_latin_1_are_read_and_the_summary_says_so(tmp_path: Path) -> None:
    source = write(
        tmp_path / "ml",
        u__data="1\t2\t5\t838985046\n",
        u__item="1|Toy Story (1995)|\n2|Misérables, Les (1995)|\n".encode("latin-1"),
    )
    workspace, summary = imported(source, "movielens", tmp_path)
    assert titles(workspace) == {"1": "Toy Story (1995)", "2": "Misérables, Les (1995)"}
    assert summary["encodings"] == {"u.item": "Windows-1252, since line 2 is not UTF-8"}


@pytest.mark.parametrize(
    "names",
    [("ratings.csv", "ratings.dat"), ("ratings.dat", "movies.csv"), ("ratings.dat", "u.item")],
)
def test_movielens_files_of_several_editions_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "ml", **{name.replace(".", "__"): "1::2::3::4\n" for name in names})
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* of one edition"):
        imported(source, "movielens", tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"movies__dat": "1;Toy Story\n"}, r"movies\.dat .* '1;Toy Story'; .* separated by ::"),
        ({"ratings__dat": "1::2::5\n"}, r"ratings\.dat .* Expected 4 columns"),
    ],
)
def test_damaged_movielens_line_is_refused_and_shown(
    files: dict[str, str | bytes], expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "ml", **{"ratings__dat": "1::1::5::838985046\n", **files})
    with pytest.raises(InputError, match=expected):
        imported(source, "movielens", tmp_path)


def test_user_of_a_file_with_a_damaged_line_is_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoding is that of the whole file, whichever block the damaged line is in."""
    monkeypatch.setattr(base, "_BLOCK_BYTES", 64)
    line = "jörg@x.de,S1,2026-11-20\n".encode()
    source = tmp_path / "orders.csv"
    source.write_bytes(b"Email,SKU,Date\n" + 9 * line + b"a@x.de,S\xf6,2026-11-20\n" + 9 * line)
    workspace, summary = imported(source, "retail", tmp_path)
    assert {user for user, _ in pairs(workspace)} == {"jÃ¶rg@x.de", "a@x.de"}
    assert summary["encodings"] == {"orders.csv": "Windows-1252, since line 11 is not UTF-8"}


def test_text_that_is_in_no_known_encoding_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_bytes("Email,SKU,Date\nÁ,S1,2026-11-20\n".encode() + b"\xe9,S1,2026-11-20\n")
    with pytest.raises(InputError, match=r"UTF-8 \(line 3 is not\) .*-1252 \(line 2 is not\)"):
        imported(source, "retail", tmp_path)
    assert not (tmp_path / "shop").exists()
