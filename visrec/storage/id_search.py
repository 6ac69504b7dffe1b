"""Finds ids of users in files of any format: Parquet by its columns, all others as text.

An id such as `12` is a number in many a file, and an item may have the same id as a user. So only
an id that is distinctive is searched as text and in every column. Any other one is searched where a
column or a field says that it is a user's.
"""

import html
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from visrec.ids import TEXT, is_in
from visrec.storage.failures import storage_errors
from visrec.storage.store import Store, parse_json

_USER_COLUMNS = ("user_id", "query_id")
_CODECS = {"gz": "gzip", "bz2": "bz2", "zst": "zstd", "lz4": "lz4"}
_BLOCK_BYTES, _OVERLAP = 8 << 20, 4096  # read at a time, and read again with the next block
_BATCH_ROWS = 8192
_MIN_LENGTH = 6  # of a distinctive id: shorter ones occur in binary files by chance
_WORD = re.compile(rb"[0-9A-Za-z_@+.:/\x80-\xff-]+")
_EDGES = ".:/+-"  # around an id in a sentence or a path
_JSON_FIELD = re.compile(rb'"(?:user_id|query_id)"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')
_REPORT_FIELD = re.compile(rb'(?:<h3>User <bdi>|data-user=")([^<"]*)')


@dataclass(frozen=True)
class FoundFile:
    """A file of a listing that leaves nothing out.

    Attributes:
        name: its name below the store.
        modified: when it was written, in seconds since 1970.
        size: in bytes.
    """

    name: str
    modified: float
    size: int


def list_all_files(store: Store) -> Iterator[FoundFile]:
    """Every file below a store, hidden ones and those of unfinished writes included."""
    filesystem, path = store.arrow_filesystem()
    with storage_errors("list", store.root):
        selector = pafs.FileSelector(path, allow_not_found=True, recursive=True)
        for info in filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File:
                modified = info.mtime.timestamp() if info.mtime else 0.0
                yield FoundFile(info.path[len(path) + 1 :], modified, info.size)


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
        self._odd = {i: i.encode() for i in self.distinctive if not _WORD.fullmatch(i.encode())}
        self._all_ids = pa.array(sorted(self.ids), TEXT)
        self._distinctive_ids = pa.array(sorted(self.distinctive), TEXT)

    def find(self, store: Store, name: str) -> set[str]:
        """The ids that a file has.

        Raises:
            StorageError: the file cannot be read.
        """
        if store.read_start(name, 4) == b"PAR1":
            return self._find_in_parquet(store, name)
        codec = _CODECS.get(name.rpartition(".")[2].lower())
        found = self._find_in_text(store, name, codec)
        if ".csv" in name.lower():
            found |= self._find_in_csv(store, name, codec)
        return found

    def _find_in_parquet(self, store: Store, name: str) -> set[str]:
        found: set[str] = set()
        with store.open_input(name) as source:
            size = source.size()
            source.seek(max(size - 8, 0))
            footer = int.from_bytes(source.read(4), "little")
            source.seek(max(size - 8 - footer, 0))
            found |= self._in_bytes(source.read(footer))  # with the statistics of the columns
            source.seek(0)
            with pq.ParquetFile(source) as file:
                for batch in file.iter_batches(_BATCH_ROWS):
                    for column, values in zip(batch.schema.names, batch.columns, strict=True):
                        is_of_users = column in _USER_COLUMNS
                        wanted = self._all_ids if is_of_users else self._distinctive_ids
                        for texts in _texts(values):
                            found |= set(texts.filter(is_in(texts, wanted)).to_pylist())
        return found

    def _find_in_text(self, store: Store, name: str, codec: str | None) -> set[str]:
        found, tail = set(), b""
        with store.open_input_stream(name, codec) as stream:
            while block := stream.read(_BLOCK_BYTES):
                found |= self._in_bytes(tail + block)
                tail = block[-_OVERLAP:]
        return found

    def _find_in_csv(self, store: Store, name: str, codec: str | None) -> set[str]:
        found: set[str] = set()
        with store.open_input_stream(name, codec) as stream:
            try:
                batches = pacsv.open_csv(
                    stream,
                    convert_options=pacsv.ConvertOptions(
                        column_types=dict.fromkeys(_USER_COLUMNS, TEXT),
                        include_columns=list(_USER_COLUMNS),
                        include_missing_columns=True,
                    ),
                )
            except pa.ArrowInvalid:  # an empty file, which has no columns
                return found
            for batch in batches:
                for values in batch.columns:
                    found |= set(values.filter(is_in(values, self._all_ids)).to_pylist())
        return found

    def _in_bytes(self, data: bytes) -> set[str]:
        words = {word.decode(errors="replace") for word in set(_WORD.findall(data))}
        words |= {part for word in words for part in re.split("[/:]", word)}
        words |= {word.strip(_EDGES) for word in words}
        found = words & self.distinctive
        found |= {user_id for user_id, encoded in self._odd.items() if encoded in data}
        named = {str(parse_json(value, "")) for value in set(_JSON_FIELD.findall(data))}
        named |= {html.unescape(v.decode(errors="replace")) for v in _REPORT_FIELD.findall(data)}
        return found | (named & self.ids)


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


def files_with_ids(search: IdSearch, files: Iterable[tuple[Store, str]]) -> list[str]:
    """The locations of those of the files that have any of the ids."""
    return [store.uri(name) for store, name in files if search.find(store, name)]
