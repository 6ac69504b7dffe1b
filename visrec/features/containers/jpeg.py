"""JPEG: segments that begin with a marker; scans are followed by coded pixels."""

import re
from collections.abc import Iterator

from visrec.features.containers import base
from visrec.features.containers.base import FirstPicture, count_blocks
from visrec.features.containers.orientation import read_orientation

# A search runs at memory speed if its pattern begins with a fixed byte, which \xff+ does not.
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_END_OF_SCAN = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_EOI, _SOS, _DRI, _APP1 = 0xD9, 0xDA, 0xDD, 0xE1
_RESTARTS = range(0xD0, 0xD8)
_WITHOUT_LENGTH = {0xD8, 0x01, *_RESTARTS}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SUPPORTED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}  # the others are lossless or hierarchical
_TABLES = {0xC4, 0xCC, 0xDB, 0xDC, _DRI}
_METADATA = {*range(0xE0, 0xF0), 0xFE}
_DECODED = _FRAMES | _TABLES
_AFTER_SCAN = {_EOI, _SOS} | _TABLES | _METADATA
_COLOUR = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # metadata that says what the channels mean
_EXIF, _XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"


def jpeg_first_picture(data: bytes) -> FirstPicture:
    decoded: list[bytes] = []
    metadata: dict[bytes, bytes] = {}  # the last segment of each kind that matters
    scans = restart_interval = 0
    for marker, start, end in _segments(data):
        body = data[start + 4 : end]
        if marker in _METADATA:
            for kind in (_COLOUR.get(marker), *((_EXIF, _XMP) if marker == _APP1 else ())):
                if kind and body.startswith(kind):
                    metadata[kind] = data[start:end]
            continue
        if marker == _SOS:
            scans += 1
            _check_restarts(data, start, end, restart_interval)
        elif marker == _DRI:
            restart_interval = int.from_bytes(body[:2])
        elif marker in _FRAMES:
            _require_supported(marker, body)
        decoded.append(data[start:end])
    if not scans:
        raise base.corrupt("JPEG", "no pixels")
    exif, xmp = (metadata.pop(kind, b"")[4:] for kind in (_EXIF, _XMP))
    file = b"".join([b"\xff\xd8", *metadata.values(), *decoded, b"\xff\xd9"])
    return FirstPicture("JPEG", file, read_orientation(exif, xmp), scans)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of the first picture; a scan includes its pixels."""
    position = 2
    for _ in count_blocks("JPEG"):
        if not (match := _MARKER.search(data, position)):
            raise base.truncated("JPEG", "before its end marker")
        marker, position = match[1][0], match.end()
        if marker == _EOI:
            return
        if marker in _WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[position : position + 2])
        if position + max(length, 2) > len(data):
            raise base.truncated("JPEG", "in a segment")
        if length < 2:
            raise base.corrupt("JPEG", "a segment without a length")
        if marker not in _DECODED | _METADATA | {_SOS}:
            raise base.corrupt("JPEG", f"the undefined marker {marker:#04x}")
        end = position + length
        if marker == _SOS:
            end = _end_of_scan(data, end)
        yield marker, position - 2, end
        position = end


def _require_supported(marker: int, frame: bytes) -> None:
    """Distinguishes a JPEG that libjpeg does not read from a damaged one.

    Raises:
        PictureError: libjpeg does not read the frame, or the frame is damaged.
    """
    if len(frame) < 6:
        raise base.corrupt("JPEG", "a frame header that is too short")
    if marker not in _SUPPORTED_FRAMES:
        raise base.format_not_supported("a lossless or hierarchical JPEG")
    if frame[0] != 8:
        raise base.format_not_supported(f"a JPEG of {frame[0]} bits a channel")
    if frame[5] not in (1, 3, 4):
        raise base.format_not_supported(f"a JPEG of {frame[5]} channels")


def _end_of_scan(data: bytes, start: int) -> int:
    match = _END_OF_SCAN.search(data, start)
    if match is None:
        raise base.truncated("JPEG", "in its pixels")
    if match[1][0] not in _AFTER_SCAN:
        raise base.corrupt("JPEG", f"the marker {match[1][0]:#04x} among its pixels")
    return match.start()


def _check_restarts(data: bytes, start: int, end: int, interval: int) -> None:
    """Restart markers must count from 0 to 7, and must not occur without a restart interval."""
    for count, match in enumerate(_RESTART.finditer(data, start, end)):
        if not interval or match[1][0] != _RESTARTS[count % 8]:
            raise base.corrupt("JPEG", "restart markers out of order")
        if count == base.MAX_PIECES:
            raise base.too_many_blocks("JPEG", base.MAX_PIECES)
