"""Ids of two tables that should be the same and are not: examples of both, and why that may be."""

from collections import Counter
from collections.abc import Callable, Iterator, Set
from functools import partial
from unicodedata import normalize
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

_SHOWN, _SAMPLE, _KNOWN = 3, 1_000, 1_000_000
# What writers change in an id, each with what undoes it, in the order in which all are undone.
_FORMS: dict[str, Callable[[str], str]] = {
    "white space around them": str.strip,
    "upper and lower case": str.casefold,
    "the ending": lambda text: text.rpartition(".")[0] or text,
    "percent-encoding": unquote,
    "Unicode normalization": partial(normalize, "NFC"),
    "the folder": lambda text: text.rpartition("/")[2],
    "leading zeros": lambda text: text.lstrip("0") or text[:1],
}


def differing_ids(ours: pa.Array, our: str, theirs: pa.Array, their: str) -> str:
    """Two sentences about ids of which none is in the other table.

    Args:
        ours: some of one table.
        our: that table, in words.
        theirs: all of the other.
        their: that table, in words.
    """
    some, known = _texts(ours, _SAMPLE), _texts(theirs, _KNOWN)
    text = f"{our} has ids such as {_shown(some)}, and {their} such as {_shown(known)}"
    forms = {**_FORMS, "case, ending, folder and zeros": _undone}
    for words, form in forms.items():
        if match := _match(some, known, form):
            return f"{text}: some would agree without {words}, as {match[0]!r} and {match[1]!r}."
    if affix := _affix(some, set(known)) or _affix(known[:_SAMPLE], set(some)):
        return f"{text}: they would agree without the {affix}."
    return f"{text}."


def _texts(ids: pa.Array, most: int) -> list[str]:
    return [str(text) for text in pc.unique(ids.drop_null())[:most].to_pylist()]


def _shown(ids: list[str]) -> str:
    return ", ".join(f"{text!r:.60}" for text in ids[:_SHOWN])


def _undone(text: str) -> str:
    for form in _FORMS.values():
        text = form(text)
    return text


def _match(some: list[str], known: list[str], form: Callable[[str], str]) -> tuple[str, str] | None:
    of_form = {form(text): text for text in known}
    return next(((text, of_form[form(text)]) for text in some if form(text) in of_form), None)


def _affix(some: list[str], known: Set[str]) -> str | None:
    """What most of these ids have before or behind an id that is known."""
    counts = Counter(affix for text in some for affix in _affixes(text, known))
    for affix, count in counts.most_common(1):
        if 2 * count > len(some):
            return affix
    return None


def _affixes(text: str, known: Set[str]) -> Iterator[str]:
    for at in range(1, min(len(text), 100)):
        if text[at:] in known:
            yield f"beginning {text[:at]!r}"
        if text[:-at] in known:
            yield f"ending {text[-at:]!r}"
