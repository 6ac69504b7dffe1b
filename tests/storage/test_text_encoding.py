"""The encoding of foreign text, by all of it."""

import codecs

import pytest

from visrec.errors import InputError
from visrec.storage.text_encoding import detect_foreign_encoding


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "name", "label"),
    [
        (b"", "utf-8", "UTF-8"),
        (b"a\nb\n", "utf-8", "UTF-8"),
        ("a\ncaf\u00e9 \u20ac\n".encode(), "utf-8", "UTF-8"),
        (codecs.BOM_UTF8 + b"a\n", "utf-8", "UTF-8 with a byte order mark"),
        ("caf\u00e9".encode("utf-16"), "utf-16", "UTF-16"),
        (b"a\n\ncaf\xe9\nb\n", "cp1252", "Windows-1252, since line 3 is not UTF-8"),
        ("caf\u00e9\n".encode() + b"\xe9\n", "cp1252", "Windows-1252, since line 2 is not UTF-8"),
        (b"a\n\xc3", "cp1252", "Windows-1252, since line 2 is not UTF-8"),
    ],
)
def test_encoding_is_that_of_all_blocks(text: bytes, name: str, label: str, size: int) -> None:
    head = text[:4]  # a byte order mark is in one block
    blocks = [head, *(text[n : n + size] for n in range(4, len(text), size))]
    encoding = detect_foreign_encoding(blocks, "x.csv (--path)", "text")
    assert (encoding.name, encoding.label) == (name, label)


@pytest.mark.parametrize(
    "blocks", [[b"\xe9\n\x81\n"], [b"\xe9\n", b"\x81\n"], [b"\xe9\n\x81", b"\n"]]
)
def test_text_that_fits_no_encoding_is_refused_with_its_lines(blocks: list[bytes]) -> None:
    with pytest.raises(
        InputError, match=r"neither UTF-8 \(line 1 is not\) nor Windows-1252 \(line 2 is not\)"
    ):
        detect_foreign_encoding(blocks, "x.csv (--path)", "text")


def test_damaged_text_with_the_byte_order_mark_of_utf_8_is_refused() -> None:
    with pytest.raises(InputError, match=r"UTF-8 \(line 2 is not\) .*-1252 \(line 1 is not\)"):
        detect_foreign_encoding([codecs.BOM_UTF8 + b"a\n\xe9\n"], "x.csv (--path)", "text")


def test_compressed_file_is_not_taken_for_text() -> None:
    with pytest.raises(InputError, match="which is not text; expected text"):
        detect_foreign_encoding([b"PK\x03\x04\x81\xe9"], "x.csv (--path)", "text")
