"""The first picture of a file and nothing else: what the decoder is given.

Every format wraps its pixels in blocks of a known length. These are walked here, so that Pillow's
parsers see a file without metadata, further frames or whatever lies behind its end: profiles and
texts of any size, broken or made to inflate, neither cost the picture nor time or memory. What the
blocks let one check is checked: PNG has a checksum for each, and JPEG an order of markers.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from visrec.errors import VisrecError
from visrec.sources.formats import HEAD_BYTES, OPENED, format_of

# A walk takes up to 3 microseconds a block on a Xeon core of 2023, and an empty block takes 4 bytes
# of the file. A PNG of 50 MiB in pieces of 8 KiB has 6,400. Only GIF cuts its pixels smaller, into
# 255 bytes, and JPEG may restart at every 64 pixels.
MAX_BLOCKS = 200_000
MAX_PIECES = 1_000_000
_TEXT_BYTES = 1 << 20  # a text that may hold the orientation is inflated up to here


class PictureError(VisrecError):
    """A picture that cannot be used.

    Attributes:
        reason: short code, one of `empty`, `too_many_bytes`, `not_a_picture`,
            `format_not_supported`, `too_many_pixels`, `too_many_scans`, `too_many_blocks`,
            `truncated`, `corrupt`, `out_of_memory`.
        detail: one sentence.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both in args, so that it survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Essentials:
    """The first picture of a file.

    Args:
        format: JPEG, PNG, WEBP or GIF.
        data: a file of that format with this picture alone.
        orientation: 1 to 8, as EXIF counts; 1 where the metadata does not say or cannot be read.
        scans: how often the decoder visits each pixel; above 1 in progressive JPEGs alone.
    """

    format: str
    data: bytes
    orientation: int = 1
    scans: int = 1


def essentials(data: bytes) -> Essentials:
    """The first picture of a file.

    Raises:
        PictureError: the file is of another format, is cut off, or contradicts itself.
    """
    found = format_of(data[:HEAD_BYTES])
    if found in _WALKS:
        return _WALKS[found](data)
    if found is not None:
        raise _not_opened(found)
    raise PictureError("not_a_picture", f"The file starts with {data[:12]!r}.")


def _not_opened(found: str) -> PictureError:
    opened = f"{', '.join(OPENED[:-1])} and {OPENED[-1]}"
    return PictureError("format_not_supported", f"The file is {found}; {opened} are opened.")


def _truncated(format: str, where: str) -> PictureError:
    return PictureError("truncated", f"The {format} ends {where}.")


def _corrupt(format: str, what: str) -> PictureError:
    return PictureError("corrupt", f"The {format} has {what}.")


def _too_many_blocks(format: str, most: int) -> PictureError:
    return PictureError("too_many_blocks", f"The {format} has more than {most} blocks of data.")


def _numbered(format: str) -> Iterator[int]:
    """Counts the blocks of a walk, and ends it where there are too many."""
    yield from range(MAX_BLOCKS)
    raise _too_many_blocks(format, MAX_BLOCKS)


# Orientation.


def _orientation(exif: bytes, xmp: bytes) -> int:
    """Of EXIF, or where it has none, of XMP."""
    found = _exif_orientation(exif)
    if found is None and (match := re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)):
        found = int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation of the first directory of a TIFF header; None where there is none to read."""
    tiff = re.sub(rb"\A(?:Exif\0\0){1,2}", b"", exif)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == 0x0112 and values == 1 and kind in (3, 4):  # a short or a long
                kinds = {3: "H", 4: "I"}
                return int(struct.unpack_from(order + kinds[kind], tiff, entry + 8)[0])
    except struct.error:  # cut off; broken metadata does not cost the picture
        pass
    return None


# JPEG.

# A search runs at the speed of memory where the pattern begins with one byte, and not with \xff+.
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_END_OF_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_EOI, _SOS, _DRI, _APP1 = 0xD9, 0xDA, 0xDD, 0xE1
_RESTARTS = range(0xD0, 0xD8)
_ALONE = {0xD8, 0x01, *_RESTARTS}  # markers without a length
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_OPENED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # lossless and hierarchical ones are not
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, _DRI}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_DECODED = _FRAMES | _TABLES
_BEHIND_A_SCAN = {_EOI, _SOS} | _TABLES | _METADATA
_COLOUR = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # metadata that says what the channels mean
_EXIF, _JPEG_XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def _jpeg(data: bytes) -> Essentials:
    decoded: list[bytes] = []
    metadata: dict[bytes, bytes] = {}  # the last of each kind that matters, with its marker
    scans = interval = 0
    for code, start, end in _segments(data):
        body = data[start + 4 : end]
        if code in _METADATA:
            for kind in (_COLOUR.get(code), *((_EXIF, _JPEG_XMP) if code == _APP1 else ())):
                if kind and body.startswith(kind):
                    metadata[kind] = data[start:end]
            continue
        if code == _SOS:
            scans += 1
            _check_restarts(data, start, end, interval)
        elif code == _DRI:
            interval = int.from_bytes(body[:2])
        elif code in _FRAMES:
            _require_opened(code, body)
        decoded.append(data[start:end])
    if not scans:
        raise _corrupt("JPEG", "no pixels")
    exif, xmp = (metadata.pop(kind, b"")[4:] for kind in (_EXIF, _JPEG_XMP))
    small = b"".join([b"\xff\xd8", *metadata.values(), *decoded, b"\xff\xd9"])
    return Essentials("JPEG", small, _orientation(exif, xmp), scans)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Code, start and end of each segment of the first picture; a scan's with its coded data."""
    at = 2
    for _ in _numbered("JPEG"):
        if not (match := _MARKER.search(data, at)):
            raise _truncated("JPEG", "before its end marker")
        code, at = match[1][0], match.end()
        if code == _EOI:
            return
        if code in _ALONE:
            continue
        length = int.from_bytes(data[at : at + 2])
        if at + max(length, 2) > len(data):
            raise _truncated("JPEG", "in a segment")
        if length < 2:
            raise _corrupt("JPEG", "a segment without a length")
        if code not in _DECODED | _METADATA | {_SOS}:
            raise _corrupt("JPEG", f"the marker {code:#04x}, which means nothing")
        end = _end_of_scan(data, at + length) if code == _SOS else at + length
        yield code, at - 2, end
        at = end


def _require_opened(code: int, frame: bytes) -> None:
    """Tells what libjpeg does not read from what is damaged."""
    if len(frame) < 6:
        raise _corrupt("JPEG", "a frame header that is too short")
    if code not in _OPENED_FRAMES:
        raise _not_opened("a lossless or hierarchical JPEG")
    if frame[0] != 8:
        raise _not_opened(f"a JPEG of {frame[0]} bits a channel")
    if frame[5] not in (1, 3, 4):
        raise _not_opened(f"a JPEG of {frame[5]} channels")


def _end_of_scan(data: bytes, start: int) -> int:
    match = _END_OF_SCAN.search(data, start)
    if match is None:
        raise _truncated("JPEG", "in its pixels")
    if match[1][0] not in _BEHIND_A_SCAN:
        raise _corrupt("JPEG", f"the marker {match[1][0]:#04x} among its pixels")
    return match.start()


def _check_restarts(data: bytes, start: int, end: int, interval: int) -> None:
    """Restart markers count from 0 to 7, and are only where an interval was given."""
    for count, match in enumerate(_RESTART.finditer(data, start, end)):
        if not interval or match[1][0] != _RESTARTS[count % 8]:
            raise _corrupt("JPEG", "restart markers out of order")
        if count == MAX_PIECES:
            raise _too_many_blocks("JPEG", MAX_PIECES)


# PNG.

_PNG = b"\x89PNG\r\n\x1a\n"
_DRAWN = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # in the order of a file
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_XMP, _RAW_EXIF = b"XML:com.adobe.xmp", b"Raw profile type exif"  # the latter by ImageMagick


def _png(data: bytes) -> Essentials:
    chunks: dict[bytes, bytes] = {}
    texts: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    for kind, body in _chunks(data):
        if not chunks and kind != b"IHDR":
            raise _corrupt("PNG", "no header at its start")
        if kind == b"IDAT":
            pixels.append(body)
        elif kind in _TEXTS:
            key = body.partition(b"\0")[0]
            if key in (_XMP, _RAW_EXIF):
                texts.setdefault(key, kind + body)
        elif kind == b"eXIf" or not pixels:
            chunks.setdefault(kind, body)
    if not pixels:
        raise _truncated("PNG", "before its pixels")
    exif = chunks.get(b"eXIf") or _raw_profile(_text(texts.get(_RAW_EXIF, b"")))
    chunks |= {b"IDAT": b"".join(pixels), b"IEND": b""}
    small = _PNG + b"".join(_chunk(kind, chunks[kind]) for kind in _DRAWN if kind in chunks)
    return Essentials("PNG", small, _orientation(exif, _text(texts.get(_XMP, b""))))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk up to the end; metadata with a wrong checksum is left out."""
    at, pixels = len(_PNG), False
    for _ in _numbered("PNG"):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4])
        if pixels and kind != b"IDAT" and (end > len(data) or not kind.isalpha()):
            return  # what is cut off or damaged comes behind the pixels
        if end > len(data) or len(kind) < 4:
            raise _truncated("PNG", "before its pixels do")
        body, at = data[at + 8 : end - 4], end
        sound = zlib.crc32(body, zlib.crc32(kind)) == int.from_bytes(data[end - 4 : end])
        if not kind.isalpha():
            raise _corrupt("PNG", f"a chunk with the name {kind!r}")
        if kind in _DRAWN or not kind[0] & 0x20:  # a capital: it cannot be left out
            if not sound:
                raise _corrupt("PNG", f"a wrong checksum in its chunk {kind.decode()}")
            if kind not in _DRAWN:
                raise _not_opened(f"a PNG with the chunk {kind.decode()}, which PNG does not know")
        if kind == b"IEND":
            return
        pixels = pixels or kind == b"IDAT"
        if sound:
            yield kind, body


def _chunk(kind: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join([len(body).to_bytes(4), kind, body, checksum.to_bytes(4)])


def _text(chunk: bytes) -> bytes:
    """The text of a chunk, kind and body; as much of it as may be inflated."""
    kind, rest = chunk[:4], chunk[4:].partition(b"\0")[2]
    packed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    if not packed:
        return rest
    try:
        return zlib.decompressobj().decompress(rest, _TEXT_BYTES)
    except zlib.error:  # broken metadata does not cost the picture
        return b""


def _raw_profile(text: bytes) -> bytes:
    """EXIF as ImageMagick writes it into a text: a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:  # also of bytes that are not ASCII
        return b""


def require_all_rows(png: bytes) -> None:
    """Refuses a PNG whose compressed pixels end before its last row, which Pillow leaves blank.

    Args:
        png: as `essentials` gives it.

    Raises:
        PictureError: rows are missing.
    """
    left, inflater = _png_bytes(png), zlib.decompressobj()
    waiting = next(body for kind, body in _chunks(png) if kind == b"IDAT")
    while left > 0 and not inflater.eof and waiting:
        left -= len(inflater.decompress(waiting, 1 << 20))
        waiting = inflater.unconsumed_tail
    if left > 0:
        raise PictureError("truncated", f"The PNG's pixels are {left} bytes short of its last row.")


def _png_bytes(png: bytes) -> int:
    """How many bytes the pixels of a PNG inflate to."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", png, 16)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = [(0, 1, 0, 1)]  # the first column, every how many, and the same of rows
    if interlaced:
        passes = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4)]
        passes += [(0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
    total = 0
    for left, across, top, down in passes:
        columns, rows = len(range(left, width, across)), len(range(top, height, down))
        total += rows * (1 + -(-columns * bits // 8)) if columns else 0
    return total


# WEBP.


def _webp(data: bytes) -> Essentials:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise PictureError("truncated", "The WEBP file is shorter than its header says.")
    chunks: dict[bytes, bytes] = {}
    at = 12
    for _ in _numbered("WEBP"):
        if at + 8 > end:
            break
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : min(end, at + 8 + size)]
        if len(body) < size and kind in _WEBP_PIXELS:
            raise _corrupt("WEBP", "a chunk that is longer than the file")
        if kind in (*_WEBP_PIXELS, b"VP8X", b"ANIM", b"EXIF", b"XMP "):
            chunks.setdefault(kind, body)  # of an animation, the first frame
        at += 8 + size + size % 2
    exif, xmp = chunks.pop(b"EXIF", b""), chunks.pop(b"XMP ", b"")
    if b"VP8X" in chunks:
        head = chunks[b"VP8X"]
        chunks[b"VP8X"] = bytes([head[0] & ~_WEBP_METADATA]) + head[1:] if head else head
    parts = [
        b"".join([kind, len(body).to_bytes(4, "little"), body, b"\0" * (len(body) % 2)])
        for kind, body in chunks.items()
    ]
    small = b"WEBP" + b"".join(parts)
    small = b"RIFF" + len(small).to_bytes(4, "little") + small
    return Essentials("WEBP", small, _orientation(exif, xmp))


_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
_WEBP_METADATA = 0x20 | 0x08 | 0x04  # the flags of a profile, EXIF and XMP


# GIF.

_BLOCK = re.compile(rb"[!,;]")


def _gif(data: bytes) -> Essentials:
    header = 13 + _palette_bytes(data[10:11])
    control, at = b"", header
    for _ in _numbered("GIF"):
        match = _BLOCK.search(data, at)  # some writers leave zeros between blocks
        if match is None:
            raise _truncated("GIF", "before its first picture")
        at = match.start()
        if match[0] == b",":
            break
        if match[0] == b";":
            raise _corrupt("GIF", "no picture")
        end = _end_of_blocks(data, at + 2)
        if data[at + 1 : at + 2] == b"\xf9":
            control = data[at:end]  # which colour is transparent
        at = end
    end = _end_of_blocks(data, at + 10 + _palette_bytes(data[at + 9 : at + 10]) + 1)
    return Essentials("GIF", b"".join([data[:header], control, data[at:end], b";"]))


def _palette_bytes(flags: bytes) -> int:
    """Of the palette that follows a header with these flags."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    """Where a chain of blocks, each with its length in front, ends."""
    for _ in range(MAX_PIECES):
        if at >= len(data):
            raise _truncated("GIF", "in a block")
        if not data[at]:
            return at + 1
        at += data[at] + 1
    raise _too_many_blocks("GIF", MAX_PIECES)


_WALKS: dict[str, Callable[[bytes], Essentials]] = {
    "JPEG": _jpeg,
    "PNG": _png,
    "WEBP": _webp,
    "GIF": _gif,
}
