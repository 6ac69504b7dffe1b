"""Pictures in: a directory or prefix of files, or Parquet with their bytes or their URIs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec import schemas
from visrec.clients import translated
from visrec.errors import InputError, StorageError
from visrec.sources.tables import table_errors, table_files
from visrec.storage import Store, file_at, read_uri
from visrec.values import PICTURE

# What counts as a picture in a directory; formats that visrec does not open are listed too, so that
# they are rejected by name instead of missing without a word.
_SUFFIXES = frozenset(
    [
        "jpg",
        "jpeg",
        "jpe",
        "jfif",
        "png",
        "webp",
        "gif",
        "bmp",
        "tif",
        "tiff",
        "heic",
        "heif",
        "avif",
        "jp2",
        "svg",
        "eps",
        "psd",
        "ico",
    ]
)
_PAGE = 10_000
_FETCHES = (
    16  # requests under way at once from one task: S3 answers in some 20 ms, one core decodes 100/s
)

LISTING = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("row_group", pa.int32()),  # for bytes inside a Parquet file; else null
        pa.field("row", pa.int32()),
        pa.field("source", pa.string()),  # changes when the bytes may have changed; null: unknown
    ]
)


def list_pictures(uri: str) -> Iterator[pa.Table]:
    """Where each picture is, a page at a time, without reading any.

    Raises:
        InputError: there is no picture at `uri`.
    """
    found = 0
    pages = _list_parquet(uri) if _is_parquet(uri) else _list_files(uri)
    for page in pages:
        found += page.num_rows
        yield page
    if not found:
        raise InputError(
            f"Found no picture at {uri}; expected files named <item_id>.jpg (.png, .webp, .gif) or "
            "Parquet with item_id and image or uri. Change --images."
        )


def _is_parquet(uri: str) -> bool:
    """By the first file that is either: a `_SUCCESS` or a README may come before it."""
    if uri.endswith(".parquet"):
        return True
    suffixes = (entry.name.rpartition(".")[2].lower() for entry in Store.at(uri).list())
    return next((s for s in suffixes if s == "parquet" or s in _SUFFIXES), None) == "parquet"


def _list_files(uri: str) -> Iterator[pa.Table]:
    store = Store.at(uri)
    rows = []
    for entry in store.list():
        item_id, _, suffix = entry.name.rpartition(".")
        if suffix.lower() in _SUFFIXES and item_id:
            rows.append((item_id, store.uri(entry.name), None, None, entry.fingerprint))
        if len(rows) == _PAGE:
            yield _table(rows)
            rows = []
    yield _table(rows)


def _list_parquet(uri: str) -> Iterator[pa.Table]:
    store, names = table_files(uri, "images")
    fingerprints = {entry.name: entry.fingerprint for entry in store.list() if entry.name in names}
    for name in names:
        if not name.endswith(".parquet"):
            continue
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
                    f"{', '.join(file.schema_arrow.names)}."
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
    row: dict[str, str | int], images: dict[tuple[str, int], pa.ChunkedArray]
) -> bytes | StorageError:
    if row["row"] is not None:
        return images[str(row["uri"]), int(row["row_group"])][row["row"]].as_py() or b""
    try:
        return read_uri(str(row["uri"]))
    except StorageError as error:
        return error
    except InputError as error:  # not a location: of one picture, so no reason to stop the run
        return StorageError(str(error))


def _row_group(uri: str, group: int) -> pa.ChunkedArray:
    store, name = file_at(uri)
    with (
        translated("read", uri),
        table_errors(f"{uri} (--images)"),
        store.filesystem().open_input_file(f"{store.path}/{name}") as source,
    ):
        image = pq.ParquetFile(source).read_row_group(group, columns=["image"])["image"]
        return PICTURE.of(image, pa.large_binary())
