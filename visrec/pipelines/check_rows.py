"""What `visrec check` says of each table: rows of its summary, and remarks."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import DistinctIds
from visrec.interactions.log import InteractionLog
from visrec.pipelines.check_facts import (
    Catalogue,
    ReadRows,
    compare_ids,
    read_blocked,
    rename_reasons,
    table_ids,
    users_by_baskets,
)
from visrec.pipelines.job_tables import items_table, users_table
from visrec.pipelines.proposals import DataJob
from visrec.recommend.eligibility import recommendable_mask, require_rule_columns
from visrec.sources.interactions import FUTURE
from visrec.sources.items import read_items
from visrec.storage import schemas
from visrec.storage.arrow_values import NULL_WORDS
from visrec.storage.table_descriptions import describe_table

_ONE_YEAR = 365 * 86_400
_MIN_MATCHED = 0.5  # of the rows; with fewer, ids are probably written differently


def catalogue_rows(catalogue: Catalogue, images: str) -> dict[str, Any]:
    """Summary rows about the pictures at `images`, or about imported features."""
    if catalogue.noun == "feature":
        return {"features": f"{catalogue.with_feature:,}, imported"}
    items = len(catalogue.ids)
    per_item = f" of {items:,} items" if items != catalogue.pictures else ""
    skipped = f"; not pictures: {catalogue.skipped}" if str(catalogue.skipped) else ""
    return {"pictures": f"{catalogue.pictures:,}{per_item} at {images}{skipped}"}


def interaction_rows(
    seen: ReadRows, log: InteractionLog | None, catalogue: Catalogue | None
) -> dict[str, Any]:
    """Summary rows about the interactions; fewer without a catalogue, none without a row."""
    if seen.period is None:
        return {}
    summary_rows: dict[str, Any] = {
        "period": seen.period,
        "users": len(seen.users.ids),
        "items": len(seen.items.ids),
    }
    if log is None or catalogue is None:
        return summary_rows
    noun = catalogue.noun
    items = seen.items.ids
    return {
        "rows": log.read_report.rows,
        **summary_rows,
        "rows left out": rename_reasons(log.read_report.left_out, noun),
        "users by baskets": users_by_baskets(log),
        f"items without {noun}": compare_ids(items, catalogue.ids, "items of the interactions"),
        f"{noun}s never taken": compare_ids(catalogue.ids, items, "items"),
    }


def remarks(
    seen: ReadRows, log: InteractionLog | None, time_format: str, catalogue: Catalogue | None
) -> Iterator[str]:
    """What a user should know, although jobs run.

    Args:
        seen: what is read of the interactions.
        log: those that count; None if a job would refuse them.
        time_format: how the timestamps are written, in words.
        catalogue: the items that can be recommended; None without `log`.
    """
    if seen.last is not None and seen.last < _ONE_YEAR:
        yield (
            f"All timestamps, read as {time_format}, lie in 1970 ({seen.period}): are they times? "
            "Name another column with --interactions.columns."
        )
    if future := seen.left_out[FUTURE]:
        yield (
            f"{future:,} rows are dated after today, {datetime.now(UTC):%Y-%m-%d} in UTC, and are "
            f"left out. Timestamps are read as {time_format}; local times of a place east of UTC "
            "need their zone."
        )
    if log is None or catalogue is None:
        return
    without, read = log.read_report.dropped_missing_feature, log.read_report.rows
    if without > (1 - _MIN_MATCHED) * read:
        noun = catalogue.noun
        yield f"{without:,} of {read:,} rows are of items without a {noun} and are left out."
    if len(log.items) and log.items.lengths.max() < 2:
        yield (
            f"No user took two items with a {catalogue.noun}, so no model can be trained: VisRank "
            "serves, which needs no training."
        )
    for column, ids in (("user_id", seen.users.ids), ("item_id", seen.items.ids)):
        words = ids.filter(pc.is_in(ids, value_set=pa.array(NULL_WORDS, ids.type))).to_pylist()
        if words:
            yield (
                f"There is the {column} {' and '.join(map(repr, words))}, which looks like a null "
                "that became text. If it is one, leave it blank, so that its rows are left out."
            )


def items_rows(config: DataJob, catalogue: Catalogue | None) -> dict[str, Any]:
    """Summary rows about the items table; none without one.

    Raises:
        InputError: a job would refuse it.
    """
    table = items_table(config, config.items, config.items_columns)
    if table is None:
        return {}
    summary_rows: dict[str, Any] = {"items table": describe_table(table, schemas.ITEMS)}
    if catalogue is None:
        return summary_rows
    ids = table_ids(table, schemas.ITEMS[0])
    available = int(read_items(table, catalogue.ids).available_N.sum())
    return {
        **summary_rows,
        "available": f"{available:,} of {len(catalogue.ids):,} items with a {catalogue.noun}",
        f"rows without {catalogue.noun}": compare_ids(ids, catalogue.ids, "items of the table"),
        f"{catalogue.noun}s without row": compare_ids(catalogue.ids, ids, "items"),
    }


def users_rows(config: DataJob, seen: ReadRows, everyone: DistinctIds) -> dict[str, Any]:
    """Summary rows about the users table; adds its users to `everyone`."""
    table = users_table(config, config.users, config.users_columns)
    if table is None:
        return {}
    ids = table_ids(table, schemas.USERS[0])
    everyone.add(ids)
    taken = seen.users.ids
    return {
        "users table": describe_table(table, schemas.USERS),
        "users without rows": compare_ids(ids, taken, "users of the table"),
    }


def rules_rows(config: DataJob, catalogue: Catalogue | None, users: DistinctIds) -> dict[str, Any]:
    """What the rules leave, and what the block list names; an empty dict without such rules.

    Raises:
        InputError: a job would refuse the block list, or the rules leave nothing.
    """
    rules = config.rules
    items = items_table(config, config.items, config.items_columns)
    require_rule_columns(rules, items)
    summary_rows: dict[str, Any] = {}
    if (table := rules.blocked_table) is not None:
        blocked = read_blocked(table)
        summary_rows = {
            "block list": describe_table(table, schemas.BLOCKED),
            "rows of the block list": {
                "for everybody": blocked.for_everybody,
                "for one user": blocked.for_one_user,
            },
            "blocked users unknown": compare_ids(blocked.users.ids, users.ids, "users"),
        }
        if catalogue is not None:
            unknown = compare_ids(blocked.items.ids, catalogue.ids, "items")
            summary_rows[f"blocked without {catalogue.noun}"] = unknown
    if catalogue is not None and (table is not None or rules.min_stock is not None):
        known = read_items(items, catalogue.ids)
        allowed = int(recommendable_mask(rules, known, catalogue.ids).sum())
        summary_rows["in stock, not blocked"] = f"{allowed:,} of {len(catalogue.ids):,} items"
    return summary_rows
