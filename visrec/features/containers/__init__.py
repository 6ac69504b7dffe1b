"""The first picture of a file and nothing else: what the decoder is given.

Every format wraps its pixels in blocks of a known length. The modules of this package walk these
blocks, one module per format, and build a file that has only the first picture. Pillow's parsers
therefore never see metadata, further frames or bytes behind the end. Profiles and texts of any
size, broken or made to inflate, neither cause a rejection nor cost time or memory. What can be
checked on the way is checked: PNG has a checksum for each block, and JPEG an order of markers.
"""

from collections.abc import Callable

from visrec.features.containers.avif import avif_first_picture
from visrec.features.containers.base import (
    FirstPicture,
    PictureError,
    format_not_supported,
)
from visrec.features.containers.gif import gif_first_picture
from visrec.features.containers.jpeg import jpeg_first_picture
from visrec.features.containers.png import png_first_picture, require_all_rows
from visrec.features.containers.webp import webp_first_picture
from visrec.sources.formats import HEAD_BYTES, detect_format

__all__ = ["FirstPicture", "PictureError", "first_picture", "require_all_rows"]

_BY_FORMAT: dict[str, Callable[[bytes], FirstPicture]] = {
    "JPEG": jpeg_first_picture,
    "PNG": png_first_picture,
    "WEBP": webp_first_picture,
    "GIF": gif_first_picture,
    "AVIF": avif_first_picture,
}


def first_picture(data: bytes) -> FirstPicture:
    """The first picture of a file.

    Raises:
        PictureError: the file is of another format, is cut off, or contradicts itself.
    """
    format = detect_format(data[:HEAD_BYTES])
    if format is None:
        raise PictureError("not_a_picture", f"The file starts with {data[:12]!r}.")
    if format not in _BY_FORMAT:
        raise format_not_supported(format)
    return _BY_FORMAT[format](data)
