"""Lists as stores take them: an id and its entries as JSON, some thousand entries at a time.

The JSON is built by Arrow, column by column: from Python objects, a list of 100 entries would take
ten times as long.

B lists, V entries of all lists.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import index_in
from visrec.interactions.log import assign_shards
from visrec.jagged import Jagged, chunk_rows
from visrec.publication.list_tables import Lists

_BATCH_ENTRIES = 1 << 16  # about 5 MB of JSON
Rows = npt.NDArray[np.int64]

_SPECIAL = r'[\x00-\x1f"\\]'  # characters that JSON escapes
# JSON of one value: ensure_ascii would make six bytes of each letter outside ASCII.
to_json = partial(json.dumps, ensure_ascii=False)


@dataclass(frozen=True)
class ListBatch:
    """Some lists, or the removal of some.

    Attributes:
        ids: (B,) the ids of the users or items whose lists they are.
        items: the entries of each list, best first, as a JSON array of objects; None removes the
            list.
        cold: whether each is the fallback list; None where the run does not say.
    """

    ids: Sequence[str]
    items: Sequence[str | None]
    cold: Sequence[bool | None]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def removed(self) -> int:
        """How many lists are removed."""
        return sum(items is None for items in self.items)


def require_short_ids(batch: ListBatch, most_bytes: int, store: str) -> None:
    """Refuses an id that is too long for the key of a store.

    Args:
        batch: the lists.
        most_bytes: the longest id that fits, in UTF-8.
        store: the store in words, for the error.

    Raises:
        InputError: names the id.
    """
    for id in batch.ids:
        if (length := len(id.encode())) > most_bytes:
            raise InputError(
                f"Found the id {id[:40]!r}..., which has {length:,} bytes; expected at most "
                f"{most_bytes:,}, the longest that {store} takes. Nothing of this export is "
                "visible. Export to another target, or shorten the id in the inputs.",
                key="to",
            )


def slices(lists: Lists) -> Iterator[Lists]:
    """The lists in pieces of bounded size, in order."""
    # Lists without entries need space, too.
    for rows in chunk_rows(np.diff(lists.offsets) + 1, _BATCH_ENTRIES):
        yield _take(lists, np.arange(rows.start, min(rows.stop, len(lists.query_ids))))


def all_batches(lists: Lists) -> Iterator[ListBatch]:
    """All lists."""
    for piece in slices(lists):
        yield _batch(piece, items_json(piece))


def changed_batches(lists: Lists, base: Lists) -> Iterator[ListBatch]:
    """The lists that are not the same in `base`, and the removal of those that only `base` has."""
    for piece in slices(lists):
        items = items_json(piece)
        base_B = index_in(piece.query_ids, base.query_ids)
        known = np.flatnonzero(base_B >= 0)
        before = _take(base, base_B[known])
        is_same = pc.equal(items.take(pa.array(known)), items_json(before))
        is_changed_B = np.ones(len(items), bool)
        is_changed_B[known] = ~is_same.to_numpy(zero_copy_only=False)
        is_changed_B[known] |= _differ(piece.cold_B, before.cold_B, known)
        changed = np.flatnonzero(is_changed_B)
        if len(changed):
            yield _batch(_take(piece, changed), items.take(pa.array(changed)))
    for ids in chunk_rows(np.ones(len(base.query_ids), np.int64), _BATCH_ENTRIES):
        candidates = base.query_ids[ids.start : ids.stop]
        is_gone = index_in(candidates, lists.query_ids) < 0
        if gone := candidates.filter(pa.array(is_gone)).to_pylist():
            yield ListBatch(gone, [None] * len(gone), [None] * len(gone))


def have_same_shards(lists: Lists, base: Lists, shard: int, shards: int) -> bool:
    """Whether every list of `base` is in this shard today too: only then has a list that is missing
    in `lists` been removed, and not moved to another shard."""
    gone = base.query_ids.filter(pa.array(index_in(base.query_ids, lists.query_ids) < 0))
    return bool((assign_shards(gone, shards) == shard).all())


def items_json(lists: Lists) -> pa.StringArray:
    """(B,) the entries of each list as a JSON array: `[{"item_id":"a","score":0.5}]`."""
    score_V = pa.array(lists.score_V, pa.float32())
    # JSON has neither NaN nor infinities, which only a forced publication can contain.
    score_V = pc.if_else(pc.is_finite(score_V), pc.cast(score_V, pa.string()), "null")
    texts = ['{"item_id":', _quoted(lists.item_ids), ',"score":', score_V]
    if lists.reason_V is not None:
        texts += [',"because_item_id":', _quoted(lists.reason_V)]
    entry_V = pc.binary_join_element_wise(*texts, "}", "")
    entries = pa.ListArray.from_arrays(pa.array(lists.offsets, pa.int32()), entry_V)
    return pc.binary_join_element_wise("[", pc.binary_join(entries, ","), "]", "")


def _quoted(ids: pa.Array) -> pa.StringArray:
    """(V,) each id as JSON; `null` for none."""
    quoted = pc.fill_null(pc.binary_join_element_wise('"', ids, '"', ""), "null")
    is_special_V = pc.fill_null(pc.match_substring_regex(ids, _SPECIAL), False)
    if not pc.any(is_special_V).as_py():
        return quoted
    escaped = [to_json(id) for id in ids.filter(is_special_V).to_pylist()]
    return pc.replace_with_mask(quoted, is_special_V, pa.array(escaped, pa.string()))


def _batch(lists: Lists, items: pa.StringArray) -> ListBatch:
    cold: list[bool | None] = [None] * len(items)
    if lists.cold_B is not None:
        cold = lists.cold_B.tolist()
    return ListBatch(lists.query_ids.to_pylist(), items.to_pylist(), cold)


def _differ(
    cold_B: npt.NDArray[np.bool_] | None, before_K: npt.NDArray[np.bool_] | None, known: Rows
) -> npt.NDArray[np.bool_] | bool:
    """Whether the fallback flags differ; in one of two layouts no list has a flag."""
    if cold_B is None or before_K is None:
        return (cold_B is None) != (before_K is None)
    return np.asarray(cold_B[known] != before_K)


def _take(lists: Lists, rows: Rows) -> Lists:
    """The lists at these rows, in this order."""
    entries = Jagged(np.arange(len(lists.item_ids)), lists.offsets).take(rows)
    entry_V, row_B = pa.array(entries.values), pa.array(rows)
    return replace(
        lists,
        query_ids=lists.query_ids.take(row_B),
        offsets=entries.offsets,
        item_ids=lists.item_ids.take(entry_V),
        score_V=lists.score_V[entries.values],
        reason_V=None if lists.reason_V is None else lists.reason_V.take(entry_V),
        rank_V=None if lists.rank_V is None else lists.rank_V[entries.values],
        cold_B=None if lists.cold_B is None else lists.cold_B[rows],
    )
