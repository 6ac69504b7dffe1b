"""Claim, manifest and pointer: the same after they were written and read, and refused otherwise."""

from typing import Any

import pytest

from tests.publication.runs import PASSED, draft_manifest
from visrec.errors import InputError
from visrec.publication.claims import Claim
from visrec.publication.manifest import ForcedPublication, RunManifest, ShardFile
from visrec.publication.pointer import Pointer
from visrec.publication.records import read_record
from visrec.storage.store import to_json

RECORDS: dict[str, Claim | Pointer | RunManifest] = {
    "claim": Claim(inputs_digest="b", lost=("a",), state="sealed"),
    "pointer": Pointer(
        run_id="r2",
        manifest="run=r2/_manifest.json",
        manifest_sha256="c",
        cutoff_timestamp=10.5,
        previous_run_id="r1",
        published_at="now",
        rolled_back=("r0",),
        sequence=3,
        removing={"r-1": 2},
        removals=2,
    ),
    "manifest": draft_manifest(
        files={"part-0": ShardFile(1, 2, "3")},
        gates=(PASSED,),
        forced=ForcedPublication("a reason", ("overlap",)),
        cutoff_timestamp=10,
    ),
}


def read(data: dict[str, Any], kind: type[Claim] | type[Pointer] | type[RunManifest]) -> object:
    return read_record(to_json(data), "s3://shop/record", kind.from_dict, "the remedy.")


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_the_same_after_it_was_written_and_read(name: str) -> None:
    record = RECORDS[name]
    assert read(record.to_dict(), type(record)) == record


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize(
    "change",
    [{"version": None}, {"unknown": 1}],
    ids=["no version", "unknown field"],
)
def test_record_without_a_version_or_with_an_unknown_field_is_refused(
    name: str, change: dict[str, Any]
) -> None:
    record = RECORDS[name]
    with pytest.raises(InputError, match=r"record is damaged: the remedy\."):
        read({**record.to_dict(), **change}, type(record))


@pytest.mark.parametrize("name", RECORDS)
def test_record_of_another_version_is_not_called_damaged(name: str) -> None:
    """A newer version of visrec wrote it, perhaps with other fields; it must not be removed."""
    record = RECORDS[name]
    with pytest.raises(
        InputError, match=r"record has version 2 .* expected version 1, .* wrote it"
    ):
        read({**record.to_dict(), "version": 2, "unknown": 1}, type(record))


@pytest.mark.parametrize("name", RECORDS)
def test_record_without_a_required_field_is_refused(name: str) -> None:
    record = RECORDS[name]
    field = "inputs_digest" if name == "claim" else "run_id"
    data = {key: value for key, value in record.to_dict().items() if key != field}
    with pytest.raises(InputError, match="record is damaged"):
        read(data, type(record))


@pytest.mark.parametrize(
    ("field", "value"),
    [("run_id", 3), ("sequence", "3"), ("removing", {"r": "1"}), ("cutoff_timestamp", "2026")],
)
def test_pointer_with_a_field_of_the_wrong_type_is_refused(field: str, value: object) -> None:
    with pytest.raises(InputError, match="record is damaged"):
        read({**RECORDS["pointer"].to_dict(), field: value}, Pointer)


def test_manifest_with_a_changed_field_is_refused() -> None:
    data = RECORDS["manifest"].to_dict()
    with pytest.raises(InputError, match="record is damaged"):
        read({**data, "rows": data["rows"] + 1}, RunManifest)
