"""Which items may be recommended: to anybody, and to each user.

Shapes: N items, U users, V rows of a batch, P distinct pairs of a user and an item.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
from visrec.storage.input_table import InputTable
from visrec.storage.tables import column_names, read_batches

_SAMPLED_IDS = 10_000


def _no_ids() -> pa.LargeStringArray:
    return pa.array([], TEXT)


def require_rule_columns(rules: RulesConfig, items_table: InputTable | None) -> None:
    """Refuses rules that need a column which the items table does not have.

    Raises:
        InputError: there is no items table, or it lacks the column.
    """
    needed = {"cap": rules.cap_by} if rules.cap is not None else {}
    needed |= {"min_stock": "stock"} if rules.min_stock is not None else {}
    if not needed:
        return
    names = [] if items_table is None else column_names(items_table)
    for key, column in needed.items():
        if items_table is None or items_table.stored_name(column) not in names:
            raise no_column_error(rules, key, column)


def no_column_error(rules: RulesConfig, key: str, column: str) -> InputError:
    """The error of a rule that needs a column which the items table does not have.

    Args:
        rules: the rules.
        key: the rule.
        column: the column.
    """
    named_by = " (--rules.cap_by)" if key == "cap" else ""
    return InputError(
        f"Found --rules.{key} {getattr(rules, key):g} and no items table with a column "
        f"{column}{named_by}; expected one. Name it with --items, or leave --rules.{key} out.",
        key=f"rules.{key}",
    )


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
            raise no_column_error(rules, "min_stock", "stock")
        recommendable_N = recommendable_N & ~(items.stock_N < rules.min_stock)
    for batch in read_block_list(rules):
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


def read_block_list(rules: RulesConfig) -> Iterator[pa.Table]:
    """The block list, one batch at a time; nothing without one."""
    if rules.blocked_table is not None:
        yield from read_batches(rules.blocked_table, schemas.BLOCKED)


def items_by_user(batches: Iterable[pa.Table], user_ids: pa.Array, item_ids: pa.Array) -> Jagged:
    """U lists of items, without repeats, from rows of `item_id`, some of which have a `user_id`."""
    pairs = [np.zeros(0, np.int64)]
    for batch in batches:
        if "user_id" not in batch.column_names:
            continue
        user_V, item_V = index_in(batch["user_id"], user_ids), index_in(batch["item_id"], item_ids)
        known_V = (user_V >= 0) & (item_V >= 0)
        pairs.append(user_V[known_V] * len(item_ids) + item_V[known_V])
    user_P, item_P = np.divmod(np.unique(np.concatenate(pairs)), len(item_ids))
    return Jagged.from_row_ids(user_P, item_P, len(user_ids))


@dataclass(frozen=True)
class BlockCounts:
    """How many rows of the block list have no effect. Counts of two sets of users add up: `a + b`.

    The items of such rows may be gone, or their users, or the block list may write the ids
    differently.

    Attributes:
        rows: all rows.
        unused: those without effect.
        unknown_items: ids of items that have no feature, sorted; the first ones.
        unknown_users: ids of users whom no table but the block list names, likewise.
        known_users: ids of the others, likewise.
    """

    rows: int = 0
    unused: int = 0
    unknown_items: pa.Array = field(default_factory=_no_ids)
    unknown_users: pa.Array = field(default_factory=_no_ids)
    known_users: pa.Array = field(default_factory=_no_ids)

    @staticmethod
    def of(
        batches: Iterable[pa.Table], item_ids: pa.LargeStringArray, user_ids: pa.LargeStringArray
    ) -> "BlockCounts":
        """Counts rows of the block list.

        Args:
            batches: batches with item_id, and user_id if the block list has it.
            item_ids: (N,) the catalogue.
            user_ids: (U,) sorted; those of the rows are among them, if they are known.
        """
        total = BlockCounts()
        for batch in batches:
            is_item_unknown_V = index_in(batch["item_id"], item_ids) < 0
            is_user_unknown_V = np.zeros(len(batch), bool)
            users = _no_ids()
            if "user_id" in batch.column_names:
                is_user_unknown_V = batch["user_id"].is_valid().to_numpy() & (
                    index_in(batch["user_id"], user_ids) < 0
                )
                users = batch["user_id"].filter(pa.array(is_user_unknown_V))
            total += BlockCounts(
                rows=len(batch),
                unused=int((is_item_unknown_V | is_user_unknown_V).sum()),
                unknown_items=_first_ids(batch["item_id"].filter(pa.array(is_item_unknown_V))),
                unknown_users=_first_ids(users),
                known_users=user_ids[:_SAMPLED_IDS],
            )
        return total

    def __add__(self, other: "BlockCounts") -> "BlockCounts":
        return BlockCounts(
            self.rows + other.rows,
            self.unused + other.unused,
            _first_ids(self.unknown_items, other.unknown_items),
            _first_ids(self.unknown_users, other.unknown_users),
            _first_ids(self.known_users, other.known_users),
        )

    def warning(self, rules: RulesConfig, item_ids: pa.LargeStringArray) -> str | None:
        """A sentence about the rows without effect; None if there are none."""
        if not self.unused:
            return None
        ids, known, source = (
            (self.unknown_items, item_ids, "the catalogue")
            if len(self.unknown_items)
            else (self.unknown_users, self.known_users, "the users")
        )
        return (
            f"{self.unused:,} of the {self.rows:,} rows of {rules.blocked} (--rules.blocked) block "
            "nothing: their items have no feature, or their users are unknown. "
            f"{explain_id_mismatch(ids, 'The block list', known, source)}"
        )


def _first_ids(*parts: pa.Array | pa.ChunkedArray) -> pa.LargeStringArray:
    """The first distinct ids of all parts, sorted."""
    distinct = pc.unique(pa.concat_arrays([id_array(part) for part in parts]))
    return distinct.take(pc.sort_indices(distinct)[:_SAMPLED_IDS])
