"""Explains why the ids of two tables do not match, with examples of both."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Set
from functools import partial
from unicodedata import normalize
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from visrec.sources.name_patterns import SuggestedPattern, suggest_pattern

_SHOWN, _SAMPLED, _MAX_OTHERS = 3, 1_000, 1_000_000
_MAX_AFFIX = 100  # characters
# Differences that writers of tables introduce, each with a function that removes it.
# `_normalize_all` removes them in this order.
_NORMALIZERS: dict[str, Callable[[str], str]] = {
    "white space around them": str.strip,
    "upper and lower case": str.casefold,
    "the file extension": lambda text: text.rpartition(".")[0] or text,
    "percent-encoding": unquote,
    "Unicode normalization": partial(normalize, "NFC"),
    "the folder": lambda text: text.rpartition("/")[2],
    "leading zeros": lambda text: text.lstrip("0") or text[:1],
}


def explain_id_mismatch(ids: pa.Array, table: str, other_ids: pa.Array, other_table: str) -> str:
    """A sentence with examples of both tables' ids and, if one is found, the difference.

    Args:
        ids: ids of one table, none of which is in the other.
        table: name of that table, with which the sentence starts.
        other_ids: all ids of the other table.
        other_table: name of the other table.
    """
    text = f"{table} has ids such as {_format_ids(_distinct(ids, _SHOWN))}, and {other_table} such "
    text += f"as {_format_ids(_distinct(other_ids, _SHOWN))}"
    difference = find_difference(ids, other_ids)
    return f"{text}: {difference}." if difference else f"{text}."


def find_difference(ids: pa.Array, other_ids: pa.Array) -> str | None:
    """What keeps ids from being equal to those of another table, in words; None if it is unknown.

    Args:
        ids: ids of one table that are not in the other.
        other_ids: ids of the other table.
    """
    sample, others = _distinct(ids, _SAMPLED), _distinct(other_ids, _MAX_OTHERS)
    views = suggest_pattern(others, set(sample))
    if views and views.items < views.names:
        return _describe_views(views)
    normalizers = {
        **_NORMALIZERS,
        "the difference between slashes, spaces, dashes and underscores": _join_by_dashes,
        "case, file extension, folder and zeros": _normalize_all,
    }
    for difference, normalizer in normalizers.items():
        if match := _find_match(sample, others, normalizer):
            return f"some would match without {difference}, as {match[0]!r} and {match[1]!r}"
    affix = _common_affix(sample, set(others)) or _common_affix(others[:_SAMPLED], set(sample))
    if affix:
        return f"they would match without the {affix}"
    return _describe_views(views) if views else None


def _describe_views(views: SuggestedPattern) -> str:
    return (
        f"{views.name!r} would be a picture of {views.item_id!r} with --image_pattern "
        f"'{views.pattern}'"
    )


def _distinct(ids: pa.Array, limit: int) -> list[str]:
    return [str(text) for text in pc.unique(ids.drop_null())[:limit].to_pylist()]


def _format_ids(ids: list[str]) -> str:
    return ", ".join(f"{text!r:.60}" for text in ids[:_SHOWN])


def _normalize_all(text: str) -> str:
    for normalizer in _NORMALIZERS.values():
        text = normalizer(text)
    return text


def _join_by_dashes(text: str) -> str:
    """Slashes, spaces and underscores as dashes: no file name can have the slash of TAS/1046."""
    return re.sub(r"[/\\ _-]+", "-", text)


def _find_match(
    ids: list[str], others: list[str], normalizer: Callable[[str], str]
) -> tuple[str, str] | None:
    """An id and one of the others that are equal once both are normalized."""
    by_normalized = {normalizer(text): text for text in others}
    pairs = ((text, by_normalized.get(normalizer(text))) for text in ids)
    return next(((text, other) for text, other in pairs if other is not None), None)


def _common_affix(ids: list[str], others: Set[str]) -> str | None:
    """The prefix or suffix without which more than half of the ids are among the others."""
    counts = Counter(affix for text in ids for affix in _affixes(text, others))
    for affix, count in counts.most_common(1):
        if 2 * count > len(ids):
            return affix
    return None


def _affixes(text: str, others: Set[str]) -> Iterator[str]:
    for length in range(1, min(len(text), _MAX_AFFIX)):
        if text[length:] in others:
            yield f"prefix {text[:length]!r}"
        if text[:-length] in others:
            yield f"suffix {text[-length:]!r}"
