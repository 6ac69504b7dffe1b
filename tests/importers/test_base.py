"""What all importers have in common."""

import gzip
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.importers.imports import (
    INTER,
    REVIEW,
    gzipped_lines,
    imported,
    json_lines,
    pairs,
    rows,
    titles,
    write,
)
from visrec.errors import InputError
from visrec.importers import base
from visrec.importers.base import Imported, Source
from visrec.storage.schemas import label_column
from visrec.storage.store import Store


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


@pytest.mark.parametrize("kind", ["amazon", "retail"])
def test_each_file_is_read_once(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    product = {"parent_asin": "P1", "title": "Brush", "imUrl": "https://x/t.jpg"}
    review = {"user_id": "A", "parent_asin": "P1", "timestamp": 1588687728923, "rating": 5.0}
    orders = b"customer,sku,date,title\nA,P1,2026-11-01,Brush\n"
    sources = {
        "amazon": {
            "Art__jsonl__gz": gzipped_lines(review),
            "meta_Art__jsonl__gz": gzipped_lines(product),
        },
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


def test_repeated_items_of_all_batches_are_counted() -> None:
    tables = [pa.table({"item_id": ["a", "b", "a"]}), pa.table({"item_id": ["b", "c", None]})]
    data = Imported(interactions=(), items=tables)
    found = pa.concat_tables(data.distinct_items())
    assert found["item_id"].to_pylist() == ["a", "b", "c"]
    assert data.left_out == {"repeated items": 2, "items without item_id": 1}


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


def test_text_that_is_in_no_known_encoding_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_bytes("Email,SKU,Date\nÁ,S1,2026-11-20\n".encode() + b"\xe9,S1,2026-11-20\n")
    with pytest.raises(InputError, match=r"UTF-8 \(line 3 is not\) .*-1252 \(line 2 is not\)"):
        imported(source, "retail", tmp_path)
    assert not (tmp_path / "shop").exists()
