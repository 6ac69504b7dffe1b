"""Pictures of users: a directory or prefix of files, or Parquet with their bytes or their URIs."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby, islice
from threading import local
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError, StorageError
from visrec.ids import TEXT
from visrec.paths import escape_non_utf8
from visrec.sources.formats import (
    HEAD_BYTES,
    detect_format,
    item_id_from_name,
    other_extension,
)
from visrec.sources.http import PARALLEL_REQUESTS, Answer, fetch, hide_secrets, is_http
from visrec.sources.name_patterns import NamePattern
from visrec.storage import schemas
from visrec.storage.backend import FileInfo
from visrec.storage.column_types import PICTURE
from visrec.storage.store import Store, file_at, read_uri
from visrec.storage.table_files import find_table_files, table_errors
from visrec.storage.tables import open_parquet

_PAGE_ROWS = 10_000
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_PICTURES_AT_ONCE = 64  # of Parquet; one row group may be the whole table
_MAX_READERS = 4  # of row groups that a thread has begun, each with so many pictures

LISTING_SCHEMA = pa.schema(
    [
        pa.field("item_id", TEXT),
        pa.field("view", TEXT),  # which picture of the item; null if nothing says it
        pa.field("uri", TEXT),
        pa.field("row_group", pa.int32()),  # where the bytes are in a Parquet file; null for files
        pa.field("row", pa.int32()),
        pa.field("source", TEXT),  # changes when the bytes may have changed; null if unknown
    ]
)


@dataclass(frozen=True)
class PictureSource:
    """Where pictures are, and what their names mean.

    Attributes:
        uri: a directory or prefix of files, or Parquet.
        pattern: the pattern of the names of files, as `NamePattern`; None if a name is an item id.
    """

    uri: str
    pattern: str | None = None


class _ListingRow(TypedDict):
    item_id: str
    view: str | None
    uri: str | None
    row_group: int | None
    row: int | None
    source: str | None


@dataclass
class SkippedFiles:
    """The files beside the pictures that their listing does not contain.

    Attributes:
        not_pictures: number of files that are not pictures, by file extension.
        rejected: files whose names cannot be item ids, as rows of `REJECTED`.
        unmatched: number of pictures whose names the pattern does not match; each name is an item
            id then.
    """

    not_pictures: Counter[str] = field(default_factory=Counter)
    rejected: list[dict[str, str | None]] = field(default_factory=list)
    unmatched: int = 0

    def skip(self, name: str) -> None:
        """Counts a file that is not a picture."""
        extension = other_extension(name)
        self.not_pictures[f".{extension}" if extension else "without an extension"] += 1

    def reject(self, info: FileInfo, item_id: str, uri: str) -> None:
        """Records a picture whose name is not UTF-8."""
        path = escape_non_utf8(uri)
        self.rejected.append(
            {
                "item_id": escape_non_utf8(item_id),
                "view": None,
                "reason": "name_not_utf8",
                "detail": f"The name of {path} is not UTF-8; expected a UTF-8 name. Rename it.",
                "source": info.fingerprint,
            }
        )

    def __str__(self) -> str:
        parts = [f"{count} {extension}" for extension, count in self.not_pictures.most_common()]
        parts += [f"{len(self.rejected)} with names that are not UTF-8"] if self.rejected else []
        return ", ".join(parts)


def list_pictures(
    source: PictureSource | str, skipped: SkippedFiles | None = None
) -> Iterator[pa.Table]:
    """The location of each picture, in pages of `LISTING_SCHEMA`, without reading the pictures.

    In a directory the file extension tells whether a file is a picture. The first bytes of a file
    tell it if there is no extension, as in `0108775015`.

    Args:
        source: where they are; a location alone is a source without a pattern.
        skipped: collects the files that the listing does not contain.

    Raises:
        InputError: there is no picture, or none whose name the pattern matches.
    """
    rows = 0
    example = ""
    skipped = SkippedFiles() if skipped is None else skipped
    source = PictureSource(source) if isinstance(source, str) else source
    uri = source.uri
    for page in _list_pages(source, skipped):
        if not rows and page.num_rows:
            example = str(page["uri"][0])
        rows += page.num_rows
        yield page
    if not rows:
        if uri.lower().endswith(_ARCHIVES):
            raise InputError(
                f"Found the archive {uri}; expected a directory of pictures. Unpack it, and name "
                "the directory with --images.",
                path=uri,
                key="images",
            )
        others = f", only {skipped}" if str(skipped) else ""
        raise InputError(
            f"Found no picture at {uri}{others}; expected files named <item_id>.jpg (.png, .webp, "
            ".gif, .avif) or Parquet with item_id and image or uri. Change --images.",
            path=uri,
            key="images",
        )
    if skipped.unmatched == rows:
        raise InputError(
            f"Found --image_pattern {source.pattern!r}, which matches none of the {rows:,} "
            f"pictures at {uri}, such as {example}; expected a pattern of names below {uri}.",
            path=uri,
            key="image_pattern",
        )


def _list_pages(source: PictureSource, skipped: SkippedFiles) -> Iterator[pa.Table]:
    pattern = None if source.pattern is None else NamePattern(source.pattern)
    if not _is_parquet(source.uri):
        return _list_files(source.uri, skipped, pattern)
    if pattern is not None:
        raise InputError(
            f"Found --image_pattern {source.pattern!r} and Parquet at {source.uri}; expected a "
            "pattern only for names of files. A column view orders the pictures of an item.",
            path=source.uri,
            key="image_pattern",
        )
    return _list_parquet(source.uri, skipped)


def _is_parquet(uri: str) -> bool:
    """Whether the first file that is either is Parquet; others, such as `_SUCCESS`, may precede."""
    if uri.lower().endswith(".parquet"):
        return True
    for info in Store.at(uri).list(follow_links=True):
        if info.name.lower().endswith(".parquet"):
            return True
        if item_id_from_name(info.name) is not None:
            return False
    return False


def _list_files(uri: str, skipped: SkippedFiles, pattern: NamePattern | None) -> Iterator[pa.Table]:
    store = Store.at(uri)
    files = store.list(follow_links=True)
    while page := list(islice(files, _PAGE_ROWS)):
        yield _list_page(store, page, skipped, pattern)


def _list_page(
    store: Store, page: list[FileInfo], skipped: SkippedFiles, pattern: NamePattern | None
) -> pa.Table:
    unknown = [
        info
        for info in page
        if item_id_from_name(info.name) is None and other_extension(info.name) is None
    ]
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        are_pictures = pool.map(lambda info: _may_be_picture(store, info), unknown)
        pictures = {
            info.name for info, is_picture in zip(unknown, are_pictures, strict=True) if is_picture
        }
    rows: list[_ListingRow] = []
    for info in page:
        item_id = info.name if info.name in pictures else item_id_from_name(info.name)
        uri = store.uri(info.name)
        if item_id is None:
            skipped.skip(info.name)
        elif escape_non_utf8(info.name) != info.name:
            skipped.reject(info, item_id, uri)
        else:
            split = pattern.split(item_id) if pattern else None
            skipped.unmatched += pattern is not None and split is None
            rows.append(
                {
                    "item_id": split[0] if split else item_id,
                    "view": split[1] if split else None,
                    "uri": uri,
                    "row_group": None,
                    "row": None,
                    "source": info.fingerprint,
                }
            )
    return pa.Table.from_pylist(rows, LISTING_SCHEMA)


def _may_be_picture(store: Store, info: FileInfo) -> bool:
    """Whether the first bytes are a picture's. An unreadable file is listed, to be rejected later
    with its name."""
    try:
        return detect_format(store.read_start(info.name, HEAD_BYTES)) is not None
    except StorageError:
        return True


def _list_parquet(uri: str, skipped: SkippedFiles) -> Iterator[pa.Table]:
    store, names = find_table_files(uri, "images")
    names = [name for name in names if name.lower().endswith(".parquet")]
    is_directory = store.root == Store.at(uri).root
    fingerprints = {}
    for info in store.list("" if is_directory else names[0], follow_links=True):
        if info.name in names:
            fingerprints[info.name] = info.fingerprint
        elif is_directory:  # otherwise it is beside the one file that `uri` names
            skipped.skip(info.name)
    for name in names:
        if name not in fingerprints:
            raise InputError(
                f"{store.uri(name)} (--images) is hidden, or was removed; expected a file whose "
                "name does not start with a dot. Rename it, or run the job again.",
                path=store.uri(name),
                key="images",
            )
        yield from _list_row_groups(store, name, fingerprints[name])


def _list_row_groups(store: Store, name: str, fingerprint: str) -> Iterator[pa.Table]:
    where = f"{store.uri(name)} (--images)"
    with store.open_input(name) as source, table_errors(where):
        file = pq.ParquetFile(source)
        schemas.check_columns(file.schema_arrow, schemas.PICTURES, where)
        has_bytes, has_uris = (c in file.schema_arrow.names for c in ("image", "uri"))
        if not (has_bytes or has_uris):
            raise InputError(
                f"{where} has neither an image nor a uri column; found "
                f"{schemas.describe_columns(file.schema_arrow)}.",
                path=store.uri(name),
                key="images",
            )
        columns = [c for c in ("item_id", "view") if c in file.schema_arrow.names]
        columns += [] if has_bytes else ["uri"]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            table = schemas.conform(table, schemas.PICTURES, where)
            if "view" not in columns:
                table = table.append_column("view", pa.nulls(table.num_rows, TEXT))
            if has_bytes:
                source_prefix = f"{fingerprint}#{group}/"
                yield _list_rows(table, store.uri(name), group, source_prefix)
            else:
                yield _list_uris(table)


def _list_uris(table: pa.Table) -> pa.Table:
    null = pa.nulls(table.num_rows)
    columns = [table["item_id"], table["view"], table["uri"], null, null, null]
    return pa.table(dict(zip(LISTING_SCHEMA.names, columns, strict=True))).cast(LISTING_SCHEMA)


def _list_rows(table: pa.Table, uri: str, group: int, source_prefix: str) -> pa.Table:
    rows = pa.array(range(len(table)), pa.int32())
    columns = [
        table["item_id"],
        table["view"],
        pa.repeat(pa.scalar(uri), len(table)),
        pa.repeat(pa.scalar(group, pa.int32()), len(table)),
        rows,
        pc.binary_join_element_wise(source_prefix, rows.cast(pa.string()), ""),
    ]
    return pa.table(columns, schema=LISTING_SCHEMA)


def fetch_pictures(listing: pa.Table, max_bytes: int) -> list[Answer | StorageError]:
    """The bytes of each picture of a listing, or the error that kept them from being read.

    Args:
        listing: as `LISTING_SCHEMA`. It may have validators of pictures at http addresses in
            columns `etag` and `last_modified`: these pictures come without bytes if they have not
            changed.
        max_bytes: no more bytes are asked of a server.

    Raises:
        InputError: a Parquet file is damaged, or the environment names a proxy that cannot be used.
    """
    rows: list[dict[str, Any]] = listing.to_pylist()
    images = _read_pictures([row for row in rows if row["row_group"] is not None])
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as pool:
        return list(pool.map(lambda row: _fetch_one(row, images, max_bytes), rows))


def _fetch_one(
    row: dict[str, Any], images: dict[str, bytes], max_bytes: int
) -> Answer | StorageError:
    uri = row["uri"]
    if uri is None:
        return StorageError("The row has no uri.")
    if row["row_group"] is not None:
        return Answer(data=images[_position(row)])
    try:
        if is_http(uri):
            return fetch(uri, max_bytes, row.get("etag"), row.get("last_modified"))
        return Answer(data=read_uri(uri))
    except StorageError as error:
        return error
    # The URI of one picture may be invalid, which must not stop the run.
    except (InputError, ValueError) as error:
        if is_http(uri) and isinstance(error, InputError):
            raise  # the proxy of all pictures
        shown = hide_secrets(uri)
        return StorageError(f"Could not read {shown!r}: {error}", path=shown)


# Pictures in Parquet. A row group can only be read from its start, and may have all pictures of a
# table. So each thread keeps those that it has begun: tasks ask for rows in ascending order, and
# the views of an item may be in several row groups.


class _Readers(local):
    """Readers of this thread, by `_RowGroupReader.key`; the latest is the last."""

    def __init__(self) -> None:
        self.by_key: dict[tuple[str, int, str], _RowGroupReader] = {}


_readers = _Readers()


def close_readers() -> None:
    """Closes the Parquet files that `fetch_pictures` keeps open in this thread for later rows."""
    _readers.by_key.clear()


def _position(row: dict[str, Any]) -> str:
    """Where the bytes of a row of a listing are; its source changes when the file does."""
    return f"{row['uri']} {row['row_group']} {row['row']} {row['source']}"


def _read_pictures(rows: list[dict[str, Any]]) -> dict[str, bytes]:
    """The bytes of rows of a listing that are in Parquet, by `_position`."""
    found: dict[str, bytes] = {}
    ordered = sorted(rows, key=lambda row: (row["uri"], row["row_group"], row["row"]))
    readers = _readers.by_key
    for key, group in groupby(ordered, key=_RowGroupReader.key):
        in_group = list(group)
        reader = readers.pop(key, None)  # it is of no use after an error
        if reader is None or not reader.can_read(in_group[0]["row"]):
            reader = _RowGroupReader(in_group[0])
        pictures = reader.read([row["row"] for row in in_group])
        if not reader.is_finished:
            readers[key] = reader
        if len(readers) > _MAX_READERS:
            del readers[next(iter(readers))]
        found |= {_position(row): data for row, data in zip(in_group, pictures, strict=True)}
    return found


class _RowGroupReader:
    """Reads pictures of a row group in ascending order, a few at a time.

    Args:
        row: a row of a listing, in the row group.

    Attributes:
        is_finished: whether it has read the last row.
    """

    def __init__(self, row: dict[str, Any]) -> None:
        self._uri, self.is_finished = row["uri"], False
        self._batches = _read_row_group(row["uri"], row["row_group"])
        self._start, self._batch, self._rows = 0, pa.chunked_array([], pa.large_binary()), 0

    @staticmethod
    def key(row: dict[str, Any]) -> tuple[str, int, str]:
        """The row group that a row of a listing is in, and the version of its file."""
        return row["uri"], row["row_group"], row["source"].rpartition("/")[0]

    def can_read(self, row: int) -> bool:
        """Whether this row and those after it can still be read."""
        return row >= self._start

    def read(self, rows: Sequence[int]) -> list[bytes]:
        """The pictures of these rows, which ascend; no bytes for a null."""
        found = []
        for row in rows:
            while row >= self._start + len(self._batch):
                self._start += len(self._batch)
                self._batch, self._rows = self._next_batch()
            found.append(self._batch[row - self._start].as_py() or b"")
            self.is_finished = row == self._rows - 1
        return found

    def _next_batch(self) -> tuple[pa.ChunkedArray, int]:
        batch = next(self._batches, None)
        if batch is None:
            raise InputError(
                f"{self._uri} (--images) has fewer rows than when it was listed; run the job "
                "again when nothing writes it.",
                path=self._uri,
                key="images",
            )
        return batch


def _read_row_group(uri: str, group: int) -> Iterator[tuple[pa.ChunkedArray, int]]:
    """The pictures of a row group in batches, each with the number of rows of the group."""
    store, name = file_at(uri)
    where = f"{uri} (--images)"
    with (
        store.open_input(name) as source,
        table_errors(where),
        open_parquet(source, where) as parquet,
    ):
        rows = parquet.metadata.row_group(group).num_rows
        for batch in parquet.iter_batches(_PICTURES_AT_ONCE, [group], columns=["image"]):
            yield PICTURE.cast(pa.chunked_array([batch["image"]]), pa.large_binary()), rows
