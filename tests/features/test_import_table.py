"""Imported features: values, identity and rejections, and refusals of wrong tables. Without Ray."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError, SchemaError
from visrec.features.import_planning import plan_import
from visrec.features.import_table import ImportChunk, commit_import
from visrec.features.table import Manifest, load_features, read_manifest
from visrec.storage.schemas import features_schema
from visrec.storage.store import Store

QUIET = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))
RANDOM = np.random.default_rng(0)
ROWS, DIM = 12, 3
IDS = [f"i{n:02}" for n in RANDOM.permutation(ROWS)]
VALUES = RANDOM.normal(size=(ROWS, DIM))
DOUBLES = pa.list_(pa.float64())


def table_of(
    ids: list[Any], rows: Any, kind: pa.DataType | None = None, **columns: list[Any]
) -> pa.Table:
    kind = kind or pa.list_(pa.float32(), DIM)
    number: Any = np.float16 if pa.types.is_float16(kind.value_type) else float
    values = [[number(x) for x in row] for row in rows]
    return pa.table({"item_id": ids, "feature": pa.array(values, kind), **columns})


def run_import(
    uri: str | Path, store: Store, backbone: str = "net", max_rejected: float = 0.5
) -> tuple[Manifest, dict[str, int]]:
    """Does what the job does, without Ray."""
    plan = plan_import(str(uri), backbone, store)
    step = ImportChunk(plan, store, QUIET)
    batches = [{"id": np.array([number])} for number in range(len(plan.chunks))]
    written = [name for batch in batches for name in step(batch)["name"]]
    return commit_import(plan, written, store, max_rejected)


def stored(store: Store) -> dict[str, list[float]]:
    item_ids, feature_ND = load_features(store)
    assert item_ids.to_pylist() == sorted(item_ids.to_pylist())
    assert feature_ND.dtype == np.float16
    return dict(zip(item_ids.to_pylist(), feature_ND.tolist(), strict=True))


def as_float16(ids: list[str], values: npt.NDArray[Any]) -> dict[str, list[float]]:
    return dict(zip(ids, values.astype(np.float16).tolist(), strict=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table on disk, next to the features directory."""
    path = tmp_path / "vectors.parquet"
    pq.write_table(table_of(IDS, VALUES), path)
    return path


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize(
    "list_of", [lambda n: pa.list_(n, DIM), pa.list_, pa.large_list], ids=["fixed", "list", "large"]
)
@pytest.mark.parametrize("group_rows", [1, 5, ROWS])
def test_imported_features_are_the_tables_in_float16(
    tmp_path: Path,
    number: pa.DataType,
    list_of: Callable[[pa.DataType], pa.DataType],
    group_rows: int,
) -> None:
    table = table_of(IDS, VALUES, list_of(number), title=["another column"] * ROWS)
    pq.write_table(table, tmp_path / "vectors.parquet", row_group_size=group_rows)
    store = Store.at(str(tmp_path / "features"))
    manifest, rejected = run_import(tmp_path / "vectors.parquet", store)
    assert stored(store) == as_float16(IDS, VALUES)
    assert (manifest.rows, rejected) == (ROWS, {})
    identity = manifest.identity
    assert (identity.backbone, identity.dim) == ("net", DIM)
    assert np.dtype(identity.precision).itemsize * 8 == number.bit_width


def test_directory_of_files_is_imported_as_one_table_from_any_store(store: Store) -> None:
    for start in range(0, ROWS, 5):
        stop = min(start + 5, ROWS)
        part = table_of(IDS[start:stop], VALUES[start:stop])
        (store / "vectors").write_table(f"{start}.parquet", part)
    (store / "vectors").write_table("empty.parquet", table_of([], []))
    features = store / "features"
    run_import((store / "vectors").root, features)
    assert stored(features) == as_float16(IDS, VALUES)
    manifest = read_manifest(features)
    for name in manifest.files:
        assert features.read_table(name).schema.equals(features_schema(DIM))


def test_integer_ids_are_imported_as_text(tmp_path: Path) -> None:
    pq.write_table(table_of([7, 12], VALUES[:2]), tmp_path / "vectors.parquet")
    store = Store.at(str(tmp_path / "features"))
    run_import(tmp_path / "vectors.parquet", store)
    assert stored(store) == as_float16(["7", "12"], VALUES[:2])


def test_digest_of_each_row_is_that_of_its_feature(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    manifest, _ = run_import(source, store)
    (part,) = map(store.read_table, manifest.files)
    expected = {
        item: hashlib.sha256(row.astype("<f2").tobytes()).hexdigest()
        for item, row in zip(IDS, VALUES, strict=True)
    }
    rows = zip(part["item_id"].to_pylist(), part["digest"].to_pylist(), strict=True)
    assert dict(rows) == expected


def test_digest_depends_on_the_numbers_and_not_on_row_order_or_row_groups(
    source: Path, tmp_path: Path
) -> None:
    reversed_rows = tmp_path / "reversed.parquet"
    pq.write_table(table_of(IDS[::-1], VALUES[::-1]), reversed_rows, row_group_size=2)
    other = tmp_path / "other.parquet"
    pq.write_table(table_of(IDS, VALUES + 0.1), other)
    digests = [
        run_import(path, Store.at(f"{tmp_path}/{path.stem}-features"))[0].digest
        for path in (source, reversed_rows, other)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("group_rows", "tasks"), [(100, 3), (3000, 3), (9000, 1)])
def test_parts_are_bounded_whatever_the_size_of_row_groups(
    tmp_path: Path, group_rows: int, tasks: int
) -> None:
    ids, values = [str(n) for n in range(9000)], np.arange(18_000.0).reshape(-1, 2) / 18_000
    table = table_of(ids, values, pa.list_(pa.float32()))
    pq.write_table(table, tmp_path / "vectors.parquet", row_group_size=group_rows)
    store = Store.at(str(tmp_path / "features"))
    assert len(plan_import(f"{tmp_path}/vectors.parquet", "net", store).chunks) == tasks
    manifest, _ = run_import(tmp_path / "vectors.parquet", store)
    assert max(manifest.files.values()) <= 4096
    assert len(manifest.files) == 3
    assert stored(store) == as_float16(ids, values)


def test_second_import_of_the_same_table_reads_nothing(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    run_import(source, store)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(source.read_bytes())
    for same in (source, copy):
        assert plan_import(str(same), "net", store).chunks == []


def test_changed_table_replaces_the_one_before(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    before, _ = run_import(source, store)
    ids, values = [*IDS[2:], "new"], np.vstack([VALUES[2:], VALUES[:1]])
    values[3] += 1
    values[4, 0] = np.nan
    pq.write_table(table_of(ids, values), source)
    after, _ = run_import(source, store)
    del ids[4]
    assert stored(store) == as_float16(ids, np.delete(values, 4, axis=0))
    assert after.digest != before.digest
    assert after.identity == before.identity
    pq.write_table(table_of(IDS, VALUES), source)
    assert run_import(source, store)[0] == before
    on_disk = {e.name for e in store.list() if e.name.endswith(".parquet")}
    assert on_disk == before.files.keys()


OTHERS = {
    "name": ("other", table_of(IDS, VALUES)),
    "width": ("net", table_of(IDS, VALUES[:, :2], pa.list_(pa.float32(), 2))),
    "type": ("net", table_of(IDS, VALUES, pa.list_(pa.float64(), DIM))),
}


@pytest.mark.parametrize("case", OTHERS)
def test_features_of_another_network_are_refused(case: str, source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    run_import(source, store)
    backbone, table = OTHERS[case]
    pq.write_table(table, source)
    with pytest.raises(InputError, match=rf"net .*expected {backbone} .*--backbone"):
        run_import(source, store, backbone)
    assert stored(store) == as_float16(IDS, VALUES)


def test_features_that_do_not_fit_into_float16_are_rejected_with_the_reason(tmp_path: Path) -> None:
    values: list[list[float | None]] = [
        [1.0, 2.0],
        [1.0, float("nan")],
        [float("-inf"), 2.0],
        [1.0, None],
        [1e5, 2.0],
        [65_519.0, 2.0],  # rounds to the largest float16, 65,504
        [1e300, 2.0],
    ]
    ids = [f"i{n}" for n in range(len(values))]
    feature = pa.array(values, pa.list_(pa.float64()))
    pq.write_table(pa.table({"item_id": ids, "feature": feature}), tmp_path / "vectors.parquet")
    store = Store.at(str(tmp_path / "features"))
    manifest, reasons = run_import(tmp_path / "vectors.parquet", store, max_rejected=0.8)
    assert stored(store) == {"i0": [1.0, 2.0], "i5": [65_504.0, 2.0]}
    assert reasons == {"feature_not_finite": 3, "feature_beyond_float16": 2}
    (rejected,) = map(store.read_table, manifest.rejected)
    rows = {row["item_id"]: (row["reason"], row["detail"]) for row in rejected.to_pylist()}
    assert rows == {
        "i1": ("feature_not_finite", "found nan"),
        "i2": ("feature_not_finite", "found -inf"),
        "i3": ("feature_not_finite", "found nan"),
        "i4": ("feature_beyond_float16", "found 100000"),
        "i6": ("feature_beyond_float16", "found 1e+300"),
    }


def test_file_without_rows_written_by_pandas_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    empty = pa.table({"item_id": pa.nulls(0), "feature": pa.nulls(0)})
    for name, table in (("a", empty), ("b", table_of(IDS, VALUES)), ("c", empty)):
        pq.write_table(table, tmp_path / "vectors" / f"{name}.parquet")
    store = Store.at(str(tmp_path / "features"))
    run_import(tmp_path / "vectors", store)
    assert stored(store) == as_float16(IDS, VALUES)


def test_import_with_too_many_rejected_rows_changes_nothing(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    run_import(source, store)
    pq.write_table(table_of(["a", "b"], [[1.0] * DIM, [float("nan")] * DIM]), source)
    with pytest.raises(InputError, match=r"1 of 2 rows .*1 feature_not_finite.*--max_rejected"):
        run_import(source, store, max_rejected=0.4)
    assert stored(store) == as_float16(IDS, VALUES)


WRONG: dict[str, tuple[list[pa.Table], str]] = {
    "no rows": ([table_of([], [])], "has no rows"),
    "no ids": ([table_of(IDS, VALUES).drop_columns("item_id")], "lacks the column item_id"),
    "no features": ([table_of(IDS, VALUES).drop_columns("feature")], "lacks the column feature"),
    "whole numbers": (
        [pa.table({"item_id": ["a"], "feature": [[1, 2]]})],
        "feature has the type list<.*int64>; expected lists of float16",
    ),
    "no lists": ([pa.table({"item_id": ["a"], "feature": [1.0]})], "the type double; expected"),
    "an id twice": (
        [table_of(["a", "b", "a", "c", "c"], VALUES[:5])],
        "2 item ids occur more than once in .*, such as a, c",
    ),
    "an id in two files": ([table_of(["a"], VALUES[:1])] * 2, "1 item ids occur more than once"),
    "no id": ([table_of([None, "a"], VALUES[:2])], "1 of 2 values of the column item_id are null"),
    "no feature": (
        [pa.table({"item_id": ["a", "b"], "feature": [[1.0], None]})],
        "1 of 2 values of the column feature are null",
    ),
    "two widths": (
        [table_of(["a", "b", "c"], [[1, 2], [3, 4], [5]], DOUBLES)],
        "feature of c has 1 numbers; expected 2",
    ),
    "two widths in two files": (
        [table_of(["a"], [[1]], DOUBLES), table_of(["b"], [[1, 2]], DOUBLES)],
        "feature of b has 2 numbers; expected 1",
    ),
    "two types": (
        [table_of(["a"], VALUES[:1]), table_of(["b"], VALUES[:1], DOUBLES)],
        "features in float32 and float64; expected one type",
    ),
    "no feature at all": (
        [pa.table({"item_id": ["a"], "feature": pa.nulls(1)})],
        "1 of 1 values of the column feature are null",
    ),
    "no numbers": ([table_of(["a"], [[]], pa.list_(pa.float32()))], "is empty; expected numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_table_is_refused_with_its_path_and_key(case: str, tmp_path: Path) -> None:
    tables, message = WRONG[case]
    (tmp_path / "vectors").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / "vectors" / f"{number}.parquet")
    store = Store.at(str(tmp_path / "features"))
    with pytest.raises(InputError, match=message) as refusal:
        run_import(tmp_path / "vectors", store)
    assert "vectors" in str(refusal.value)
    assert "--table" in str(refusal.value)
    assert not store.exists("_manifest.json")


def test_missing_table_or_csv_is_refused(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    with pytest.raises(InputError, match=r"no table at .*Change --table"):
        run_import(tmp_path / "nothing.parquet", store)
    pacsv.write_csv(pa.table({"item_id": ["a"], "feature": ["[1, 2]"]}), tmp_path / "vectors.csv")
    with pytest.raises(InputError, match=r"--table.* cannot be read as a table"):
        run_import(tmp_path / "vectors.csv", store)
    assert issubclass(SchemaError, InputError)


def test_table_that_changes_during_the_import_is_not_committed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = Store.at(str(tmp_path / "features")), ImportChunk.__call__

    def replaced(step: ImportChunk, batch: Any) -> Any:
        written = read(step, batch)
        pq.write_table(table_of(IDS, VALUES[::-1]), source)
        return written

    monkeypatch.setattr(ImportChunk, "__call__", replaced)
    with pytest.raises(InputError, match="changed while they were read: table"):
        run_import(source, store)
    assert not store.exists("_manifest.json")
