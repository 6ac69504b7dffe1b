"""The encoding of text files: of tables from their first bytes, of foreign exports from all."""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from visrec.errors import InputError

_COMPRESSED = (b"PAR1", b"\x1f\x8b", b"PK\x03\x04")  # Parquet, gzip, ZIP and Excel
_HEAD_BYTES = 1 << 16  # that tell text from other files
_UNDEFINED = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")  # in Windows-1252


@dataclass(frozen=True)
class Encoding:
    """The encoding of a file.

    Attributes:
        name: as Python and pyarrow know it.
        label: as people know it.
        bom: the byte order mark that it starts with, if it is not part of the encoding.
    """

    name: str
    label: str
    bom: bytes = b""

    @property
    def is_utf_8(self) -> bool:
        return self.name == "utf-8"

    def decode(self, head: bytes) -> str:
        """The text of the first bytes, which may end within a character."""
        return head.removeprefix(self.bom).decode(self.name, "replace")


def decode_foreign(text: bytes) -> str:
    """Text in UTF-8, or in Windows-1252 as older programs write it: with other characters than
    those of ASCII, that is hardly ever also UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("cp1252", "replace")


_UTF_8 = Encoding("utf-8", "UTF-8")
_UTF_8_BOM = Encoding("utf-8", "UTF-8 with a byte order mark", codecs.BOM_UTF8)
_UTF_16 = Encoding("utf-16", "UTF-16")


def detect_encoding(head: bytes, where: str, expected: str) -> Encoding:
    """The encoding of a text file.

    Args:
        head: its first bytes.
        where: its location and the key that names it, for the error.
        expected: its format in words, with the extension of the compressed file, for the error.

    Raises:
        InputError: the file is not text, or its encoding is unknown.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return _UTF_16
    if b"\0" in head or head.startswith(_COMPRESSED):
        raise InputError(
            f"{where} cannot be read as a table: it starts with {head[:24]!r}, which is not text; "
            f"expected {expected}"
        )
    return _UTF_8_BOM if head.startswith(codecs.BOM_UTF8) else _UTF_8


def detect_foreign_encoding(blocks: Iterable[bytes], where: str, expected: str) -> Encoding:
    """The encoding of a text file that somebody else wrote: as `detect_encoding`, but Windows-1252,
    as older programs write it, if any line is not UTF-8.

    Args:
        blocks: the whole file, of which the first block decides about byte order marks.
        where: as for `detect_encoding`.
        expected: as for `detect_encoding`.

    Raises:
        InputError: as `detect_encoding`, or the file is in neither encoding.
    """
    stream = iter(blocks)
    head = next(stream, b"")
    encoding = detect_encoding(head[:_HEAD_BYTES], where, expected)
    if not encoding.is_utf_8:
        return encoding
    decoder = codecs.getincrementaldecoder("utf-8")()
    # The lines that contradict the encodings; a byte order mark says UTF-8.
    line, not_utf_8, undefined = 1, 0, 1 if encoding.bom else 0
    for block in chain([head], stream, [b""]):
        if not not_utf_8:
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:  # `object` may begin with the end of a line before
                not_utf_8 = line + error.object.count(b"\n", 0, error.start)
        if not undefined and (byte := _UNDEFINED.search(block)):
            undefined = line + block.count(b"\n", 0, byte.start())
        line += block.count(b"\n")
    if not not_utf_8:
        return encoding
    if undefined:
        raise InputError(
            f"{where} is neither UTF-8 (line {not_utf_8} is not) nor Windows-1252 (line "
            f"{undefined} is not); expected one of the two in the whole file. Correct these lines, "
            "or save the file as UTF-8."
        )
    return Encoding("cp1252", f"Windows-1252, since line {not_utf_8} is not UTF-8")
