"""Files of a run that say what they were when they were made, and how they get into a run.

A Parquet file carries the SHA-256 of its own bytes, the digits themselves taken as zeros. The hash
and what it is of are one object: no writer and no kill comes between them, and a file with a
flipped bit, wherever it is, is told from a whole one.
"""

import hashlib
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.publication.claims import is_claimed, is_lost, taken
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.storage.store import Store

_SHA256 = b"visrec.sha256"
_BLANK = b"0" * 64
# In Thrift's compact protocol: the key, the header of the next field (text), its length.
_BEFORE = _SHA256 + b"\x18\x40"


def stamped(
    table: pa.Table, marks: Mapping[str, str], to_file: Callable[[pa.Table], bytes]
) -> bytes:
    """The file of a table, with these metadata beside its own, and with its own SHA-256."""
    told = {key.encode(): value.encode() for key, value in marks.items()}
    metadata = {**(table.schema.metadata or {}), **told, _SHA256: _BLANK}
    data = to_file(table.replace_schema_metadata(metadata))
    head, place, rest = data.rpartition(_BEFORE)
    return head + place + hashlib.sha256(data).hexdigest().encode() + rest[len(_BLANK) :]


def is_whole(data: bytes) -> bool:
    """Whether a file is, to the bit, one that `stamped` made."""
    head, place, rest = data.rpartition(_BEFORE)
    found, tail = rest[: len(_BLANK)], rest[len(_BLANK) :]
    blank = hashlib.sha256()
    for part in (head, place, _BLANK, tail):
        blank.update(part)
    return blank.hexdigest().encode() == found


def kept_or_written(
    target: RunSpec, name: str, marks: Mapping[str, str], make: Callable[[], bytes]
) -> tuple[bytes, bool]:
    """The bytes of a run's file: those that are there, where they are whole, else made and written.

    A writer that has lost the run to other inputs, or to retention, writes nothing; one that has
    lost it meanwhile removes what it wrote.

    Args:
        target: the run.
        name: of the file.
        marks: metadata of the file by which it is this one.
        make: makes its bytes.

    Returns:
        The bytes, and whether they were there already.

    Raises:
        ConflictError: the run was lost, or another writer put something else in this place.
    """
    run = target.run
    found, version = _whole(run, name, marks)
    if found is not None:
        return found, True
    made = make()
    if not is_claimed(run, target.inputs):
        raise taken(run)
    written = run.exchange(name, made, version)
    if not is_claimed(run, target.inputs):
        if is_lost(run, target.inputs):
            run.delete([name])
        raise taken(run)
    if not written:
        # Another was faster, with the same lists: files of other inputs have other names.
        found, _ = _whole(run, name, marks)
        if found is None:
            raise taken(run)
    return found or made, False


def _whole(run: Store, name: str, marks: Mapping[str, str]) -> tuple[bytes | None, str | None]:
    """A file's bytes, None where they are damaged or of other inputs; and its version, None where
    there is no file."""
    found = run.read_if_exists(name)
    if found is None:
        return None, None
    data, version = found
    ours = is_whole(data) and has_metadata(pq.read_schema(pa.BufferReader(data)), marks)
    return (data if ours else None), version
