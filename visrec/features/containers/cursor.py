"""Reads numbers and bytes one after the other, never past an end."""

from visrec.features.containers import base


class Cursor:
    """A position in bytes, which moves to what is read next.

    Args:
        format: the format of the file, for errors.
        data: the bytes.
        position: the position of the first byte to read.
        end: position after the last byte that may be read.
    """

    def __init__(self, format: str, data: bytes, position: int, end: int) -> None:
        self._format, self._data = format, data
        self.position, self.end = position, end

    def take(self, size: int) -> bytes:
        """The next bytes.

        Raises:
            PictureError: there are fewer.
        """
        start, self.position = self.position, self.position + size
        if self.position > min(self.end, len(self._data)):
            raise base.truncated(self._format, "in its description")
        return self._data[start : self.position]

    def number(self, size: int) -> int:
        """The next bytes as a number, most significant byte first."""
        return int.from_bytes(self.take(size))

    def version_and_flags(self) -> tuple[int, int]:
        """The first four bytes of a full box."""
        return self.number(1), self.number(3)
