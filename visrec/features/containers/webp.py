"""WEBP: chunks of a RIFF file."""

from visrec.features.containers import base
from visrec.features.containers.base import FirstPicture, PictureError, count_blocks
from visrec.features.containers.orientation import read_orientation

_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")
_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # colour profile, EXIF and XMP


def webp_first_picture(data: bytes) -> FirstPicture:
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        raise PictureError("truncated", "The WEBP file is shorter than its header says.")
    chunks = _chunks(data, end)
    exif, xmp = chunks.pop(b"EXIF", b""), chunks.pop(b"XMP ", b"")
    if head := chunks.get(b"VP8X"):
        chunks[b"VP8X"] = bytes([head[0] & ~_METADATA_FLAGS]) + head[1:]
    parts = [
        b"".join([kind, len(body).to_bytes(4, "little"), body, b"\0" * (len(body) % 2)])
        for kind, body in chunks.items()
    ]
    content = b"WEBP" + b"".join(parts)
    file = b"RIFF" + len(content).to_bytes(4, "little") + content
    return FirstPicture("WEBP", file, read_orientation(exif, xmp))


def _chunks(data: bytes, end: int) -> dict[bytes, bytes]:
    """The first chunk of each kind that decoding or orientation needs: of the first frame."""
    chunks: dict[bytes, bytes] = {}
    position = 12
    for _ in count_blocks("WEBP"):
        if position + 8 > end:
            break
        kind = data[position : position + 4]
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        body = data[position + 8 : min(end, position + 8 + size)]
        if len(body) < size and kind in _PIXELS:
            raise base.corrupt("WEBP", "a chunk that is longer than the file")
        if kind in (*_PIXELS, b"VP8X", b"ANIM", b"EXIF", b"XMP "):
            chunks.setdefault(kind, body)
        position += 8 + size + size % 2
    return chunks
