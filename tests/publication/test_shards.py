"""Files that carry their own SHA-256, and how they get into a run."""

from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import ConflictError
from visrec.publication.claims import claim_run
from visrec.publication.list_tables import lists_file
from visrec.publication.run_spec import RunSpec
from visrec.publication.shards import is_intact, keep_or_write, with_sha256
from visrec.storage.store import Store

METADATA = {"visrec.inputs": "a" * 16}
NAME = "part-00000.parquet"


def file_of(item: str) -> bytes:
    return with_sha256(pa.table({"item_id": [item]}), METADATA, lists_file)


@pytest.fixture
def spec(store: Store) -> RunSpec:
    """A claimed run."""
    claim_run(store, METADATA["visrec.inputs"])
    return RunSpec(store, 1, 1, "nested", "user_to_item", METADATA)


def never() -> bytes:
    raise AssertionError("the file was made again")


def write(spec: RunSpec, make: Callable[[], bytes]) -> tuple[bytes, bool]:
    return keep_or_write(spec, NAME, METADATA, make)


# ---------------------------------------------------------------------------------------- the file


def test_file_with_its_sha256_is_intact_and_keeps_its_metadata() -> None:
    table = pa.table({"item_id": ["i"]}).replace_schema_metadata({"own": "1"})
    data = with_sha256(table, METADATA, lists_file)
    assert is_intact(data)
    found = pq.read_schema(pa.BufferReader(data)).metadata
    assert found.pop(b"visrec.sha256").isalnum()
    assert found == {b"own": b"1", b"visrec.inputs": b"a" * 16}


def test_every_flipped_bit_is_detected() -> None:
    data = file_of("i")
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        assert not is_intact(bytes(flipped)), position


# ----------------------------------------------------------------------------------------- the run


def test_missing_file_is_written_and_an_intact_one_is_kept(spec: RunSpec) -> None:
    assert write(spec, lambda: file_of("i")) == (file_of("i"), False)
    assert write(spec, never) == (file_of("i"), True)


def test_damaged_file_and_file_with_other_metadata_are_written_again(spec: RunSpec) -> None:
    table = pa.table({"item_id": ["i"]})
    for data in (file_of("i")[:-1], with_sha256(table, {"visrec.inputs": "b"}, lists_file)):
        spec.run.write(NAME, data)
        assert write(spec, lambda: file_of("i")) == (file_of("i"), False)
        assert spec.run.read(NAME) == file_of("i")


def test_file_of_a_faster_writer_of_the_same_inputs_is_used(spec: RunSpec) -> None:
    def make() -> bytes:
        spec.run.write(NAME, file_of("faster"))
        return file_of("slower")

    assert write(spec, make) == (file_of("faster"), False)


def test_writer_that_lost_its_claim_writes_nothing(spec: RunSpec) -> None:
    def make() -> bytes:
        claim_run(spec.run, "b" * 16)
        return file_of("i")

    with pytest.raises(ConflictError, match="for lists of other inputs"):
        write(spec, make)
    assert not spec.run.exists(NAME)


def test_writer_that_loses_its_claim_while_it_writes_removes_the_file(
    spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = Store.create

    def create_and_lose_the_claim(store: Store, name: str, data: bytes) -> bool:
        is_first = create(store, name, data)
        monkeypatch.setattr(Store, "create", create)
        claim_run(spec.run, "b" * 16)
        return is_first

    monkeypatch.setattr(Store, "create", create_and_lose_the_claim)
    with pytest.raises(ConflictError, match="for lists of other inputs"):
        write(spec, lambda: file_of("i"))
    assert not spec.run.exists(NAME)
