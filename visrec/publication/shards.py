"""The files of a run, each with its own SHA-256 in it, and how they get into the run.

A Parquet file of a run holds the SHA-256 of its own bytes, computed with zeros in place of the 64
digits. Since hash and content are one file, one is never written without the other, and a flipped
bit anywhere is detected.
"""

import hashlib
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from visrec.publication.claims import holds_claim, is_claimed_by_others, lost_claim_error
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.storage.store import Store

_SHA256 = b"visrec.sha256"
_ZEROS = b"0" * 64
# The key as it is in the file, where Thrift's compact protocol lets two bytes follow: the header of
# the next field, which is a string, and its length, 64.
_PREFIX = _SHA256 + b"\x18\x40"


def with_sha256(
    table: pa.Table, metadata: Mapping[str, str], to_file: Callable[[pa.Table], bytes]
) -> bytes:
    """The Parquet file of a table, with metadata and its own SHA-256 added.

    Args:
        table: the table; its metadata are kept.
        metadata: to add.
        to_file: writes the table.
    """
    added = {key.encode(): value.encode() for key, value in metadata.items()}
    all_metadata = {**(table.schema.metadata or {}), **added, _SHA256: _ZEROS}
    data = to_file(table.replace_schema_metadata(all_metadata))
    head, prefix, rest = data.rpartition(_PREFIX)
    return head + prefix + hashlib.sha256(data).hexdigest().encode() + rest[len(_ZEROS) :]


def is_intact(data: bytes) -> bool:
    """Whether a file is, to the bit, one that `with_sha256` made."""
    head, prefix, rest = data.rpartition(_PREFIX)
    stored_hash, tail = rest[: len(_ZEROS)], rest[len(_ZEROS) :]
    zeroed = hashlib.sha256()
    for part in (head, prefix, _ZEROS, tail):
        zeroed.update(part)
    return zeroed.hexdigest().encode() == stored_hash


def parquet_file(table: pa.Table) -> bytes:
    """The Parquet file of a table that only visrec reads."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def keep_or_write(
    spec: RunSpec, name: str, metadata: Mapping[str, str], make: Callable[[], bytes]
) -> tuple[bytes, bool]:
    """Keeps a file of a run if it is intact, and otherwise makes and writes it.

    A writer that does not hold the claim writes nothing. If other inputs or retention take the
    claim while it writes, it removes the file. If the claim is gone altogether, the file is left:
    the same inputs may claim the run again and keep it.

    Args:
        spec: the spec of the run.
        name: the name of the file.
        metadata: the metadata that the file must have to be kept.
        make: makes its bytes.

    Returns:
        The bytes, and whether the file was kept.

    Raises:
        ConflictError: the claim is lost, or another writer wrote something else under this name.
    """
    run = spec.run
    intact, version = _read_intact(run, name, metadata)
    if intact is not None:
        return intact, True
    made = make()
    if not holds_claim(run, spec.inputs_digest):
        raise lost_claim_error(run)
    is_written = run.compare_and_swap(name, made, version)
    if not holds_claim(run, spec.inputs_digest):
        if is_claimed_by_others(run, spec.inputs_digest):
            run.delete([name])
        raise lost_claim_error(run)
    if not is_written:
        # Another writer of the same inputs was faster. Other inputs have other file names, so its
        # file has the same lists.
        intact, _ = _read_intact(run, name, metadata)
        if intact is None:
            raise lost_claim_error(run)
    return intact or made, False


def _read_intact(
    run: Store, name: str, metadata: Mapping[str, str]
) -> tuple[bytes | None, str | None]:
    """The bytes of a file and its version.

    The bytes are None if they are damaged or have other metadata; both are None without a file.
    """
    found = run.read_if_exists(name)
    if found is None:
        return None, None
    data, version = found
    is_usable = is_intact(data) and has_metadata(pq.read_schema(pa.BufferReader(data)), metadata)
    return (data if is_usable else None), version
