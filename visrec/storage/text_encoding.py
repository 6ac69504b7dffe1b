"""The encoding of text files, detected from their first bytes."""

import codecs
from dataclasses import dataclass

from visrec.errors import InputError

_COMPRESSED = (b"PAR1", b"\x1f\x8b", b"PK\x03\x04")  # Parquet, gzip, ZIP and Excel


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
