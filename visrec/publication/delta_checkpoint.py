"""Checkpoints of a Delta log: what a version holds, in one file from which readers start."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from visrec.publication.records import JsonObject
from visrec.storage.store import Store

CHECKPOINT_EVERY = 10  # versions, as in Spark
_KEPT = 100  # versions; the runs of older ones are mostly gone, too
_MAPS = ("options", "partitionValues", "configuration")  # fields that are maps of texts


def _struct(**fields: pa.DataType) -> pa.DataType:
    return pa.struct(list(fields.items()))


_TEXT, _NUMBER, _FLAG = pa.string(), pa.int64(), pa.bool_()
_TEXT_MAP = pa.map_(_TEXT, _TEXT)
_SCHEMA = pa.schema(
    {
        "protocol": _struct(minReaderVersion=pa.int32(), minWriterVersion=pa.int32()),
        "metaData": _struct(
            id=_TEXT,
            format=_struct(provider=_TEXT, options=_TEXT_MAP),
            schemaString=_TEXT,
            partitionColumns=pa.list_(_TEXT),
            configuration=_TEXT_MAP,
            createdTime=_NUMBER,
        ),
        "add": _struct(
            path=_TEXT,
            partitionValues=_TEXT_MAP,
            size=_NUMBER,
            modificationTime=_NUMBER,
            dataChange=_FLAG,
            stats=_TEXT,
        ),
        "remove": _struct(path=_TEXT, deletionTimestamp=_NUMBER, dataChange=_FLAG),
        "txn": _struct(appId=_TEXT, version=_NUMBER, lastUpdated=_NUMBER),
    }
)


def commit_name(version: int) -> str:
    """The file of a commit in the log."""
    return f"{version:020}.json"


def write_checkpoint(log: Store, version: int, actions: Sequence[JsonObject]) -> None:
    """Writes what a version holds, and removes checkpoints that are too old.

    A process that is killed between the two files leaves a valid log: readers then start from the
    checkpoint before.

    Args:
        log: the folder of the log.
        version: the last one.
        actions: protocol, metadata and all files.
    """
    table = pa.Table.from_pylist([_with_pairs(action) for action in actions], _SCHEMA)
    log.write_table(_checkpoint_name(version), table)
    log.write("_last_checkpoint", json.dumps({"version": version, "size": len(table)}).encode())
    log.delete(map(_checkpoint_name, old_versions(version)))


def old_versions(version: int) -> range:
    """The versions that a checkpoint makes too old."""
    return range(max(0, version - _KEPT - CHECKPOINT_EVERY), max(0, version - _KEPT))


def _checkpoint_name(version: int) -> str:
    return f"{version:020}.checkpoint.parquet"


def _with_pairs(value: Any) -> Any:  # any JSON
    """The value with maps as lists of pairs, as Arrow takes them."""
    if not isinstance(value, dict):
        return value
    return {
        key: list(each.items()) if key in _MAPS else _with_pairs(each)
        for key, each in value.items()
    }
