"""The items table, aligned with the catalogue."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError
from visrec.sources.items import artist_codes, category_codes, category_names, read_items
from visrec.storage.input_table import InputTable

IDS = pa.array(["a", "b", "c", "d"])


def _table(folder: Path, **columns: list[object]) -> InputTable:
    path = str(folder / "items.parquet")
    pq.write_table(pa.table(columns), path)
    return InputTable(uri=path, key="items")


def test_columns_are_aligned_with_the_catalogue(tmp_path: Path) -> None:
    path = _table(
        tmp_path,
        item_id=["c", "x", "a", "b"],
        available=[False, False, True, None],
        category=["hat", "shoe", "coat", None],
        artist_id=[7, 8, None, 9],
    )
    items = read_items(path, IDS)
    assert items.available_N.tolist() == [True, True, False, True]
    assert items.category_N.to_pylist() == ["coat", None, "hat", None]
    assert items.artist_N.to_pylist() == [None, "9", "7", None]


def test_without_a_table_all_items_are_available() -> None:
    items = read_items(None, IDS)
    assert items.available_N.all()
    assert items.category_N.null_count == items.artist_N.null_count == len(IDS)


def test_columns_are_optional(tmp_path: Path) -> None:
    items = read_items(_table(tmp_path, item_id=["a"]), IDS)
    assert items.available_N.all()
    assert category_names(items.category_N) == ()
    assert artist_codes(items.artist_N) is None


@pytest.mark.parametrize(
    ("ids", "available", "message"),
    [(["a", "a"], [True, False], "item_id"), (list("abcd"), [False] * 4, "None of the 4 items")],
)
def test_duplicate_items_and_no_available_item_are_refused(
    tmp_path: Path, ids: list[object], available: list[object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_items(_table(tmp_path, item_id=ids, available=available), IDS)


def test_category_codes_index_the_training_categories() -> None:
    seen = pa.array(["hat", "coat", None, "hat"])
    names = category_names(seen)
    assert names == ("coat", "hat")
    assert category_codes(seen, names).tolist() == [1, 0, -1, 1]
    np.testing.assert_array_equal(category_codes(pa.array(["shoe", "coat"]), names), [-1, 0])


def test_artist_codes_distinguish_artists_and_mark_none() -> None:
    codes = artist_codes(pa.array(["x", None, "y", "x"]))
    assert codes is not None
    assert codes.tolist() == [0, -1, 1, 0]


def test_items_without_any_feature_are_refused_with_examples_of_both_ids(tmp_path: Path) -> None:
    path = _table(tmp_path, item_id=["a.jpg", "z.jpg"], category=["hat", "coat"])
    with pytest.raises(InputError, match=r"such as 'a.jpg', 'z.jpg'.* such as 'a', 'b', 'c': some"
                                         r" would match without the file extension"):  # fmt: skip
        read_items(path, IDS)


def test_duplicate_item_is_refused_with_its_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="such as 'b'; expected one row per item"):
        read_items(_table(tmp_path, item_id=["a", "b", "b"]), IDS)
