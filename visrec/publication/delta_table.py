"""The Delta table at the root of the recommendations: `_delta_log/` names the published files.

The format is that of https://github.com/delta-io/delta/blob/master/PROTOCOL.md. A commit is a file
of JSON lines, `_delta_log/<version>.json`, and belongs to whoever creates it. visrec writes the log
itself, because a commit has to pass through the same client of the store as everything else that is
published: the same credentials, certificates and proxies, and the same handling of a write whose
response was lost. Each commit replaces the whole table, so the last one alone says what the table
holds.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from urllib.parse import quote

import pyarrow as pa

from visrec.errors import InputError
from visrec.publication.delta_checkpoint import (
    CHECKPOINT_EVERY,
    commit_name,
    old_versions,
    write_checkpoint,
)
from visrec.publication.records import JsonObject
from visrec.publication.table_content import TableContent
from visrec.storage.store import Store

DELTA_LOG = "_delta_log"
_IDENTITY = "visrec"  # the key of a commit's `commitInfo` that says which publication it is
_PROTOCOL = {"minReaderVersion": 1, "minWriterVersion": 2}
# Delta's VACUUM removes what the table does not name: the runs that a rollback can go back to.
_CONFIGURATION = {"delta.deletedFileRetentionDuration": "interval 36500 days"}
_PRIMITIVES = {
    pa.string(): "string",
    pa.float32(): "float",
    pa.int32(): "integer",
    pa.bool_(): "boolean",
}


@dataclass(frozen=True)
class _State:
    """What the last version holds.

    Attributes:
        version: -1 without a table.
        identity: the identity of the publication that it shows; None if another writer wrote it.
        metadata: the table's id and the time of its creation.
        sizes: the sizes of its files, by path as the log has them.
    """

    version: int
    identity: JsonObject | None
    metadata: Mapping[str, object]
    sizes: Mapping[str, int]


class DeltaTable:
    """The table as its log was read.

    Args:
        recommendations: where the runs are.

    Raises:
        InputError: the log is damaged, or is not one that visrec began.
    """

    def __init__(self, recommendations: Store) -> None:
        self._log = recommendations / DELTA_LOG
        self._state = _read_state(self._log)

    def shows(self, content: TableContent) -> bool:
        return self._state.identity == content.identity

    def commit(self, content: TableContent) -> None:
        version = self._state.version + 1
        metadata = {
            **self._state.metadata,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps(_struct(content.schema)),
            "partitionColumns": [],
            "configuration": _CONFIGURATION,
        }
        added: list[JsonObject] = [{"add": add} for add in _adds(content)]
        kept = {entry["add"]["path"] for entry in added}
        actions = [
            {"commitInfo": _commit_info(content)},
            *([{"protocol": _PROTOCOL}] if version == 0 else []),
            {"metaData": metadata},
            *_removals({path: n for path, n in self._state.sizes.items() if path not in kept}),
            *added,
        ]
        lines = "".join(json.dumps(action, separators=(",", ":")) + "\n" for action in actions)
        if not self._log.create(commit_name(version), lines.encode()):
            return  # another process has committed this version
        if version and version % CHECKPOINT_EVERY == 0:
            state: list[JsonObject] = [{"protocol": _PROTOCOL}, {"metaData": metadata}, *added]
            write_checkpoint(self._log, version, state)
            self._log.delete(map(commit_name, old_versions(version)))


def _commit_info(content: TableContent) -> JsonObject:
    return {
        "timestamp": _now_ms(),
        "operation": "WRITE",
        "operationParameters": {"mode": "Overwrite", "partitionBy": "[]"},
        "engineInfo": f"visrec/{version_of('visrec')}",
        _IDENTITY: content.identity,
    }


def _adds(content: TableContent) -> Iterator[JsonObject]:
    """The files of the run.

    Users are assigned to files by a hash, so minimum and maximum of a column would let no reader
    skip a file: the number of rows is all there is to say.
    """
    for name, file in sorted(content.manifest.files.items()):
        yield {
            "path": quote(content.path(name), safe="/="),
            "partitionValues": {},
            "size": file.bytes,
            "modificationTime": content.completed_ms,
            "dataChange": True,
            "stats": json.dumps({"numRecords": file.rows}),
        }


def _removals(sizes: Mapping[str, int]) -> Iterator[JsonObject]:
    for path, size in sorted(sizes.items()):
        yield {
            "remove": {
                "path": path,
                "deletionTimestamp": _now_ms(),
                "dataChange": True,
                "extendedFileMetadata": True,
                "partitionValues": {},
                "size": size,
            }
        }


def _read_state(log: Store) -> _State:
    """The state after the last version.

    What other writers committed since visrec's last commit is replayed, so that the next commit
    removes it.
    """
    versions = sorted(
        int(entry.name[:-5])
        for entry in log.list()
        if entry.name.endswith(".json") and entry.name[:-5].isdecimal()
    )
    if not versions:
        return _State(-1, None, {"id": str(uuid.uuid4()), "createdTime": _now_ms()}, {})
    foreign: list[list[JsonObject]] = []
    for version in reversed(versions):
        actions = _read_commit(log, version)
        identity = _first(actions, "commitInfo").get(_IDENTITY)
        if identity is not None:
            metadata = _first(actions, "metaData")
            return _State(
                versions[-1],
                None if foreign else identity,
                {key: metadata.get(key) for key in ("id", "createdTime")},
                _replay([actions, *reversed(foreign)]),
            )
        if _first(actions, "protocol") or _first(actions, "metaData"):
            break
        foreign.append(actions)
    raise InputError(
        f"{log.root} has the log of a Delta table that visrec did not write, or that another "
        "writer has altered; expected one that only visrec writes. Remove this folder and run the "
        "job again: it makes the table again, and no list is lost.",
        path=log.root,
        key="publish.table",
    )


def _read_commit(log: Store, version: int) -> list[JsonObject]:
    """The actions of a version.

    Raises:
        InputError: the file is damaged.
    """
    data = log.read(commit_name(version))
    try:
        actions = [json.loads(line) for line in data.splitlines() if line.strip()]
        if not all(isinstance(each, dict) for each in actions):
            raise TypeError("found a line that is not an object")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{log.uri(commit_name(version))} is damaged ({error}); expected a commit of a Delta "
            f"table. Remove {log.root} and run the job again: it makes the table again, and no "
            "list is lost.",
            path=log.uri(commit_name(version)),
        ) from error
    return actions


def _first(actions: list[JsonObject], kind: str) -> JsonObject:
    """The first action of a kind; empty if there is none."""
    return next((action[kind] for action in actions if kind in action), {})


def _replay(commits: list[list[JsonObject]]) -> dict[str, int]:
    """The sizes of the files that the table holds after these commits, by path."""
    sizes: dict[str, int] = {}
    for actions in commits:
        for action in actions:
            if "remove" in action:
                sizes.pop(action["remove"]["path"], None)
            elif "add" in action:
                sizes[action["add"]["path"]] = action["add"]["size"]
    return sizes


def _struct(fields: "pa.Schema | pa.StructType") -> JsonObject:
    """Columns as the log describes them."""
    return {
        "type": "struct",
        "fields": [
            {
                "name": field.name,
                "type": _type(field.type),
                "nullable": field.nullable,
                "metadata": {},
            }
            for field in fields
        ],
    }


def _type(kind: pa.DataType) -> object:
    if pa.types.is_list(kind):
        element = {"elementType": _struct(kind.value_type), "containsNull": True}
        return {"type": "array", **element}
    return _PRIMITIVES[kind]


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)
