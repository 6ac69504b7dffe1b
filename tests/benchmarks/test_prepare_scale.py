"""The benchmark of preparing interactions, small: all sides write the same rows, sorted."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("polars", reason="the peers come with the extra `bench`")
pytest.importorskip("duckdb", reason="the peers come with the extra `bench`")

from benchmarks import prepare_scale
from visrec import tasks

ROWS = 4000
Row = tuple[Any, ...]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tasks, "on_ray", lambda: False)  # another test may have started Ray
    prepare_scale.write_source(tmp_path / "source.parquet", ROWS)
    return tmp_path / "source.parquet"


def rows_of(file: Path, ids: dict[str, list[str]]) -> list[Row]:
    """The rows of a partition, whose codes are in the order of their ids."""
    table = pq.ParquetFile(file).read()
    assert table.num_rows
    columns = [[ids[name][code] for code in table[name].to_pylist()] for name in ("user", "item")]
    return list(zip(columns[0], table["timestamp"].to_pylist(), columns[1], strict=True))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("peer", ["duckdb", "polars"])
def test_peer_writes_the_rows_of_visrec(
    source: Path, tmp_path: Path, peer: str, at_once: bool
) -> None:
    prepare_scale._prepare(source, tmp_path / "ours")
    ours = []
    for file in (tmp_path / "ours").rglob("partition=*/*.parquet"):
        table = (
            pq.ParquetFile(file)
            .read()
            .cast(pa.schema([("user_id", pa.string()), ("item_id", pa.string()), *_REST]))
        )
        rows = list(zip(*(table[n].to_pylist() for n in _ORDER), strict=True))
        assert rows == sorted(rows)
        ours += rows
    target = tmp_path / "theirs"
    if peer == "duckdb":
        prepare_scale._duckdb(source, target, 2, at_once=at_once)
    else:
        prepare_scale._polars(source, target, at_once=at_once)
    ids = {
        name: pq.read_table(target / f"{name}s.parquet")[f"{name}_id"].to_pylist()
        for name in ("user", "item")
    }
    parts = [file for file in target.rglob("*.parquet") if file.stem not in ("users", "items")]
    theirs = [rows_of(file, ids) for file in parts]
    assert all(part == sorted(part) for part in theirs)
    assert sorted(row for part in theirs for row in part) == sorted(ours)
    assert len(ours) == ROWS


_ORDER = ("user_id", "timestamp", "item_id")
_REST = (("timestamp", pa.int64()), ("rating", pa.float64()), ("evaluation", pa.bool_()))
