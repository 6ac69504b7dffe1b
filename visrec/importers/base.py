"""What every importer takes and gives."""

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage.csv_files import detect_dialect
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import Column
from visrec.storage.store import Store, file_at
from visrec.storage.table_files import TableFile, table_errors
from visrec.storage.tables import conform_batches, stored_batches
from visrec.storage.text_encoding import decode_foreign

KEY = "path"  # the configuration key that names the source
PICTURE = "picture"
_BLOCK_BYTES = 8 << 20
_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Source:
    """The files that a user names: a folder, or one file of it.

    Attributes:
        store: the folder.
        names: the names of the files that count, sorted.
    """

    store: Store
    names: tuple[str, ...]

    @classmethod
    def at(cls, path: str) -> "Source":
        """The files at a location.

        Raises:
            InputError: there are none.
        """
        folder, name = file_at(path)
        if folder.exists(name):
            return cls(folder, (name,))
        store = Store.at(path)
        names = tuple(sorted(info.name for info in store.list(follow_links=True)))
        if not names:
            raise InputError(
                f"Found nothing at {path}; expected a file, or a folder of files. Change --{KEY}.",
                path=path,
                key=KEY,
            )
        return cls(store, names)

    def find(self, *patterns: str) -> str | None:
        """The first file whose own name matches one of the patterns, the first pattern first."""
        for pattern in patterns:
            for name in self.names:
                if re.fullmatch(pattern, name.rpartition("/")[2], re.IGNORECASE):
                    return name
        return None

    def require(self, expected: str, *patterns: str) -> str:
        """The same.

        Args:
            expected: such a file in words, for the error.
            patterns: the patterns of its name.

        Raises:
            InputError: there is none.
        """
        name = self.find(*patterns)
        if name is None:
            shown = ", ".join(self.names[:5]) + (" ..." if len(self.names) > 5 else "")
            raise InputError(
                f"Found {shown} at {self.store.root}; expected {expected}. Change --{KEY}.",
                path=self.store.root,
                key=KEY,
            )
        return name

    def read(
        self,
        name: str,
        columns: Sequence[Column],
        mapping: Mapping[str, str],
        rewrite: Callable[[pa.Table], pa.Table] = lambda table: table,
    ) -> Iterator[pa.Table]:
        """A CSV or TSV file with a header, or JSON lines, in batches with the declared columns.

        Args:
            name: the name of the file.
            columns: the declared columns.
            mapping: the name in the file of each of them that has another name there.
            rewrite: changes the values of a batch, as the file stores them, before they are parsed.

        Raises:
            InputError: the file is damaged.
            SchemaError: a required column is missing, or has another type.
        """
        file = self._file(name, mapping)
        with table_errors(file.where):
            stored = map(rewrite, stored_batches(file, columns))
            for table, _ in conform_batches(file, stored, columns):
                yield table

    def header(self, name: str) -> list[str]:
        """The columns of a CSV or TSV file.

        Raises:
            InputError: the file is empty or is not text.
        """
        return [*detect_dialect(self._file(name, {}), ()).names]

    def _file(self, name: str, mapping: Mapping[str, str]) -> TableFile:
        table = InputTable(uri=self.store.uri(name), key=KEY, columns=mapping)
        return _ForeignFile(table, self.store, name, {})

    def blocks(self, name: str) -> Iterator[bytes]:
        """A text file as blocks of whole lines, decompressed if its name ends in .gz."""
        codec = "gzip" if name.lower().endswith(".gz") else None
        rest = b""
        with self.store.open_input_stream(name, codec) as stream:
            while block := stream.read(_BLOCK_BYTES):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                if newline:
                    yield whole + newline
        if rest.strip():
            yield rest + b"\n"


class _ForeignFile(TableFile):
    """A file that somebody else wrote and that may not be in UTF-8."""

    @contextmanager
    def open_input_stream(self) -> Iterator[pa.NativeFile]:
        with super().open_input_stream() as stream:
            yield pa.PythonFile(_Utf8Reader(stream), mode="r")


class _Utf8Reader:
    """Text as UTF-8, whether it is written in that or in Windows-1252, which is ISO 8859-1 as
    spreadsheets write it. Other encodings, which have a byte order mark, pass unchanged.

    Args:
        stream: the bytes of the text.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._ready = self._rest = b""  # what can be given, and a line that has yet to end
        self._has_mark: bool | None = None

    def read(self, size: int) -> bytes:
        """That many bytes, fewer at the end alone."""
        while len(self._ready) < size and (block := self._stream.read(_BLOCK_BYTES)):
            if self._has_mark is None:
                self._has_mark = block.startswith(_MARKS)
            if self._has_mark:
                self._ready += block
                continue
            whole, newline, self._rest = (self._rest + block).rpartition(b"\n")
            self._ready += decode_foreign(whole + newline).encode()
        if len(self._ready) < size:
            self._ready += decode_foreign(self._rest).encode()
            self._rest = b""
        given, self._ready = self._ready[:size], self._ready[size:]
        return given


@dataclass(frozen=True)
class Imported:
    """What an importer found, still to be read.

    Both tables are read once, the items after the interactions: an importer may have met them on
    its way through these.

    Attributes:
        interactions: batches with user_id, item_id, timestamp in seconds, and optional columns.
        items: batches with item_id and optional columns, among them `PICTURE`, the address of a
            picture; empty if the source has none.
        left_out: rows that were left out so far, by reason; counted while the batches are read.
        notes: sentences about what the importer decided.
    """

    interactions: Iterable[pa.Table]
    items: Iterable[pa.Table] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    notes: tuple[str, ...] = ()


def without_nulls(table: pa.Table, left_out: Counter[str]) -> pa.Table:
    """The rows that have a user, an item and a timestamp; the others are counted."""
    for name in ("user_id", "item_id", "timestamp"):
        has_value = table[name].is_valid()
        missing = len(table) - pc.sum(has_value).as_py() if len(table) else 0
        if missing:
            left_out[f"without {name}"] += missing
            table = table.filter(has_value)
    return table


def first_of_list(texts: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """The part of each text before the separator."""
    parts = pc.split_pattern(texts.cast(TEXT), separator, max_splits=1)
    return pc.list_element(parts, 0)
