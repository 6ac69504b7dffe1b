"""GIF: a header, then extensions and pictures, each a chain of sub-blocks."""

import re

from visrec.features.containers import base
from visrec.features.containers.base import FirstPicture, count_blocks

_BLOCK = re.compile(rb"[!,;]")  # the first byte of an extension, a picture, the end
_GRAPHIC_CONTROL = b"\xf9"  # the extension that names the transparent colour


def gif_first_picture(data: bytes) -> FirstPicture:
    header = 13 + _palette_bytes(data[10:11])
    control, position = b"", header
    for _ in count_blocks("GIF"):
        match = _BLOCK.search(data, position)  # some writers leave zeros between blocks
        if match is None:
            raise base.truncated("GIF", "before its first picture")
        position = match.start()
        if match[0] == b",":
            break
        if match[0] == b";":
            raise base.corrupt("GIF", "no picture")
        end = _end_of_sub_blocks(data, position + 2)
        if data[position + 1 : position + 2] == _GRAPHIC_CONTROL:
            control = data[position:end]
        position = end
    palette = _palette_bytes(data[position + 9 : position + 10])
    end = _end_of_sub_blocks(data, position + 10 + palette + 1)
    return FirstPicture("GIF", b"".join([data[:header], control, data[position:end], b";"]))


def _palette_bytes(flags: bytes) -> int:
    """Size of the palette that follows a header with these flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _end_of_sub_blocks(data: bytes, start: int) -> int:
    """Where a chain of sub-blocks ends, each of which begins with its length."""
    position = start
    for _ in range(base.MAX_PIECES):
        if position >= len(data):
            raise base.truncated("GIF", "in a block")
        if not data[position]:
            return position + 1
        position += data[position] + 1
    raise base.too_many_blocks("GIF", base.MAX_PIECES)
