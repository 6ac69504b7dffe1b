"""Text in the columns of a terminal: how wide it is, and how it is cut, wrapped and aligned; and
numbers beside their bounds.

Widths are in cells: most characters take one, those of East Asia two, and marks that combine with
the character before them none.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

_ELLIPSIS = "…"
_GAP = "  "  # between columns
_NO_CELL = ("Mn", "Me", "Cf")  # marks, joiners and selectors
_SOFT_HYPHEN = "\xad"  # the one format character that terminals show

# Control characters, which a browser would drop or break lines at, as the signs made for them.
_VISIBLE = {code: 0x2400 + code for code in range(32)} | {127: 0x2421}
# What else steers a terminal, breaks its lines or turns the direction of writing for the rest of
# one, and halves of surrogate pairs, which cannot be printed.
_STEERING = dict.fromkeys(
    [
        *range(0x80, 0xA0),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ],
    0xFFFD,
)


def visible(text: str) -> str:
    """The text for a page, with a sign for each control character."""
    return text.translate(_VISIBLE)


def printable(text: str) -> str:
    """The text for a line on a terminal, where a page would take care of more."""
    return visible(text).translate(_STEERING)


def width(text: str) -> int:
    """Cells that a text takes."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    # Vowels and final consonants of Hangul (U+1160 to U+11FF) join the syllable before them.
    joins = (
        unicodedata.category(character) in ("Mn", "Me", "Cf") or "\u1160" <= character <= "\u11ff"
    )
    if joins and character != _SOFT_HYPHEN:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """The text, or as much of its beginning as fits, with an ellipsis."""
    return text if width(text) <= cells else next(_pieces(text, max(cells - 1, 1))) + _ELLIPSIS


def _pieces(text: str, cells: int) -> Iterator[str]:
    """A text in pieces of at most so many cells; one character may be wider than a piece."""
    piece, taken = "", 0
    for character in text:
        wide = _cells(character)
        if piece and taken + wide > cells:
            yield piece
            piece, taken = "", 0
        piece, taken = piece + character, taken + wide
    yield piece


def wrapped(text: str, cells: int) -> list[str]:
    """A text in lines that break at blanks; a longer word, such as a path, stays whole."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and width(longer) > cells:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def padded(text: str, cells: int) -> str:
    """The text with blanks behind it, as wide as a column."""
    return text + " " * (cells - width(text))


def aligned(rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """A table: names on the left, everything else to the right of its column.

    Args:
        rows: the header and the rows, each a name and its cells.
        columns: of the terminal. A table that is wider comes in parts below each other, each with
            the names, and long names take several lines. None where there is no terminal.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    if columns is None or sum(widths) + len(_GAP) * (len(widths) - 1) <= columns:
        return _part(rows, widths, range(1, len(widths)))
    widths[0] = min(widths[0], max(columns // 3, 1))
    parts = _dealt(widths, columns)
    return "\n\n".join(_part(rows, widths, part) for part in parts)


def _dealt(widths: Sequence[int], columns: int) -> list[list[int]]:
    """The columns beside the names, as many to a part as fit; at least one."""
    parts: list[list[int]] = []
    left = 0
    for n in range(1, len(widths)):
        wide = len(_GAP) + widths[n]
        if not parts or wide > left:
            parts.append([])
            left = columns - widths[0]
        parts[-1].append(n)
        left -= wide
    return parts


def _part(rows: Sequence[Sequence[str]], widths: Sequence[int], shown: Sequence[int]) -> str:
    lines = []
    for name, *cells in rows:
        first, *more = _pieces(name, widths[0])
        right = [" " * (widths[n] - width(cells[n - 1])) + cells[n - 1] for n in shown]
        line = _GAP.join([padded(first, widths[0]), *right])
        lines += [line, *(padded(piece, width(line)) for piece in more)]
    return "\n".join(lines)


def number_beside(found: float, bound: float) -> Any:
    """As the manifest has it and messages print it: rounded, but never onto the other side of the
    bound, nor to the bound itself unless it is that. JSON knows no NaN."""
    if isinstance(found, int):
        return found
    if not math.isfinite(found):
        return str(found)
    found = float(found)
    digits = 4
    while (_sign(round(found, digits) - bound)) != _sign(found - bound):
        digits += 1
    return round(found, digits)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def shortest(bound: float) -> str:
    """A threshold with as many digits as it has."""
    short = f"{bound:g}"
    return short if float(short) == bound else repr(bound)
