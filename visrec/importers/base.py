"""What every importer takes and gives."""

import io
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
from visrec.storage.table_files import TableFile, codec_of, table_errors
from visrec.storage.tables import conform_batches, stored_batches
from visrec.storage.text_encoding import Encoding, detect_foreign_encoding

KEY = "path"  # the configuration key that names the source
PICTURE = "picture"
_BLOCK_BYTES = 8 << 20
_EXPECTED = "text in UTF-8 or Windows-1252. Unpack a compressed file, or name it .gz."


@dataclass(frozen=True)
class Source:
    """The files that a user names: a folder, or one file of it.

    Attributes:
        store: the folder.
        names: the names of the files that count; orders_2.csv comes before orders_10.csv.
    """

    store: Store
    names: tuple[str, ...]
    _encodings: dict[str, Encoding] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

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
        found = (info.name for info in store.list(follow_links=True))
        names = tuple(sorted(found, key=_with_numbers))
        if not names:
            raise InputError(
                f"Found nothing at {path}; expected a file, or a folder of files. Change --{KEY}.",
                path=path,
                key=KEY,
            )
        return cls(store, names)

    def find_all(self, pattern: str) -> list[str]:
        """The files whose own names match the pattern."""
        is_match = re.compile(pattern, re.IGNORECASE).fullmatch
        return [name for name in self.names if is_match(own_name(name))]

    def require_all(self, pattern: str, expected: str) -> list[str]:
        """The same.

        Args:
            pattern: the pattern of their own names.
            expected: such a file in words, for the error.

        Raises:
            InputError: there are none.
        """
        names = self.find_all(pattern)
        if not names:
            raise self.refuse(self.names, expected)
        return names

    def refuse(self, names: Sequence[str], expected: str) -> InputError:
        """The error about files that are not the expected ones."""
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        return InputError(
            f"Found {shown} at {self.store.root}; expected {expected}. Change --{KEY}.",
            path=self.store.root,
            key=KEY,
        )

    def encoding(self, name: str) -> Encoding:
        """The encoding of a text file, which is decided once, by the whole file.

        Raises:
            InputError: the file is damaged, or is not text in one encoding.
        """
        if name not in self._encodings:
            with self._open(name) as stream:
                blocks = iter(lambda: stream.read(_BLOCK_BYTES), b"")
                found = detect_foreign_encoding(blocks, self.where(name), _EXPECTED)
            self._encodings[name] = found
        return self._encodings[name]

    @property
    def foreign_encodings(self) -> dict[str, str]:
        """The encodings, in words, of the files so far that are not UTF-8."""
        found = sorted(self._encodings.items())
        return {name: encoding.label for name, encoding in found if not encoding.is_utf_8}

    def where(self, name: str) -> str:
        """The location of a file and the key that names it, for errors."""
        return f"{self.store.uri(name)} (--{KEY})"

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
        return _ForeignFile(table, self.store, name, {}, self.encoding(name))

    @contextmanager
    def _open(self, name: str) -> Iterator[pa.NativeFile]:
        stream = self.store.open_input_stream(name, codec_of(name))
        with stream as source, table_errors(self.where(name)):
            yield source

    def lines(self, name: str) -> Iterator[str]:
        """The lines of a text file that are not blank, without their ends.

        Raises:
            InputError: as `encoding`.
        """
        encoding = self.encoding(name)
        codec = "utf-8-sig" if encoding.is_utf_8 else encoding.name
        with self._open(name) as stream:
            for line in io.TextIOWrapper(stream, codec, newline="\n"):
                if line.strip():
                    yield line.rstrip("\r\n")

    def line_blocks(self, name: str) -> Iterator[bytes]:
        """A file as blocks of whole lines, decompressed if its name ends in .gz.

        Raises:
            InputError: the file is damaged.
        """
        rest = b""
        with self._open(name) as stream:
            while block := stream.read(_BLOCK_BYTES):
                whole, newline, rest = (rest + block).rpartition(b"\n")
                if whole.strip():
                    yield whole + newline
        if rest.strip():
            yield rest + b"\n"


def own_name(name: str) -> str:
    """The name of a file without its folders."""
    return name.rpartition("/")[2]


def _with_numbers(name: str) -> list[str | int]:
    """A name for sorting: its parts, of which each second one is a number."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if n % 2 else part for n, part in enumerate(parts)]


@dataclass(frozen=True)
class _ForeignFile(TableFile):
    """A file that somebody else wrote.

    Attributes:
        encoding: the encoding of the whole file.
    """

    encoding: Encoding

    @contextmanager
    def open_input_stream(self) -> Iterator[pa.NativeFile]:
        """The file, in UTF-8 or with a byte order mark."""
        with super().open_input_stream() as stream:
            if self.encoding.name == "cp1252":
                yield pa.PythonFile(_Utf8Reader(stream, self.encoding.name), mode="r")
            else:
                yield stream


class _Utf8Reader:
    """Text of an encoding that has one byte a character, as UTF-8.

    Args:
        stream: the bytes of the text.
        encoding: as Python knows it.
    """

    closed = False

    def __init__(self, stream: pa.NativeFile, encoding: str) -> None:
        self._stream, self._encoding = stream, encoding
        self._ready = b""

    def read(self, size: int) -> bytes:
        """That many bytes, fewer at the end alone."""
        while len(self._ready) < size and (block := self._stream.read(_BLOCK_BYTES)):
            self._ready += block.decode(self._encoding).encode()
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

    def complete_interactions(self) -> Iterator[pa.Table]:
        """The interactions that have a user, an item and a timestamp; the others are counted."""
        for table in self.interactions:
            for name in ("user_id", "item_id", "timestamp"):
                if table[name].null_count:
                    self.left_out[f"without {name}"] += table[name].null_count
                    table = table.filter(table[name].is_valid())
            yield table

    def distinct_items(self) -> Iterator[pa.Table]:
        """The first row of each item; the others, and those without an id, are counted."""
        seen: set[str] = set()
        for table in self.items:
            is_first: list[bool] = []
            for item_id in table["item_id"].to_pylist():
                if item_id is None:
                    self.left_out["items without item_id"] += 1
                elif item_id in seen:
                    self.left_out["repeated items"] += 1
                is_first.append(item_id is not None and item_id not in seen)
                seen.add(item_id)
            yield table.filter(pa.array(is_first, pa.bool_()))


def first_of_list(texts: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """The part of each text before the separator."""
    parts = pc.split_pattern(texts.cast(TEXT), separator, max_splits=1)
    return pc.list_element(parts, 0)
