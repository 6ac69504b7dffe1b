"""Finds ids of users in files of any format: Parquet by its columns, all others as text.

An id such as `12` is a number in many a file, and an item may have the same id as a user. So only
an id that is distinctive is searched as text and in every column. Any other one is searched where a
column or a field says that it is a user's. Files may be of any writer and damaged, so the search
says of each whether it was searched to its end.
"""

import codecs
import html
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from visrec.errors import InputError, MissingFileError, StorageError
from visrec.ids import TEXT, is_in
from visrec.storage.column_types import ID
from visrec.storage.csv_files import detect_dialect
from visrec.storage.failures import storage_errors
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import USER_IDS, cast_columns
from visrec.storage.store import Store
from visrec.storage.table_files import TableFile, codec_of
from visrec.storage.tables import read_table_file
from visrec.storage.text_encoding import decode_foreign

_USER = "user_id"
_CSV_NAME = re.compile(r"\.(csv|tsv)(\.|$)", re.IGNORECASE)  # also that of an unfinished file
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_BLOCK_BYTES, _OVERLAP = 8 << 20, 4096  # read at a time, and read again with the next block
_BATCH_ROWS = 8192
_MIN_LENGTH = 6  # of a distinctive id: shorter ones occur in binary files by chance
_WORD = re.compile(rb"[0-9A-Za-z_@+.:/\x80-\xff-]+")
_EDGES = ".:/+-"  # around an id in a sentence or a path
_JSON_FIELD = re.compile(rb'"user(?:_id)?"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')
_REPORT_FIELD = re.compile(rb'(?:<h3>User <bdi>|data-user=")([^<"]*)')


@dataclass(frozen=True)
class FoundFile:
    """A file of a listing that leaves nothing out.

    Attributes:
        name: its name below the store; that of a folder ends in a slash.
        modified: when it was written, in seconds since 1970.
        size: in bytes.
        is_unlistable: whether it is a folder that must not be listed.
    """

    name: str
    modified: float = 0.0
    size: int = 0
    is_unlistable: bool = False


def list_all_files(store: Store) -> Iterator[FoundFile]:
    """Every file below a store, hidden ones and those of unfinished writes included, and each
    folder that must not be listed, such as `lost+found` of a volume."""
    if not store.is_s3:
        yield from _list_folder(store.root)
        return
    filesystem, path = store.arrow_filesystem()
    with storage_errors("list", store.root):
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
        for info in filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File:
                modified = info.mtime.timestamp() if info.mtime else 0.0
                yield FoundFile(info.path[len(path) + 1 :], modified, info.size)


def _list_folder(root: str) -> Iterator[FoundFile]:
    """The files of a folder and of those in it; links are followed, each folder once."""
    closed: list[OSError] = []
    entered: set[str] = set()
    for folder, subfolders, names in os.walk(root, onerror=closed.append, followlinks=True):
        entered.add(os.path.realpath(folder))
        subfolders[:] = [
            name
            for name in subfolders
            if os.path.realpath(os.path.join(folder, name)) not in entered
        ]
        for name in names:
            path = os.path.join(folder, name)
            with suppress(FileNotFoundError):  # removed meanwhile, or a broken link
                status = os.stat(path)
                if stat.S_ISREG(status.st_mode):
                    yield FoundFile(os.path.relpath(path, root), status.st_mtime, status.st_size)
    for error in closed:
        if isinstance(error, PermissionError):
            yield FoundFile(f"{os.path.relpath(error.filename, root)}/", is_unlistable=True)


class IdSearch:
    """Ids to look for.

    Args:
        ids: the ids.
        ambiguous: those that are ids of items, too.
    """

    def __init__(self, ids: Collection[str], ambiguous: Collection[str] = ()) -> None:
        self.ids = frozenset(ids)
        self.distinctive = frozenset(
            user_id
            for user_id in self.ids - frozenset(ambiguous)
            if len(user_id) >= _MIN_LENGTH and not user_id.isdecimal()
        )
        # The search by words cannot find an id that is not one word.
        self._odd = [
            (user_id, encoded)
            for user_id in self.distinctive
            for encoded in _encodings(user_id)
            if not _WORD.fullmatch(encoded)
        ]
        self._all_ids = pa.array(sorted(self.ids), TEXT)
        self._distinctive_ids = pa.array(sorted(self.distinctive), TEXT)

    def find(self, store: Store, name: str) -> tuple[set[str], bool]:
        """The ids that were found in a file, and whether the whole file could be searched.

        The second is false for a file that is damaged, that must not be read, or whose column of
        users cannot be told.
        """
        found: set[str] = set()
        try:
            for ids in self._search(store, name):
                found |= ids
        except MissingFileError:  # removed since it was listed
            return set(), True
        except (InputError, StorageError):
            return found, False
        return found, True

    def _search(self, store: Store, name: str) -> Iterator[set[str]]:
        """The ids in one part of the file after another.

        Raises:
            InputError: the file is not of the format that its name or its first bytes tell.
            StorageError: the file cannot be read.
        """
        file = TableFile(InputTable(uri=store.uri(name), key="users"), store, name, {})
        start = store.read_start(name, 4)
        if start == b"PAR1" or (start and file.format == "parquet"):
            yield from self._search_parquet(file)
            return
        yield from self._search_text(store, name)
        if _CSV_NAME.search(name):
            yield from self._search_csv(file)

    def _search_parquet(self, file: TableFile) -> Iterator[set[str]]:
        with file.open_input() as source:
            size = source.size()
            source.seek(max(size - 8, 0))
            footer = int.from_bytes(source.read(4), "little")
            source.seek(max(size - 8 - footer, 0))
            yield self._in_bytes(source.read(footer))  # with the statistics of the columns
            source.seek(0)
            with pq.ParquetFile(source) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS):
                    for column, values in zip(batch.schema.names, batch.columns, strict=True):
                        if column != _USER:
                            parts, wanted = _texts(values), self._distinctive_ids
                        elif ID.supports(values.type):  # such as integers
                            users = cast_columns(pa.table({_USER: values}), USER_IDS, file.where)
                            parts, wanted = iter(users.columns), self._all_ids
                        else:
                            parts, wanted = _texts(values), self._all_ids
                        for texts in parts:
                            yield _members(texts, wanted)

    def _search_text(self, store: Store, name: str) -> Iterator[set[str]]:
        is_utf_16 = store.read_start(name, 2) in _UTF_16
        decoder = codecs.getincrementaldecoder("utf-16")("replace")
        tail = b""
        with store.open_input_stream(name, codec_of(name)) as stream:
            while block := stream.read(_BLOCK_BYTES):
                text = decoder.decode(block).encode() if is_utf_16 else block
                yield self._in_bytes(tail + text)
                tail = text[-_OVERLAP:]

    def _search_csv(self, file: TableFile) -> Iterator[set[str]]:
        with file.open_input_stream() as stream:
            head = stream.read(_BLOCK_BYTES)
        if not head:
            return
        dialect = detect_dialect(file, USER_IDS)
        if _USER in dialect.names:
            for table in read_table_file(file, USER_IDS):
                yield _members(table[_USER], self._all_ids)
        elif _USER in dialect.encoding.decode(head):
            raise InputError(f"{file.where} has user_id below its first line, not in it.")

    def _in_bytes(self, data: bytes) -> set[str]:
        words = set(map(decode_foreign, set(_WORD.findall(data))))
        words |= {part for word in words for part in re.split("[/:]", word)}
        words |= {word.strip(_EDGES) for word in words}
        found = words & self.distinctive
        found |= {user_id for user_id, encoded in self._odd if encoded in data}
        named = {html.unescape(decode_foreign(value)) for value in _REPORT_FIELD.findall(data)}
        for value in set(_JSON_FIELD.findall(data)):
            with suppress(ValueError):  # it only looks like JSON
                named.add(str(json.loads(decode_foreign(value))))
        return found | (named & self.ids)


def _encodings(user_id: str) -> set[bytes]:
    """The id in UTF-8, and as older programs write it."""
    encodings = {user_id.encode()}
    with suppress(UnicodeEncodeError):
        encodings.add(user_id.encode("cp1252"))
    return encodings


def _members(values: pa.Array | pa.ChunkedArray, ids: pa.Array) -> set[str]:
    return set(values.filter(is_in(values, ids)).to_pylist())


def _texts(values: pa.Array) -> Iterator[pa.Array]:
    """The texts in a column of any type."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _texts(values.dictionary)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield values
    elif pa.types.is_struct(kind):
        for child in values.flatten():
            yield from _texts(child)
    elif pa.types.is_map(kind):
        yield from _texts(values.keys)
        yield from _texts(values.items)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _texts(values.flatten())


@dataclass(frozen=True)
class SearchResult:
    """The locations of files.

    Attributes:
        with_ids: those that have any of the ids.
        not_searched: those that could not be searched to their end.
    """

    with_ids: list[str]
    not_searched: list[str]


def search_files(search: IdSearch, files: Iterable[tuple[Store, str]]) -> SearchResult:
    """Searches files for ids."""
    result = SearchResult([], [])
    for store, name in files:
        ids, is_whole = search.find(store, name)
        if ids:
            result.with_ids.append(store.uri(name))
        if not is_whole:
            result.not_searched.append(store.uri(name))
    return result
