"""The texts of an items table, from any columns and blanks."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError, SchemaError
from visrec.sources.texts import read_texts
from visrec.storage.input_table import InputTable


def texts(path: Path) -> dict[str, str | None]:
    batches = read_texts(InputTable(uri=str(path), key="items"))
    return {row["item_id"]: row["text"] for batch in batches for row in batch.to_pylist()}


def table(folder: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return folder / "items.parquet"


def test_text_is_title_and_description_on_a_line_each(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        item_id=["a", "b", "c", "d", "e"],
        title=["Shirt ", None, "Coat", None, "  "],
        description=["of linen", "wool", None, None, ""],
        price=[1, 2, 3, 4, 5],
    )
    assert texts(path) == {"a": "Shirt\nof linen", "b": "wool", "c": "Coat", "d": None, "e": None}


@pytest.mark.parametrize("column", ["title", "description"])
def test_one_of_the_columns_is_enough(tmp_path: Path, column: str) -> None:
    assert texts(table(tmp_path, item_id=[1, 2], **{column: ["Hemd", "Müsli"]})) == {
        "1": "Hemd",
        "2": "Müsli",
    }


def test_csv_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\n1,Shirt\n2,\n")
    assert texts(tmp_path / "items.csv") == {"1": "Shirt", "2": None}


def test_table_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="neither a column title nor a column description"):
        texts(table(tmp_path, item_id=["a"], name=["Shirt"]))


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--items"):
        texts(tmp_path / "items.parquet")
