"""Which items may be recommended: to anybody, and to each user.

Shapes: N items, U users, V rows of a batch, P distinct pairs of a user and an item.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.ids import TEXT, id_array, index_in, is_in
from visrec.jagged import Jagged
from visrec.retrieval.rules import RulesConfig
from visrec.sources.id_mismatch import explain_id_mismatch
from visrec.sources.items import Items
from visrec.storage import schemas
from visrec.storage.tables import read_batches


def recommendable_mask(
    rules: RulesConfig, items: Items, item_ids: pa.Array
) -> npt.NDArray[np.bool_]:
    """(N,) which items may be in a list at all: available, in stock and not blocked for everybody.

    Raises:
        InputError: the items table has no stock column, but the rules need one; or no item is left.
    """
    recommendable_N = items.available_N
    if rules.min_stock is not None:
        if items.stock_N is None:
            raise InputError(
                f"Found --rules.min_stock {rules.min_stock:g} and no items table with a stock "
                "column; expected one. Name it with --items, or leave --rules.min_stock out."
            )
        recommendable_N = recommendable_N & ~(items.stock_N < rules.min_stock)
    for batch in _read_blocked(rules):
        if "user_id" in batch.column_names:
            batch = batch.filter(pc.is_null(batch["user_id"]))
        is_blocked = is_in(item_ids, batch["item_id"])
        recommendable_N = recommendable_N & ~is_blocked.to_numpy(zero_copy_only=False)
    if not recommendable_N.any():
        raise InputError(
            f"None of the {int(items.available_N.sum())} available items is in stock and not "
            "blocked. Check --rules.min_stock and --rules.blocked."
        )
    return recommendable_N


def blocked_pairs(rules: RulesConfig) -> Iterator[pa.Table]:
    """The rows of the block list that name a user, one batch at a time."""
    for batch in _read_blocked(rules):
        if "user_id" in batch.column_names:
            yield batch


def _read_blocked(rules: RulesConfig) -> Iterator[pa.Table]:
    """The block list, one batch at a time; nothing without one."""
    if rules.blocked_table is not None:
        yield from read_batches(rules.blocked_table, schemas.BLOCKED)


def items_by_user(batches: Iterable[pa.Table], user_ids: pa.Array, item_ids: pa.Array) -> Jagged:
    """U lists of items, without repeats, from rows of `user_id` and `item_id`."""
    pairs = [np.zeros(0, np.int64)]
    for batch in batches:
        user_V, item_V = index_in(batch["user_id"], user_ids), index_in(batch["item_id"], item_ids)
        known_V = (user_V >= 0) & (item_V >= 0)
        pairs.append(user_V[known_V] * len(item_ids) + item_V[known_V])
    user_P, item_P = np.divmod(np.unique(np.concatenate(pairs)), len(item_ids))
    return Jagged.from_row_ids(user_P, item_P, len(user_ids))


def unused_block_warning(
    rules: RulesConfig, item_ids: pa.LargeStringArray, user_ids: pa.LargeStringArray
) -> str | None:
    """A warning about rows of the block list that have no effect; None if there are no such rows.

    Their items or users may be gone, or the block list may write their ids differently.
    """
    if rules.blocked is None:
        return None
    rows = unused = 0
    unknown_item = unknown_user = pa.array([], TEXT)
    for batch in _read_blocked(rules):
        rows += len(batch)
        no_item_V = index_in(batch["item_id"], item_ids) < 0
        no_user_V = np.zeros(len(batch), bool)
        if "user_id" in batch.column_names:
            no_user_V = batch["user_id"].is_valid().to_numpy() & (
                index_in(batch["user_id"], user_ids) < 0
            )
            if not len(unknown_user):
                unknown_user = id_array(batch["user_id"].filter(pa.array(no_user_V)))
        if not len(unknown_item):
            unknown_item = id_array(batch["item_id"].filter(pa.array(no_item_V)))
        unused += int((no_item_V | no_user_V).sum())
    if not unused:
        return None
    ids, known, source = (
        (unknown_item, item_ids, "the catalogue")
        if len(unknown_item)
        else (unknown_user, user_ids, "the users")
    )
    return (
        f"{unused:,} of the {rows:,} rows of {rules.blocked} (--rules.blocked) block nothing: "
        "their items have no feature, or their users are unknown. "
        f"{explain_id_mismatch(ids, 'The block list', known, source)}"
    )
