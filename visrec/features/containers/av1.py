"""AV1: how large a coded picture is and how often its pixels are visited, without decoding it."""

from collections.abc import Iterator
from dataclasses import dataclass

from visrec.features.containers import base
from visrec.features.containers.base import count_blocks
from visrec.features.containers.cursor import Cursor

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # kinds of open bitstream units


@dataclass(frozen=True)
class CodedPicture:
    """What the headers of a coded picture say.

    Attributes:
        pixels: width times height of the largest frame that may follow.
        frames: how many frames there are; several only in layers.
    """

    pixels: int
    frames: int


def describe_av1(data: bytes) -> CodedPicture:
    """The size and number of the frames of a coded picture.

    Raises:
        PictureError: its units contradict its length, or none says how large the picture is.
    """
    pixels = frames = 0
    for kind, body in _units(data):
        if kind == _SEQUENCE_HEADER:
            pixels = max(pixels, _frame_size(_Bits(body)))
        frames += kind in (_FRAME_HEADER, _FRAME)
    if not pixels or not frames:
        raise base.corrupt("AVIF", "no AV1 frame, or one without a size")
    return CodedPicture(pixels, frames)


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each open bitstream unit; only headers have a body here."""
    cursor = Cursor("AVIF", data, 0, len(data))
    for _ in count_blocks("AVIF"):
        if cursor.position == len(data):
            return
        header = cursor.number(1)
        kind = header >> 3 & 15
        if header & 4:  # it has an extension
            cursor.number(1)
        size = _leb128(cursor) if header & 2 else len(data) - cursor.position
        start = cursor.position
        cursor.position = start + size
        if cursor.position > len(data):
            raise base.truncated("AVIF", "in its pixels")
        yield kind, data[start : cursor.position] if kind == _SEQUENCE_HEADER else b""


def _leb128(cursor: Cursor) -> int:
    value = 0
    for n in range(8):
        byte = cursor.number(1)
        value |= (byte & 127) << 7 * n
        if not byte & 128:
            break
    return value


class _Bits:
    """The bits of a header, in their order."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise base.corrupt("AVIF", "an AV1 header that is cut off")
        return self._value >> self._left & ((1 << count) - 1)

    def skip_variable_length(self) -> None:
        """Skips a variable-length number: n zeros, a one, n more bits."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        self.read(zeros)


def _frame_size(bits: _Bits) -> int:
    """Width times height of the largest frame that a sequence header allows."""
    bits.read(4)  # profile, still picture
    if bits.read(1):  # a reduced header
        bits.read(5)  # level
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return (bits.read(width_bits) + 1) * (bits.read(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):  # timing
        bits.read(64)
        if bits.read(1):  # pictures at equal intervals
            bits.skip_variable_length()
        if bits.read(1):  # a decoder model
            delay_bits = bits.read(5) + 1
            bits.read(42)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:  # level
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
