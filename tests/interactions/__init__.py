"""Small logs that are written out row by row."""

from typing import Any

import pyarrow as pa

from visrec.interactions.log import InteractionLog

CATALOGUE = pa.array(["chair", "lamp", "rug", "vase"])


def batch(*rows: tuple[Any, ...]) -> pa.Table:
    """Interactions from rows of user, item, time and optionally the evaluation flag."""
    kinds = [pa.string(), pa.string(), pa.int64(), pa.bool_()][: len(rows[0])]
    names = ["user_id", "item_id", "timestamp", "evaluation"][: len(kinds)]
    columns = [pa.array(c, k) for c, k in zip(zip(*rows, strict=True), kinds, strict=True)]
    return pa.table(dict(zip(names, columns, strict=True)))


def decoded(log: InteractionLog) -> dict[str, list[tuple[str, int]]]:
    """Each user's items and times, in the log's order."""
    items, times = CATALOGUE.take(pa.array(log.item_R)).to_pylist(), log.time_R.tolist()
    rows = list(zip(items, times, strict=True))
    return {
        user: rows[log.offsets[u] : log.offsets[u + 1]]
        for u, user in enumerate(log.user_ids.to_pylist())
    }
