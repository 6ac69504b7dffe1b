"""Files of a run: intact ones are kept, others are made, and none without the run's claim."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import ConflictError
from visrec.publication.claims import CLAIM, claim_run
from visrec.publication.run_spec import RunSpec
from visrec.publication.shards import is_intact, keep_or_write, with_sha256
from visrec.storage.store import Store

TABLE = pa.table({"user_id": ["a", "b"]}).replace_schema_metadata({"own": "kept"})
NAME, METADATA = "part-00000-of-00001-a.parquet", {"visrec.shard": "0"}


def to_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def a_file(shard: str = "0") -> bytes:
    return with_sha256(TABLE, {"visrec.shard": shard}, to_parquet)


def never() -> bytes:
    raise AssertionError("made although an intact file is there")


@pytest.fixture
def spec(tmp_path: Path) -> RunSpec:
    """A run that is claimed for the inputs `a`."""
    run = Store.at(str(tmp_path / "run=1"))
    claim_run(run, "a")
    return RunSpec(run, 1, 10, "nested", "user_to_item", {"visrec.inputs": "a"})


def test_file_has_its_rows_and_both_kinds_of_metadata() -> None:
    table = pq.read_table(pa.BufferReader(a_file()))
    assert table.to_pylist() == TABLE.to_pylist()
    assert table.schema.metadata[b"own"] == b"kept"
    assert table.schema.metadata[b"visrec.shard"] == b"0"


def test_file_is_intact_until_any_byte_changes() -> None:
    data = a_file()
    assert is_intact(data)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert not is_intact(bytes(damaged)), at


@pytest.mark.parametrize("data", [b"", b"visrec.sha256", to_parquet(TABLE), a_file()[:-1]])
def test_file_without_its_sha256_or_cut_short_is_not_intact(data: bytes) -> None:
    assert not is_intact(data)


def test_missing_file_is_made_and_written(spec: RunSpec) -> None:
    assert keep_or_write(spec, NAME, METADATA, a_file) == (a_file(), False)
    assert spec.run.read(NAME) == a_file()


def test_intact_file_is_kept_and_not_made_again(spec: RunSpec) -> None:
    spec.run.write(NAME, a_file())
    assert keep_or_write(spec, NAME, METADATA, never) == (a_file(), True)


@pytest.mark.parametrize(
    "found", [b"", a_file()[:-1], a_file("1")], ids=["empty", "cut short", "other metadata"]
)
def test_file_that_is_not_the_expected_one_is_replaced(spec: RunSpec, found: bytes) -> None:
    spec.run.write(NAME, found)
    assert keep_or_write(spec, NAME, METADATA, a_file) == (a_file(), False)
    assert spec.run.read(NAME) == a_file()


def test_nothing_is_written_if_the_claim_was_lost_before(spec: RunSpec) -> None:
    claim_run(spec.run, "b")
    with pytest.raises(ConflictError, match="--run_id"):
        keep_or_write(spec, NAME, METADATA, a_file)
    assert {entry.name for entry in spec.run.list()} == {CLAIM}


class LosesClaimOnWrite(Store):
    """A run that other inputs claim while a shard is written."""

    def compare_and_swap(self, name: str, data: bytes, version: str | None) -> bool:
        written = super().compare_and_swap(name, data, version)
        if name == NAME:
            claim_run(Store(self.root), "b")
        return written


def test_file_is_removed_again_if_the_claim_is_lost_while_it_is_written(spec: RunSpec) -> None:
    lost = RunSpec(LosesClaimOnWrite(spec.run.root), 1, 10, "nested", "user_to_item", spec.metadata)
    with pytest.raises(ConflictError, match="--run_id"):
        keep_or_write(lost, NAME, METADATA, a_file)
    assert {entry.name for entry in spec.run.list()} == {CLAIM}


def other_writer(spec: RunSpec, data: bytes) -> Callable[[], bytes]:
    """Makes the file, but another writer puts `data` into its place first."""

    def make() -> bytes:
        spec.run.write(NAME, data)
        return a_file()

    return make


def test_equal_file_of_a_faster_writer_is_taken(spec: RunSpec) -> None:
    assert keep_or_write(spec, NAME, METADATA, other_writer(spec, a_file()))[0] == a_file()


def test_different_file_of_a_faster_writer_is_a_conflict(spec: RunSpec) -> None:
    with pytest.raises(ConflictError):
        keep_or_write(spec, NAME, METADATA, other_writer(spec, a_file("1")))
    assert spec.run.read(NAME) == a_file("1")
