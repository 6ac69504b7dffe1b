"""Fingerprints as files of a run: written next to its lists, read by the next night.

Scores have the same bits only under the same versions of the libraries that compute them. So each
file of lists records the versions that made it, and the file of its queries' fingerprints repeats
them, even if a later start of the run, under other versions, kept the lists and made only the
fingerprints.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import version

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.publication.list_tables import COLD
from visrec.publication.run_spec import RunSpec
from visrec.publication.shards import keep_or_write, parquet_file, with_sha256
from visrec.recommend.fingerprints import query_fingerprints
from visrec.recommend.inputs import ScoringData
from visrec.recommend.queries import Queries

COLUMNS_VERSION = {"visrec.fingerprints": "3"}  # metadata of each file, says what its columns mean


def write_item_fingerprints(data: ScoringData, spec: RunSpec) -> tuple[str, str]:
    """Writes the fingerprints of all items; returns the file's name and SHA-256."""
    columns = {
        "item_id": data.item_ids,
        "fingerprint": data.fingerprint_N,
        "available": data.available_N,
    }
    versions = library_versions()
    return _write(spec, spec.item_fingerprints, versions, lambda: pa.table(columns))


def write_query_fingerprints(
    data: ScoringData,
    read: Callable[[], Queries],
    spec: RunSpec,
    shard: int,
    versions: Mapping[str, str],
) -> tuple[str, str]:
    """Writes the fingerprints of a shard's queries, unless they are there.

    Args:
        data: the items.
        read: reads the queries.
        spec: the run.
        shard: its number.
        versions: file metadata with the versions that made the shard's lists.

    Returns:
        The file's name and SHA-256.
    """

    def table() -> pa.Table:
        queries = read()
        fingerprint_U = fingerprint_queries(data, queries)
        columns = {spec.id_column: queries.query_ids, "fingerprint": fingerprint_U}
        return pa.table({**columns, COLD: queries.cold_U})

    return _write(spec, spec.query_fingerprints(shard), versions, table)


def fingerprint_queries(data: ScoringData, queries: Queries) -> npt.NDArray[np.uint64]:
    """(U,) the fingerprints of queries."""
    flags_U2 = np.stack([queries.cold_U, queries.trained_U >= 0], axis=1)
    lists = (queries.profiles, queries.blocked)
    return query_fingerprints(data.fingerprint_N, flags_U2, *lists)


@cache
def library_versions() -> dict[str, str]:
    """File metadata with the versions that decide the bits of a score."""
    return {f"visrec.{name}": version(name) for name in ("visrec", "torch", "numpy")}


def versions_in(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    """The versions that made a file, from its metadata; empty strings where it names none."""
    return {name: metadata.get(name.encode(), b"").decode() for name in library_versions()}


def _write(
    spec: RunSpec, name: str, versions: Mapping[str, str], table: Callable[[], pa.Table]
) -> tuple[str, str]:
    metadata = {**spec.metadata, **versions, **COLUMNS_VERSION}
    content, _ = keep_or_write(
        spec, name, metadata, lambda: with_sha256(table(), metadata, parquet_file)
    )
    return name, hashlib.sha256(content).hexdigest()
