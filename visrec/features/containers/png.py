"""PNG: chunks with a length, a kind, a body and a checksum."""

import struct
import zlib
from collections.abc import Iterator

from visrec.features.containers import base
from visrec.features.containers.base import FirstPicture, PictureError, count_blocks
from visrec.features.containers.orientation import read_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DECODED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # in the order of a file
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"  # ImageMagick writes the latter
_MAX_TEXT_BYTES = 1 << 20  # of a text that may hold the orientation, after inflation
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# The seven passes of an interlaced PNG: first column, column step, first row, row step.
_PASSES = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4)]
_PASSES += [(0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]


def png_first_picture(data: bytes) -> FirstPicture:
    chunks: dict[bytes, bytes] = {}
    texts: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    for kind, body in _chunks(data):
        if not chunks and kind != b"IHDR":
            raise base.corrupt("PNG", "no header at its start")
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _TEXTS:
            keyword = body.partition(b"\0")[0]
            if keyword in (_XMP, _RAW_EXIF):
                texts.setdefault(keyword, kind + body)
        elif kind == b"eXIf" or not pixels:
            chunks.setdefault(kind, body)
    if not pixels:
        raise base.truncated("PNG", "before its pixels")
    exif = chunks.get(b"eXIf") or _parse_raw_profile(_text(texts.get(_RAW_EXIF, b"")))
    chunks |= {b"IDAT": b"".join(pixels), b"IEND": b""}
    file = _SIGNATURE + b"".join(_chunk(kind, chunks[kind]) for kind in _DECODED if kind in chunks)
    return FirstPicture("PNG", file, read_orientation(exif, _text(texts.get(_XMP, b""))))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk up to the end; metadata with a wrong checksum is skipped."""
    position, has_pixels = len(_SIGNATURE), False
    for _ in count_blocks("PNG"):
        kind = data[position + 4 : position + 8]
        end = position + 12 + int.from_bytes(data[position : position + 4])
        if has_pixels and kind != b"IDAT" and (end > len(data) or not kind.isalpha()):
            return  # only what follows the pixels is cut off or damaged
        if end > len(data) or len(kind) < 4:
            raise base.truncated("PNG", "before its pixels do")
        body, position = data[position + 8 : end - 4], end
        is_intact = _checksum(kind, body) == int.from_bytes(data[end - 4 : end])
        if not kind.isalpha():
            raise base.corrupt("PNG", f"a chunk with the name {kind!r}")
        if kind in _DECODED or _is_critical(kind):
            if not is_intact:
                raise base.corrupt("PNG", f"a wrong checksum in its chunk {kind.decode()}")
            if kind not in _DECODED:
                raise base.format_not_supported(
                    f"a PNG with the chunk {kind.decode()}, which the PNG standard does not define"
                )
        if kind == b"IEND":
            return
        has_pixels = has_pixels or kind == b"IDAT"
        if is_intact:
            yield kind, body


def _is_critical(kind: bytes) -> bool:
    """Whether a decoder must understand the chunk, which a capital first letter says."""
    return not kind[0] & 0x20


def _checksum(kind: bytes, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(kind))


def _chunk(kind: bytes, body: bytes) -> bytes:
    return b"".join([len(body).to_bytes(4), kind, body, _checksum(kind, body).to_bytes(4)])


def _text(chunk: bytes) -> bytes:
    """The text of a chunk (its kind and body), inflated up to a limit."""
    kind, text = chunk[:4], chunk[4:].partition(b"\0")[2]
    is_compressed = kind == b"zTXt"
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        is_compressed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not is_compressed:
        return text
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT_BYTES)
    except zlib.error:  # broken metadata is no reason to reject a picture
        return b""


def _parse_raw_profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text: a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:  # a UnicodeDecodeError is one too
        return b""


def require_all_rows(png: bytes) -> None:
    """Refuses a PNG whose compressed pixels end before its last row, which Pillow leaves blank.

    Args:
        png: a file that `png_first_picture` built.

    Raises:
        PictureError: rows are missing.
    """
    remaining, inflater = _inflated_size(png), zlib.decompressobj()
    compressed = next(body for kind, body in _chunks(png) if kind == b"IDAT")
    while remaining > 0 and not inflater.eof and compressed:
        remaining -= len(inflater.decompress(compressed, 1 << 20))
        compressed = inflater.unconsumed_tail
    if remaining > 0:
        raise PictureError(
            "truncated", f"The PNG's pixels are {remaining} bytes short of its last row."
        )


def _inflated_size(png: bytes) -> int:
    """Bytes of all rows of a PNG after inflation."""
    width, height, depth, colour, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits_per_pixel = depth * _CHANNELS[colour]
    size = 0
    for left, column_step, top, row_step in _PASSES if is_interlaced else [(0, 1, 0, 1)]:
        columns, rows = len(range(left, width, column_step)), len(range(top, height, row_step))
        size += rows * (1 + -(-columns * bits_per_pixel // 8)) if columns else 0
    return size
