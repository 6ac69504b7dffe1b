"""Features made elsewhere: they come back as they were, and what is wrong is named. Without Ray."""

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
from visrec.features.import_table import ImportChunk, commit_import, plan_import
from visrec.features.table import Manifest, load_features, read_manifest
from visrec.storage.schemas import features_schema
from visrec.storage.store import Store

SILENT = SimpleNamespace(add=SimpleNamespace(remote=lambda _: None))
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


def bring_in(
    uri: str | Path, store: Store, name: str = "net", max_rejected: float = 0.5
) -> tuple[Manifest, dict[str, int]]:
    """What the job does, without Ray."""
    plan = plan_import(str(uri), name, store)
    step = ImportChunk(plan, store, SILENT)
    batches = [{"id": np.array([number])} for number in range(len(plan.chunks))]
    written = [name for batch in batches for name in step(batch)["name"]]
    return commit_import(plan, written, store, max_rejected)


def found(store: Store) -> dict[str, list[float]]:
    item_ids, feature_ND = load_features(store)
    assert item_ids.to_pylist() == sorted(item_ids.to_pylist())
    assert feature_ND.dtype == np.float16
    return dict(zip(item_ids.to_pylist(), feature_ND.tolist(), strict=True))


def halves(ids: list[str], values: npt.NDArray[Any]) -> dict[str, list[float]]:
    return dict(zip(ids, values.astype(np.float16).tolist(), strict=True))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A table on disk, beside the directory of the tests' features."""
    path = tmp_path / "vectors.parquet"
    pq.write_table(table_of(IDS, VALUES), path)
    return path


@pytest.mark.parametrize("number", [pa.float16(), pa.float32(), pa.float64()])
@pytest.mark.parametrize(
    "list_of", [lambda n: pa.list_(n, DIM), pa.list_, pa.large_list], ids=["fixed", "list", "large"]
)
@pytest.mark.parametrize("group_rows", [1, 5, ROWS])
def test_features_come_back_in_float16(
    tmp_path: Path,
    number: pa.DataType,
    list_of: Callable[[pa.DataType], pa.DataType],
    group_rows: int,
) -> None:
    table = table_of(IDS, VALUES, list_of(number), title=["another column"] * ROWS)
    pq.write_table(table, tmp_path / "vectors.parquet", row_group_size=group_rows)
    store = Store.at(str(tmp_path / "features"))
    manifest, rejected = bring_in(tmp_path / "vectors.parquet", store)
    assert found(store) == halves(IDS, VALUES)
    assert (manifest.rows, rejected) == (ROWS, {})
    identity = manifest.identity
    assert (identity.backbone, identity.dim) == ("net", DIM)
    assert np.dtype(identity.precision).itemsize * 8 == number.bit_width


def test_a_directory_of_files_is_one_table_on_any_store(store: Store) -> None:
    for start in range(0, ROWS, 5):
        stop = min(start + 5, ROWS)
        part = table_of(IDS[start:stop], VALUES[start:stop])
        (store / "vectors").write_table(f"{start}.parquet", part)
    (store / "vectors").write_table("empty.parquet", table_of([], []))
    features = store / "features"
    bring_in((store / "vectors").root, features)
    assert found(features) == halves(IDS, VALUES)
    manifest = read_manifest(features)
    for name in manifest.files:
        assert features.read_table(name).schema.equals(features_schema(DIM))


def test_integer_ids_become_text(tmp_path: Path) -> None:
    pq.write_table(table_of([7, 12], VALUES[:2]), tmp_path / "vectors.parquet")
    store = Store.at(str(tmp_path / "features"))
    bring_in(tmp_path / "vectors.parquet", store)
    assert found(store) == halves(["7", "12"], VALUES[:2])


def test_each_rows_digest_is_that_of_its_feature(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    manifest, _ = bring_in(source, store)
    (part,) = map(store.read_table, manifest.files)
    wanted = {
        item: hashlib.sha256(row.astype("<f2").tobytes()).hexdigest()
        for item, row in zip(IDS, VALUES, strict=True)
    }
    rows = zip(part["item_id"].to_pylist(), part["digest"].to_pylist(), strict=True)
    assert dict(rows) == wanted


def test_digest_is_the_same_however_the_table_is_cut_and_another_for_other_numbers(
    source: Path, tmp_path: Path
) -> None:
    back = tmp_path / "back.parquet"
    pq.write_table(table_of(IDS[::-1], VALUES[::-1]), back, row_group_size=2)
    other = tmp_path / "other.parquet"
    pq.write_table(table_of(IDS, VALUES + 0.1), other)
    digests = [
        bring_in(path, Store.at(f"{tmp_path}/{path.stem}-features"))[0].digest
        for path in (source, back, other)
    ]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("group_rows", "tasks"), [(100, 3), (3000, 3), (9000, 1)])
def test_parts_are_of_a_bounded_size_for_row_groups_of_any(
    tmp_path: Path, group_rows: int, tasks: int
) -> None:
    ids, values = [str(n) for n in range(9000)], np.arange(18_000.0).reshape(-1, 2) / 18_000
    table = table_of(ids, values, pa.list_(pa.float32()))
    pq.write_table(table, tmp_path / "vectors.parquet", row_group_size=group_rows)
    store = Store.at(str(tmp_path / "features"))
    assert len(plan_import(f"{tmp_path}/vectors.parquet", "net", store).chunks) == tasks
    manifest, _ = bring_in(tmp_path / "vectors.parquet", store)
    assert max(manifest.files.values()) <= 4096
    assert len(manifest.files) == 3
    assert found(store) == halves(ids, values)


def test_a_second_run_does_nothing(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    bring_in(source, store)
    copy = tmp_path / "copy.parquet"
    copy.write_bytes(source.read_bytes())
    for same in (source, copy):
        assert plan_import(str(same), "net", store).chunks == []


def test_a_changed_table_takes_the_place_of_the_one_before(source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    before, _ = bring_in(source, store)
    ids, values = [*IDS[2:], "new"], np.vstack([VALUES[2:], VALUES[:1]])
    values[3] += 1
    values[4, 0] = np.nan
    pq.write_table(table_of(ids, values), source)
    after, _ = bring_in(source, store)
    del ids[4]
    assert found(store) == halves(ids, np.delete(values, 4, axis=0))
    assert after.digest != before.digest
    assert after.identity == before.identity
    pq.write_table(table_of(IDS, VALUES), source)
    assert bring_in(source, store)[0] == before
    on_disk = {e.name for e in store.list() if e.name.endswith(".parquet")}
    assert on_disk == before.files.keys()


OTHERS = {
    "name": ("other", table_of(IDS, VALUES)),
    "width": ("net", table_of(IDS, VALUES[:, :2], pa.list_(pa.float32(), 2))),
    "type": ("net", table_of(IDS, VALUES, pa.list_(pa.float64(), DIM))),
}


@pytest.mark.parametrize("case", OTHERS)
def test_features_of_two_networks_are_never_mixed(case: str, source: Path, tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    bring_in(source, store)
    name, table = OTHERS[case]
    pq.write_table(table, source)
    with pytest.raises(InputError, match=rf"net .*expected {name} .*--name"):
        bring_in(source, store, name)
    assert found(store) == halves(IDS, VALUES)


def test_numbers_that_float16_cannot_hold_are_rejected_with_their_reason(tmp_path: Path) -> None:
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
    manifest, reasons = bring_in(tmp_path / "vectors.parquet", store, max_rejected=0.8)
    assert found(store) == {"i0": [1.0, 2.0], "i5": [65_504.0, 2.0]}
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


def test_a_file_that_pandas_wrote_without_rows_counts_for_nothing(tmp_path: Path) -> None:
    (tmp_path / "vectors").mkdir()
    empty = pa.table({"item_id": pa.nulls(0), "feature": pa.nulls(0)})
    for name, table in (("a", empty), ("b", table_of(IDS, VALUES)), ("c", empty)):
        pq.write_table(table, tmp_path / "vectors" / f"{name}.parquet")
    store = Store.at(str(tmp_path / "features"))
    bring_in(tmp_path / "vectors", store)
    assert found(store) == halves(IDS, VALUES)


def test_too_many_rejected_rows_leave_the_features_as_they_were(
    source: Path, tmp_path: Path
) -> None:
    store = Store.at(str(tmp_path / "features"))
    bring_in(source, store)
    pq.write_table(table_of(["a", "b"], [[1.0] * DIM, [float("nan")] * DIM]), source)
    with pytest.raises(InputError, match=r"1 of 2 rows .*1 feature_not_finite.*--max_rejected"):
        bring_in(source, store, max_rejected=0.4)
    assert found(store) == halves(IDS, VALUES)


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
def test_a_wrong_table_is_refused_and_named(case: str, tmp_path: Path) -> None:
    tables, message = WRONG[case]
    (tmp_path / "vectors").mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / "vectors" / f"{number}.parquet")
    store = Store.at(str(tmp_path / "features"))
    with pytest.raises(InputError, match=message) as refusal:
        bring_in(tmp_path / "vectors", store)
    assert "vectors" in str(refusal.value)
    assert "--table" in str(refusal.value)
    assert not store.exists("_manifest.json")


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path / "features"))
    with pytest.raises(InputError, match=r"no table at .*Change --table"):
        bring_in(tmp_path / "nothing.parquet", store)
    pacsv.write_csv(pa.table({"item_id": ["a"], "feature": ["[1, 2]"]}), tmp_path / "vectors.csv")
    with pytest.raises(InputError, match=r"--table.* cannot be read as a table"):
        bring_in(tmp_path / "vectors.csv", store)
    assert issubclass(SchemaError, InputError)


def test_table_that_changes_while_it_is_read_is_not_committed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, read = Store.at(str(tmp_path / "features")), ImportChunk.__call__

    def replaced(step: ImportChunk, batch: Any) -> Any:
        written = read(step, batch)
        pq.write_table(table_of(IDS, VALUES[::-1]), source)
        return written

    monkeypatch.setattr(ImportChunk, "__call__", replaced)
    with pytest.raises(InputError, match="changed while they were read: table"):
        bring_in(source, store)
    assert not store.exists("_manifest.json")
