"""The Iceberg table next to the runs: `_iceberg/metadata/` names the published files.

It is a table of a file system without a catalog, as Hadoop's catalog keeps them
(https://iceberg.apache.org/spec/#file-system-tables): `v<version>.metadata.json` belongs to whoever
creates it, and `version-hint.text` names the version from which readers start. pyiceberg makes the
snapshots; it has no such catalog, so the two files are written here, by conditional writes. The
files with lists are named by absolute URIs. They have no field ids: the table has a name mapping.

Readers take the snapshot of the hint, or of a version after it. So `shows` is false until the hint
names the last version.
"""

import importlib.util
import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from visrec.errors import InputError
from visrec.publication.list_tables import SCHEMAS
from visrec.publication.records import JsonObject
from visrec.publication.table_content import TableContent, absolute_uri
from visrec.storage.failures import storage_errors
from visrec.storage.store import Store, parse_json, to_json

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

ICEBERG = "_iceberg"
HINT = "metadata/version-hint.text"
_KEPT = 100  # snapshots, and versions of the metadata
_IDENTITY = "visrec."  # prefix of the snapshot summary keys that identify a publication
# The ids of all columns of all layouts and kinds. A column that is in two layouts has one id: older
# snapshots are read right after the layout has changed.
_FIELD_IDS = {
    "user_id": 1,
    "items": 2,
    "items.element": 3,
    "items.element.item_id": 4,
    "items.element.score": 5,
    "items.element.because_item_id": 6,
    "cold": 7,
    "rank": 8,
    "item_id": 9,
    "score": 10,
    "because_item_id": 11,
    "similar_item_id": 12,
}
_SCHEMA_IDS = {key: number for number, key in enumerate(SCHEMAS)}
_PRIMITIVES = {
    pa.string(): "string",
    pa.float32(): "float",
    pa.int32(): "int",
    pa.bool_(): "boolean",
}


class IcebergTable:
    """The table's metadata as they were read.

    Args:
        recommendations: where the runs are.

    Raises:
        InputError: pyiceberg is not installed, or the metadata are damaged.
    """

    def __init__(self, recommendations: Store) -> None:
        if importlib.util.find_spec("pyiceberg") is None:
            raise InputError(
                f"The lists at {recommendations.root} are, or are to be, an Iceberg table "
                "(--publish.table iceberg), and pyiceberg is not installed; expected it where jobs "
                "that publish, roll back or remove runs start: pip install 'visrec[iceberg]'.",
                key="publish.table",
            )
        self._store = recommendations / ICEBERG
        hint = self._store.read_if_exists(HINT)
        self._hint = _parse_hint(self._store, hint)
        self._hint_version = hint and hint[1]
        # This version exists if a process was killed before it moved the hint.
        self._is_behind = self._store.exists(_name(self._hint + 1))
        self._metadata = _read_metadata(self._store, self._hint) if self._hint else None
        if self._metadata is not None:
            _parse(self._store, self._metadata)  # damage is found before the pointer moves

    def shows(self, content: TableContent) -> bool:
        if self._is_behind or self._metadata is None:
            return False
        summary = _current_summary(self._metadata)
        return all(summary.get(key) == value for key, value in _identity(content).items())

    def commit(self, content: TableContent) -> None:
        version = self._hint + 1
        if not self._is_behind:
            metadata = self._metadata or _new_metadata(absolute_uri(self._store, ""))
            with storage_errors("write", self._store.root):
                data = _next_metadata(self._store, _for_run(metadata, content), content)
            self._store.create(_name(version), data)
        # Another process may have created it; an existing version is the table's last one.
        self._store.compare_and_swap(HINT, str(version).encode(), self._hint_version)
        if version > _KEPT:
            self._store.delete([_name(version - _KEPT)])


def _parse_hint(store: Store, found: tuple[bytes, str] | None) -> int:
    """The version that the hint names; 0 without a hint."""
    if found is None:
        return 0
    try:
        return int(found[0])
    except ValueError as error:
        raise _damaged(store, HINT) from error


def _read_metadata(store: Store, version: int) -> JsonObject:
    found = store.read_if_exists(_name(version))
    if found is None:
        raise _damaged(store, _name(version))
    metadata = parse_json(found[0], store.uri(_name(version)))
    if not isinstance(metadata, dict) or not isinstance(metadata.get("snapshots"), list):
        raise _damaged(store, _name(version))
    return metadata


def _current_summary(metadata: JsonObject) -> JsonObject:
    """What the current snapshot says of itself; empty if another writer made it."""
    current = metadata.get("current-snapshot-id")
    snapshots = [each for each in metadata["snapshots"] if each["snapshot-id"] == current]
    return snapshots[0].get("summary", {}) if snapshots else {}


def _damaged(store: Store, name: str) -> InputError:
    return InputError(
        f"{store.uri(name)} is missing or damaged; expected what visrec wrote. Remove {store.root} "
        "and run the job again: it makes the table again, and no list is lost.",
        path=store.uri(name),
    )


def _identity(content: TableContent) -> dict[str, str]:
    return {f"{_IDENTITY}{key}": str(value) for key, value in content.identity.items()}


def _for_run(metadata: JsonObject, content: TableContent) -> JsonObject:
    """The metadata with the columns of a run, and without old snapshots."""
    snapshots = metadata.get("snapshots", [])[1 - _KEPT :]
    ids = {snapshot["snapshot-id"] for snapshot in snapshots}
    log = [entry for entry in metadata.get("snapshot-log", []) if entry["snapshot-id"] in ids]
    return {
        **metadata,
        "current-schema-id": _SCHEMA_IDS[content.manifest.kind, content.manifest.layout],
        "snapshots": snapshots,
        "snapshot-log": log,
    }


def _new_metadata(location: str) -> JsonObject:
    """Metadata of a table without a snapshot, which has the schemas of all layouts and kinds."""
    return {
        "format-version": 2,
        "table-uuid": str(uuid.uuid4()),
        "location": location,
        "last-sequence-number": 0,
        "last-updated-ms": int(datetime.now(UTC).timestamp() * 1000),
        "last-column-id": max(_FIELD_IDS.values()),
        "schemas": [
            {"type": "struct", "schema-id": number, "fields": list(_fields(SCHEMAS[key]))}
            for key, number in _SCHEMA_IDS.items()
        ],
        "partition-specs": [{"spec-id": 0, "fields": []}],
        "default-spec-id": 0,
        "last-partition-id": 999,
        "sort-orders": [{"order-id": 0, "fields": []}],
        "default-sort-order-id": 0,
        "properties": {
            "schema.name-mapping.default": json.dumps(_name_mapping()),
            # Iceberg must not remove files of the runs that a rollback can go back to.
            "gc.enabled": "false",
        },
    }


def _fields(fields: "pa.Schema | pa.StructType", prefix: str = "") -> Iterator[JsonObject]:
    """Columns as Iceberg describes them."""
    for field in fields:
        path = f"{prefix}{field.name}"
        yield {
            "id": _FIELD_IDS[path],
            "name": field.name,
            "required": not field.nullable,
            "type": _type(field.type, path),
        }


def _type(kind: pa.DataType, path: str) -> object:
    if not pa.types.is_list(kind):
        return _PRIMITIVES[kind]
    element = f"{path}.element"
    return {
        "type": "list",
        "element-id": _FIELD_IDS[element],
        "element-required": False,
        "element": {"type": "struct", "fields": list(_fields(kind.value_type, f"{element}."))},
    }


def _name_mapping(prefix: str = "") -> list[JsonObject]:
    """The field ids by name, nested as the columns are."""
    mapping = []
    for path, number in _FIELD_IDS.items():
        name = path.removeprefix(prefix)
        if path.startswith(prefix) and "." not in name:
            below = _name_mapping(f"{path}.")
            mapping.append({"field-id": number, "names": [name], "fields": below})
    return mapping


def _next_metadata(store: Store, metadata: JsonObject, content: TableContent) -> bytes:
    """The metadata after one more snapshot, in which the run replaces whatever there was."""
    from pyiceberg.table import Transaction

    table = _open_table(store, metadata)
    transaction = Transaction(table)
    summary = _identity(content)
    overwrite = transaction.update_snapshot(snapshot_properties=summary).overwrite()
    snapshot = table.current_snapshot()
    for manifest in snapshot.manifests(table.io) if snapshot else []:
        for entry in manifest.fetch_manifest_entry(table.io):
            overwrite.delete_data_file(entry.data_file)
    for name, file in sorted(content.manifest.files.items()):
        overwrite.append_data_file(_data_file(content.uri(name), file.rows, file.bytes))
    overwrite.commit()
    data: str = transaction.table_metadata.model_dump_json()
    return to_json(json.loads(data))


def _open_table(store: Store, metadata: JsonObject) -> "Table":
    """The table in pyiceberg, which takes the store's own client of S3."""
    from pyiceberg.catalog.noop import NoopCatalog
    from pyiceberg.io.pyarrow import PyArrowFileIO
    from pyiceberg.table import Table

    files: FileIO = PyArrowFileIO()
    if store.is_s3:
        filesystem = store.arrow_filesystem()[0]
        files.fs_by_scheme = lambda _scheme, _host=None: filesystem
    return Table(
        identifier=(ICEBERG,),
        metadata=_parse(store, metadata),
        metadata_location="",
        io=files,
        catalog=NoopCatalog(ICEBERG),
    )


def _parse(store: Store, metadata: JsonObject) -> "TableMetadata":
    """The metadata in pyiceberg.

    Raises:
        InputError: they are damaged.
    """
    from pyiceberg.exceptions import ValidationError
    from pyiceberg.table.metadata import TableMetadataUtil

    try:
        return TableMetadataUtil.parse_obj(metadata)
    except (ValueError, ValidationError) as error:
        raise _damaged(store, "metadata/*.metadata.json") from error


def _data_file(uri: str, rows: int, size: int) -> "DataFile":
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=uri,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=rows,
        file_size_in_bytes=size,
    )


def _name(version: int) -> str:
    return f"metadata/v{version}.metadata.json"
