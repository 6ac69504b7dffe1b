"""Small logs, written out row by row, and what must follow from each."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.interactions.activity import Activity
from visrec.interactions.log import InteractionLog
from visrec.interactions.prepare import prepare_table
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.schemas import INTERACTIONS
from visrec.storage.store import Store

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


def features_at(activity: Activity, moment: int) -> npt.NDArray[np.float32]:
    """(N, K) the features of all items at one moment."""
    return activity.features(np.array([moment]), np.arange(len(activity)))[0]


def prepared_root(folder: Store, config: InteractionsConfig, uri: str, partitions: int) -> Store:
    """A directory in which these interactions are prepared, in so many partitions."""
    root = folder / f"prepared-{partitions}"
    found = prepare_table(config.table(uri), INTERACTIONS, root, partitions)
    assert found.manifest.partitions == partitions
    return root


def assert_equal(found: Any, expected: Any, name: str = "value") -> None:
    """Compares dataclasses, sequences and mappings by what they hold, arrays bit by bit."""
    assert type(found) is type(expected), name
    if is_dataclass(found):
        for each in fields(found):
            assert_equal(
                getattr(found, each.name), getattr(expected, each.name), f"{name}.{each.name}"
            )
    elif isinstance(found, np.ndarray):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
        np.testing.assert_array_equal(found, expected, name)
    elif isinstance(found, Mapping):
        assert_equal(list(found), list(expected), f"names of {name}")
        for key in found:
            assert_equal(found[key], expected[key], f"{name}[{key!r}]")
    elif isinstance(found, Sequence) and not isinstance(found, str):
        assert len(found) == len(expected), name
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{name}[{number}]")
    elif isinstance(found, pa.Array | pa.ChunkedArray | pa.Table):
        assert found.equals(expected), name
    else:
        assert found == expected, name
