"""Facts about users' data: what there is, what counts, and which ids do not match."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.features.table import FEATURES_MANIFEST, Manifest, read_index, read_manifest
from visrec.ids import DistinctIds, is_in
from visrec.interactions.log import InteractionLog
from visrec.interactions.read import build_log
from visrec.interactions.split import SplitConfig, SplitPart, explain_empty_part, select_held_out
from visrec.interactions.split import split as split_log
from visrec.sources.id_mismatch import find_difference
from visrec.sources.images import PictureSource, SkippedFiles, list_pictures
from visrec.sources.interactions import NO_FEATURE, InteractionsConfig, read_usable_rows
from visrec.sources.texts import no_texts, read_texts
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import Column
from visrec.storage.store import Store
from visrec.storage.tables import read_batches

_EXAMPLES = 3
_BASKETS = {"with 1 basket": (1, 1), "with 2 or more": (2, None), "with 5 or more": (5, None)}


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The items that can be recommended: those with a picture, an imported feature or a text.

    Attributes:
        ids: the ids of these items.
        noun: what makes an item one of the catalogue.
        with_feature: how many items have a feature already.
        pictures: number of pictures; 0 where these are not read.
        rejected: how many pictures were rejected.
        skipped: files that are not pictures.
    """

    ids: pa.LargeStringArray
    noun: Literal["picture", "feature", "text"]
    with_feature: int
    pictures: int = 0
    rejected: int = 0
    skipped: SkippedFiles = field(default_factory=SkippedFiles)


def read_catalogue(pictures: PictureSource, features: Store) -> Catalogue:
    """Lists the pictures, without reading them; or the ids of features that were imported.

    Raises:
        InputError: there is no picture.
    """
    manifest = read_manifest(features) if features.exists(FEATURES_MANIFEST) else None
    if manifest is not None and manifest.identity.is_imported:
        ids = _ids_of_features(features, manifest)
        return Catalogue(ids=ids, noun="feature", with_feature=len(ids))
    skipped, distinct = SkippedFiles(), DistinctIds()
    number = 0
    for page in list_pictures(pictures, skipped):
        distinct.add(page["item_id"])
        number += page.num_rows
    return Catalogue(
        ids=distinct.ids,
        noun="picture",
        with_feature=manifest.rows if manifest else 0,
        pictures=number,
        rejected=sum(manifest.rejected.values()) if manifest else 0,
        skipped=skipped,
    )


def read_text_catalogue(table: InputTable | None, text_features: Store) -> Catalogue:
    """The items with a text.

    Args:
        table: the items table whose texts the night embeds; None if it embeds none, and the
            existing features say which items have a text.
        text_features: the existing features of texts.

    Raises:
        InputError: the table has no texts; or `table` is None and there are no features of texts.
    """
    if table is None:
        ids = _ids_of_features(text_features, read_manifest(text_features))
        return Catalogue(ids=ids, noun="text", with_feature=len(ids))
    distinct = DistinctIds()
    items = 0
    for batch in read_texts(table):
        distinct.add(batch.filter(batch["text"].is_valid())["item_id"])
        items += len(batch)
    if not len(distinct.ids):
        raise no_texts(table, items)
    rows = read_manifest(text_features).rows if text_features.exists(FEATURES_MANIFEST) else 0
    return Catalogue(ids=distinct.ids, noun="text", with_feature=rows)


def _ids_of_features(features: Store, manifest: Manifest) -> pa.LargeStringArray:
    # Not all parts that are there: what was killed leaves some that do not belong to the table.
    index = read_index(features, sorted(manifest.files), manifest.identity, ["item_id"])
    return index["item_id"].combine_chunks()


@dataclass(kw_only=True)
class ReadRows:
    """The rows of the interactions as they pass by on their way into a log.

    Attributes:
        left_out: rows that do not count, by reason.
        users: all ids of users.
        items: all ids of items.
        first: second of the first row, None without rows.
        last: second of the last row.
    """

    left_out: Counter[str] = field(default_factory=Counter)
    users: DistinctIds = field(default_factory=DistinctIds)
    items: DistinctIds = field(default_factory=DistinctIds)
    first: int | None = None
    last: int | None = None

    def watch(self, batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yields the batches unchanged and records their ids and time range."""
        for batch in batches:
            self.users.add(batch["user_id"])
            self.items.add(batch["item_id"])
            if len(batch):
                bounds = pc.min_max(batch["timestamp"]).as_py()
                self.first = min(bounds["min"], bounds["min"] if self.first is None else self.first)
                self.last = max(bounds["max"], bounds["max"] if self.last is None else self.last)
            yield batch

    @property
    def period(self) -> str | None:
        """The first and the last time; None without rows."""
        if self.first is None or self.last is None:
            return None
        start, end = (datetime.fromtimestamp(s, UTC) for s in (self.first, self.last))
        days = (self.last - self.first) / 86_400
        return f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC, {days:,.0f} days"


def read_rows(
    config: InteractionsConfig, uri: str, item_ids: pa.LargeStringArray, rows: ReadRows
) -> InteractionLog:
    """The interactions as a training would read them.

    Args:
        config: which interactions count.
        uri: where they are.
        item_ids: the catalogue.
        rows: records what was read, even if reading fails at the end.

    Raises:
        InputError: as `build_log` and `read_usable_rows`.
    """
    batches = rows.watch(read_usable_rows(config, uri, rows.left_out))
    return build_log(batches, item_ids, None, rows.left_out)


def users_by_baskets(log: InteractionLog) -> dict[str, int]:
    """How many users have one basket, two or more, five or more."""
    last_U = np.full(len(log.user_ids), -1)
    np.maximum.at(last_U, log.user_R, log.basket_numbers())
    baskets_U = last_U + 1
    return {
        name: int(((baskets_U >= least) & (baskets_U <= (most or baskets_U))).sum())
        for name, (least, most) in _BASKETS.items()
    }


@dataclass(frozen=True, kw_only=True)
class HeldOutFacts:
    """What a training will hold out.

    Attributes:
        counts: users and rows of each part.
        notes: sentences about parts that are empty.
    """

    counts: dict[str, int]
    notes: tuple[str, ...]


def held_out_facts(log: InteractionLog, config: SplitConfig) -> HeldOutFacts:
    """Splits the log as a training does, and counts."""
    part_R = split_log(log, config)
    counts: dict[str, int] = {}
    notes: list[str] = []
    wanted = {SplitPart.TEST: config.test, SplitPart.VALIDATION: config.validation}
    for part, name in ((SplitPart.TEST, "test"), (SplitPart.VALIDATION, "validation")):
        held = select_held_out(log, part_R, part, config)
        counts |= {f"{name} users": len(held), f"{name} rows": len(held.targets.values)}
        if wanted[part] and not len(held):
            notes.append(explain_empty_part(log, config, part))
    counts["training rows"] = int((part_R == SplitPart.TRAIN).sum())
    return HeldOutFacts(counts=counts, notes=tuple(dict.fromkeys(notes)))


def rename_reasons(left_out: Mapping[str, int], noun: str) -> dict[str, int]:
    """The reasons with `NO_FEATURE` renamed, for items that have a picture but no feature yet."""
    renamed = {NO_FEATURE: f"of items without a {noun}"}
    return {renamed.get(reason, reason): count for reason, count in left_out.items() if count}


def table_ids(table: InputTable, column: Column) -> pa.LargeStringArray:
    """The distinct ids of a table."""
    distinct = DistinctIds()
    for batch in read_batches(table, [column]):
        distinct.add(batch[column.name])
    return distinct.ids


@dataclass(kw_only=True)
class BlockedRows:
    """What the rows of a block list name.

    Attributes:
        for_everybody: rows without a user.
        for_one_user: rows with a user.
        items: all ids of items.
        users: all ids of users.
    """

    for_everybody: int = 0
    for_one_user: int = 0
    items: DistinctIds = field(default_factory=DistinctIds)
    users: DistinctIds = field(default_factory=DistinctIds)


def read_blocked(table: InputTable) -> BlockedRows:
    """Reads a block list, and counts."""
    rows = BlockedRows()
    for batch in read_batches(table, schemas.BLOCKED):
        rows.items.add(batch["item_id"])
        rows.for_everybody += len(batch)
        if "user_id" in batch.column_names:
            rows.users.add(batch["user_id"])
            rows.for_one_user += len(batch) - batch["user_id"].null_count
    rows.for_everybody -= rows.for_one_user
    return rows


def compare_ids(ids: pa.LargeStringArray, others: pa.LargeStringArray, what: str) -> dict[str, Any]:
    """How many ids are missing in others, with examples and, if one is found, the difference.

    Args:
        ids: distinct ids.
        others: distinct ids among which they should be.
        what: the noun of the ids, for the count.

    Returns:
        A row of the summary, of any values that JSON can hold.
    """
    missing = ids.filter(pc.invert(is_in(ids, others)))
    if not len(missing):
        return {what: 0}
    comparison = {what: len(missing), "such as": missing[:_EXAMPLES].to_pylist()}
    unmatched = others.filter(pc.invert(is_in(others, ids)))
    difference = find_difference(missing, unmatched) if len(unmatched) else None
    return {**comparison, **({"hint": difference} if difference else {})}
