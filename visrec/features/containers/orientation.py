"""The orientation of a picture, from EXIF or XMP metadata."""

import re
import struct

_ORIENTATION_TAG = 0x0112
_VALUE_FORMATS = {3: "H", 4: "I"}  # by EXIF type: a short or a long


def read_orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation, 1 to 8, from EXIF if it has one, otherwise from XMP; 1 if neither has."""
    orientation = _exif_orientation(exif)
    if orientation is None and (match := re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp)):
        orientation = int(match[1])
    return orientation if orientation is not None and 1 <= orientation <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    """The orientation in the first directory of a TIFF header; None if it cannot be read."""
    tiff = re.sub(rb"\A(?:Exif\0\0){1,2}", b"", exif)
    byte_order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if byte_order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{byte_order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{byte_order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(f"{byte_order}HHI", tiff, entry)
            if tag == _ORIENTATION_TAG and values == 1 and kind in _VALUE_FORMATS:
                return int(
                    struct.unpack_from(byte_order + _VALUE_FORMATS[kind], tiff, entry + 8)[0]
                )
    except struct.error:  # cut off: broken metadata is no reason to reject a picture
        pass
    return None
