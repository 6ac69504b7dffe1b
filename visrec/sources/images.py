"""Pictures in: a directory or prefix of files, or Parquet with their bytes or their URIs."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import InputError, StorageError
from visrec.ids import TEXT
from visrec.paths import printable
from visrec.sources.formats import HEAD_BYTES, format_of, item_of, other_ending
from visrec.storage import schemas
from visrec.storage.column_types import PICTURE
from visrec.storage.s3_clients import translated
from visrec.storage.store import Entry, Store, file_at, read_uri
from visrec.storage.tables import table_errors, table_files

_PAGE = 10_000
_FETCHES = (
    16  # requests under way at once from one task: S3 answers in some 20 ms, one core decodes 100/s
)

LISTING = pa.schema(
    [
        pa.field("item_id", TEXT),
        pa.field("uri", TEXT),
        pa.field("row_group", pa.int32()),  # for bytes inside a Parquet file; else null
        pa.field("row", pa.int32()),
        pa.field("source", TEXT),  # changes when the bytes may have changed; null: unknown
    ]
)


@dataclass
class Unlisted:
    """The files at the place of the pictures that their listing does not have.

    Args:
        left_out: how many files are no pictures, by the ending of their names.
        rejected: files whose names cannot be an item's id, with the columns of `REJECTED`.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    rejected: list[dict[str, str]] = field(default_factory=list)

    def leave_out(self, name: str) -> None:
        ending = other_ending(name)
        self.left_out[f".{ending}" if ending else "without an ending"] += 1

    def reject(self, entry: Entry, item_id: str, where: str) -> None:
        detail = f"The name of {printable(where)} is not UTF-8; expected one that is. Rename it."
        self.rejected.append(
            {
                "item_id": printable(item_id),
                "reason": "name_not_utf8",
                "detail": detail,
                "source": entry.fingerprint,
            }
        )

    def __str__(self) -> str:
        parts = [f"{count} {ending}" for ending, count in self.left_out.most_common()]
        parts += [f"{len(self.rejected)} with names that are not UTF-8"] if self.rejected else []
        return ", ".join(parts)


def list_pictures(uri: str, unlisted: Unlisted | None = None) -> Iterator[pa.Table]:
    """Where each picture is, a page at a time, without reading any.

    In a directory a file is a picture by the ending of its name; where that says nothing, as in
    `0108775015`, by its first bytes.

    Args:
        uri: a directory or prefix of files, or Parquet.
        unlisted: takes the files that are not in the listing.

    Raises:
        InputError: there is no picture at `uri`.
    """
    found = 0
    unlisted = Unlisted() if unlisted is None else unlisted
    pages = _list_parquet(uri, unlisted) if _is_parquet(uri) else _list_files(uri, unlisted)
    for page in pages:
        found += page.num_rows
        yield page
    if not found:
        others = f", only {unlisted}" if str(unlisted) else ""
        raise InputError(
            f"Found no picture at {uri}{others}; expected files named <item_id>.jpg (.png, .webp, "
            ".gif) or Parquet with item_id and image or uri. Change --images."
        )


def _is_parquet(uri: str) -> bool:
    """By the first file that is either: a `_SUCCESS` or a README may come before it."""
    if uri.lower().endswith(".parquet"):
        return True
    for entry in Store.at(uri).list():
        if entry.name.lower().endswith(".parquet"):
            return True
        if item_of(entry.name) is not None:
            return False
    return False


def _list_files(uri: str, unlisted: Unlisted) -> Iterator[pa.Table]:
    store = Store.at(uri)
    entries = store.list(follow_links=True)
    while page := list(islice(entries, _PAGE)):
        yield _page(store, page, unlisted)


def _page(store: Store, page: list[Entry], unlisted: Unlisted) -> pa.Table:
    silent = [e for e in page if item_of(e.name) is None and other_ending(e.name) is None]
    with ThreadPoolExecutor(_FETCHES) as pool:
        looks = pool.map(lambda entry: _may_be_picture(store, entry), silent)
        pictures = {entry.name for entry, look in zip(silent, looks, strict=True) if look}
    rows = []
    for entry in page:
        item_id = entry.name if entry.name in pictures else item_of(entry.name)
        if item_id is None:
            unlisted.leave_out(entry.name)
        elif printable(entry.name) != entry.name:
            unlisted.reject(entry, item_id, store.uri(entry.name))
        else:
            rows.append((item_id, store.uri(entry.name), None, None, entry.fingerprint))
    return _table(rows)


def _may_be_picture(store: Store, entry: Entry) -> bool:
    """By the first bytes; what cannot be read is listed, so that it is rejected by name."""
    try:
        return format_of(store.read_start(entry.name, HEAD_BYTES)) is not None
    except StorageError:
        return True


def _list_parquet(uri: str, unlisted: Unlisted) -> Iterator[pa.Table]:
    store, names = table_files(uri, "images")
    names = [name for name in names if name.lower().endswith(".parquet")]
    fingerprints = {}
    for entry in store.list(follow_links=True):
        if entry.name in names:
            fingerprints[entry.name] = entry.fingerprint
        elif store.root == Store.at(uri).root:  # else it lies beside the one file that was named
            unlisted.leave_out(entry.name)
    for name in names:
        where = f"{store.uri(name)} (--images)"
        with (
            translated("read", store.uri(name)),
            table_errors(where),
            store.filesystem().open_input_file(f"{store.path}/{name}") as source,
        ):
            file = pq.ParquetFile(source)
            schemas.check(file.schema_arrow, schemas.PICTURES, where)
            has = [c for c in ("image", "uri") if c in file.schema_arrow.names]
            if not has:
                raise InputError(
                    f"{where} has neither an image nor a uri column; found "
                    f"{schemas.names_of(file.schema_arrow)}."
                )
            for group in range(file.num_row_groups):
                columns = ["item_id"] if has[0] == "image" else ["item_id", "uri"]
                table = file.read_row_group(group, columns=columns)
                table = schemas.conform(table, schemas.PICTURES, where)
                if "uri" in columns:
                    yield _of_uris(table)
                else:
                    mark = f"{fingerprints[name]}#{group}/"
                    yield _of_rows(table["item_id"], store.uri(name), group, mark)


def _of_uris(table: pa.Table) -> pa.Table:
    nothing = pa.nulls(table.num_rows)
    columns = [table["item_id"], table["uri"], nothing, nothing, nothing]
    return pa.table(dict(zip(LISTING.names, columns, strict=True))).cast(LISTING)


def _of_rows(item_ids: pa.ChunkedArray, uri: str, group: int, mark: str) -> pa.Table:
    rows = pa.array(range(len(item_ids)), pa.int32())
    columns = [
        item_ids,
        pa.repeat(pa.scalar(uri), len(item_ids)),
        pa.repeat(pa.scalar(group, pa.int32()), len(item_ids)),
        rows,
        pc.binary_join_element_wise(mark, rows.cast(pa.string()), ""),
    ]
    return pa.table(columns, schema=LISTING)


def _table(rows: list[tuple[str, str, None, None, str]]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(LISTING.names, row, strict=True)) for row in rows], LISTING
    )


def fetch(listing: pa.Table) -> list[bytes | StorageError]:
    """The bytes of each picture of a listing, or why they could not be had."""
    rows = listing.to_pylist()
    groups = {(row["uri"], row["row_group"]) for row in rows if row["row"] is not None}
    images = {key: _row_group(*key) for key in groups}
    with ThreadPoolExecutor(_FETCHES) as pool:
        return list(pool.map(lambda row: _fetch_one(row, images), rows))


def _fetch_one(
    row: dict[str, Any], images: dict[tuple[str, int], pa.ChunkedArray]
) -> bytes | StorageError:
    if row["uri"] is None:
        return StorageError("The row has no uri.")
    if row["row"] is not None:
        return images[row["uri"], row["row_group"]][row["row"]].as_py() or b""
    try:
        return read_uri(row["uri"])
    except StorageError as error:
        return error
    # Not a location, or one that no store takes: of one picture, so no reason to stop the run.
    except (InputError, ValueError) as error:
        return StorageError(f"Could not read {row['uri']!r}: {error}")


def _row_group(uri: str, group: int) -> pa.ChunkedArray:
    store, name = file_at(uri)
    with (
        translated("read", uri),
        table_errors(f"{uri} (--images)"),
        store.filesystem().open_input_file(f"{store.path}/{name}") as source,
    ):
        image = pq.ParquetFile(source).read_row_group(group, columns=["image"])["image"]
        return PICTURE.of(image, pa.large_binary())
