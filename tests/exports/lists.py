"""Small published runs, and what they are to a reader."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tests.publication.runs import PASSED, draft_manifest, write_files
from visrec.interactions.log import assign_shards
from visrec.publication.completion import finish_run
from visrec.publication.list_tables import (
    COLD_USERS_KEY,
    Layout,
    lists_file,
    lists_table,
    similar_table,
)
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.publication.shards import with_sha256
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store

Entry = dict[str, object]
Seen = dict[str, list[Entry]]  # the list of each user

SHARDS = 3


@dataclass(frozen=True)
class Listed:
    """The list of one user: items with scores and reasons.

    Attributes:
        items: (item, score, because or None), best first.
        cold: whether it is the fallback list.
    """

    items: tuple[tuple[str, float, str | None], ...]
    cold: bool = False


Lists = Mapping[str, Listed]


def made_lists(users: int, version: int = 0, changed: float = 1.0, k: int = 3) -> dict[str, Listed]:
    """Lists that say of which version they are, apart from the share that never changes.

    The first user of each version is in no other, so that each export adds and removes one.
    """
    found = {}
    for n in range(users):
        is_fixed = n >= changed * users
        stem = "fixed" if is_fixed else f"v{version}"
        items = tuple((f"{stem}-{n}-{r}", float(np.float32(0.9 - 0.1 * r)), "b") for r in range(k))
        found[f"only-in-{version}" if n == 0 else f"user {n}"] = Listed(items, cold=n % 7 == 0)
    return found


def seen(lists: Lists, kind: Kind = "user_to_item") -> Seen:
    """What a reader sees of these lists."""
    return {id: [_entry(kind, *entry) for entry in each.items] for id, each in lists.items()}


def _entry(kind: Kind, item: str, score: float, because: str | None) -> Entry:
    # JSON has the shortest decimal that is the same float32.
    entry: Entry = {"item_id": item, "score": float(str(np.float32(score)))}
    return entry if kind == "item_to_item" else {**entry, "because_item_id": because}


def publish(
    recommendations: Store,
    run_id: str,
    lists: Lists,
    *,
    shards: int = SHARDS,
    layout: Layout = "nested",
    kind: Kind = "user_to_item",
) -> None:
    """Publishes a run of these lists; a later one may have any id."""
    make_run(recommendations, run_id, lists, shards=shards, layout=layout, kind=kind)
    assert publish_run(recommendations, run_id)


def make_run(
    recommendations: Store,
    run_id: str,
    lists: Lists,
    *,
    shards: int = SHARDS,
    layout: Layout = "nested",
    kind: Kind = "user_to_item",
) -> None:
    """A complete run that is not published."""
    run = run_store(recommendations, run_id)
    shard_of = assign_shards(pa.array(list(lists), pa.string()), shards)
    files = {}
    for shard in range(shards):
        ids = [id for id, own in zip(lists, shard_of, strict=True) if own == shard]
        table = as_table({id: lists[id] for id in ids}, layout, kind)
        cold_users = {COLD_USERS_KEY: str(sum(lists[id].cold for id in ids))}
        name = f"part-{shard:05d}-of-{shards:05d}-0123456789ab.parquet"
        files[name] = with_sha256(table, cold_users, lists_file)
    draft = draft_manifest(
        run_id=run_id,
        files=write_files(run, files),
        layout=layout,
        kind=kind,
        queries=len(lists),
    )
    finish_run(run, draft, [PASSED])


def as_table(lists: Lists, layout: Layout = "nested", kind: Kind = "user_to_item") -> pa.Table:
    """The table of these lists."""
    names = {item for each in lists.values() for item, _, _ in each.items}
    reasons = {because for each in lists.values() for _, _, because in each.items if because}
    catalogue = sorted(names | reasons)
    width = max((len(each.items) for each in lists.values()), default=0)
    row_BK = np.full((len(lists), width), -1)
    reason_BK = np.full((len(lists), width), -1)
    score_BK = np.zeros((len(lists), width), np.float32)
    for b, each in enumerate(lists.values()):
        for position, (item, score, because) in enumerate(each.items):
            row_BK[b, position], score_BK[b, position] = catalogue.index(item), score
            if because:
                reason_BK[b, position] = catalogue.index(because)
    ids, items = _ids(list(lists)), _ids(catalogue)
    if kind == "item_to_item":
        return similar_table(ids, items, row_BK, score_BK, layout)
    cold_B = np.array([each.cold for each in lists.values()], bool)
    return lists_table(ids, items, row_BK, score_BK, reason_BK, cold_B, layout)


def _ids(ids: Sequence[str]) -> pa.LargeStringArray:
    return pa.array(ids, pa.large_string())
