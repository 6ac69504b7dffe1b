"""Text for terminals and reports: display width, truncation, wrapping, tables, and numbers printed
beside a bound.

Widths are in terminal cells: most characters take one, East Asian wide characters two, and
combining characters none.
"""

import math
import unicodedata
from collections.abc import Iterator, Sequence

_ELLIPSIS = "…"
_GAP = "  "  # between columns
_ZERO_WIDTH = ("Mn", "Me", "Cf")  # Unicode categories of combining characters and format controls
_SOFT_HYPHEN = "\xad"  # the one format control that terminals show

# Control characters become the symbols that Unicode has for them.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(32)} | {127: 0x2421}
# Other characters that control a terminal, break lines or change the writing direction of the rest
# of a line, and surrogates, which cannot be encoded.
_UNSAFE = dict.fromkeys(
    [
        *range(0x80, 0xA0),
        *range(0x2028, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ],
    0xFFFD,
)


def show_controls(text: str) -> str:
    """The text for an HTML page, with a visible symbol for each control character."""
    return text.translate(_CONTROL_PICTURES)


def printable(text: str) -> str:
    """The text for one line of a terminal, which needs more replacements than a page."""
    return show_controls(text).translate(_UNSAFE)


def width(text: str) -> int:
    """Number of terminal cells that a text takes."""
    return sum(map(_cells, text))


def _cells(character: str) -> int:
    # Hangul vowels and final consonants (U+1160 to U+11FF) join the syllable before them.
    joins = unicodedata.category(character) in _ZERO_WIDTH or "\u1160" <= character <= "\u11ff"
    if joins and character != _SOFT_HYPHEN:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def truncate(text: str, cells: int) -> str:
    """The text, cut with an ellipsis if it is wider than `cells`."""
    return text if width(text) <= cells else next(_pieces(text, max(cells - 1, 1))) + _ELLIPSIS


def _pieces(text: str, cells: int) -> Iterator[str]:
    """The text in pieces of at most `cells` cells, or of one character if that is wider."""
    piece, used = "", 0
    for character in text:
        needed = _cells(character)
        if piece and used + needed > cells:
            yield piece
            piece, used = "", 0
        piece, used = piece + character, used + needed
    yield piece


def wrap(text: str, cells: int) -> list[str]:
    """The text as lines that break at spaces; a longer word, such as a path, is not broken."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and width(longer) > cells:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def pad(text: str, cells: int) -> str:
    """The text, padded with spaces on the right."""
    return text + " " * (cells - width(text))


def format_table(rows: Sequence[Sequence[str]], columns: int | None = None) -> str:
    """A table whose first column is left-aligned and whose other columns are right-aligned.

    Args:
        rows: the header and the rows; the first cell of each is its name.
        columns: width of the terminal, None without one. A wider table is split into parts below
            each other. Each part repeats the names, and long names are broken into several lines.
    """
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    if columns is None or sum(widths) + len(_GAP) * (len(widths) - 1) <= columns:
        return _format_part(rows, widths, range(1, len(widths)))
    widths[0] = min(widths[0], max(columns // 3, 1))
    parts = _split_columns(widths, columns)
    return "\n\n".join(_format_part(rows, widths, part) for part in parts)


def _split_columns(widths: Sequence[int], columns: int) -> list[list[int]]:
    """The columns after the first, as many in each part as fit and at least one."""
    parts: list[list[int]] = []
    room = 0
    for n in range(1, len(widths)):
        needed = len(_GAP) + widths[n]
        if not parts or needed > room:
            parts.append([])
            room = columns - widths[0]
        parts[-1].append(n)
        room -= needed
    return parts


def _format_part(rows: Sequence[Sequence[str]], widths: Sequence[int], part: Sequence[int]) -> str:
    lines = []
    for name, *cells in rows:
        first, *more = _pieces(name, widths[0])
        right = [" " * (widths[n] - width(cells[n - 1])) + cells[n - 1] for n in part]
        line = _GAP.join([pad(first, widths[0]), *right])
        lines += [line, *(pad(piece, width(line)) for piece in more)]
    return "\n".join(lines)


def round_beside(value: float, bound: float) -> int | float | str:
    """The value as messages and the manifest show it: rounded, but never across the bound, and
    never to the bound itself unless it is equal. NaN and infinity become text, as JSON needs."""
    if isinstance(value, int):
        return value
    if not math.isfinite(value):
        return str(value)
    value = float(value)
    digits = 4
    while _sign(round(value, digits) - bound) != _sign(value - bound):
        digits += 1
    return round(value, digits)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def format_threshold(threshold: float) -> str:
    """A threshold with all of its digits and no more."""
    short = f"{threshold:g}"
    return short if float(short) == threshold else repr(threshold)
