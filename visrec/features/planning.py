"""What an extraction has to do: the listed pictures against the features and rejections on disk."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from visrec.config import plain
from visrec.features.decode import PictureLimits
from visrec.features.table import (
    MANIFEST,
    Identity,
    part_files,
    read_index,
    read_manifest,
    rejected_files,
    require_same_identity,
)
from visrec.ids import TEXT, is_in
from visrec.sources.images import SkippedFiles, list_pictures
from visrec.storage.schemas import REJECTED
from visrec.storage.store import Store

# Rejections for these reasons are tried again, though the picture's file is the same.
_TEMPORARY_REASONS = ["duplicate_id", "unreadable", "out_of_memory"]


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction has to do.

    Attributes:
        listing: one picture per item id, as `visrec.sources.images.LISTING_SCHEMA`.
        pending: the rows of the listing that have to be read.
        stored: item_id, digest, source, part and row of every feature on disk.
        parts: names of the parts that the column `part` of `stored` numbers.
        picture_count: number of pictures, including those that were rejected without being read.
        rejected: rejections that need no second look, with the columns of `REJECTED`.
        not_pictures: number of files that are not pictures, by file extension.
    """

    listing: pa.Table
    pending: pa.Table
    stored: pa.Table
    parts: list[str]
    picture_count: int
    rejected: pa.Table
    not_pictures: Mapping[str, int]


def plan_extraction(
    images: str, store: Store, identity: Identity, limits: PictureLimits
) -> ExtractionPlan:
    """Compares the pictures with the features on disk.

    Args:
        images: location of the pictures.
        store: the features directory.
        identity: of the features to be made.
        limits: rejections under other limits are tried again.

    Raises:
        InputError: there is no picture, or the features on disk are another backbone's.
    """
    skipped = SkippedFiles()
    listing, duplicates = _split_duplicates(pa.concat_tables(list_pictures(images, skipped)))
    unnamed = pa.Table.from_pylist(skipped.rejected, REJECTED)
    earlier = None
    if store.exists(MANIFEST):
        manifest = read_manifest(store)
        require_same_identity(manifest.identity, identity, store, "backbone.name")
        if manifest.settings == plain(limits):
            earlier = read_index(store, rejected_files(store), identity, REJECTED.names)
    parts = part_files(store)
    stored = read_index(store, parts, identity, ["item_id", "digest", "source"])
    rejected = pa.concat_tables([_kept_rejections(earlier, listing, duplicates), unnamed])
    is_done = pc.or_(_has_same_source(listing, stored), _has_same_source(listing, rejected))
    return ExtractionPlan(
        listing=listing,
        pending=listing.filter(pc.invert(is_done)),
        stored=stored,
        parts=parts,
        picture_count=listing.num_rows + duplicates.num_rows + unnamed.num_rows,
        rejected=rejected,
        not_pictures=dict(skipped.not_pictures.most_common()),
    )


def source_keys(item_ids: pa.ChunkedArray, sources: pa.ChunkedArray) -> pa.ChunkedArray:
    """Item id and source as one text per row; null if either is null."""
    return pc.binary_join_element_wise(
        item_ids.cast(TEXT), sources.cast(TEXT), pa.scalar("\0", TEXT)
    )


def _split_duplicates(listing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The first picture of each item id in the order of URI and row, and all other pictures."""
    order = [(name, "ascending") for name in ("item_id", "uri", "row_group", "row")]
    listing = listing.sort_by(order).combine_chunks()
    ids = listing["item_id"]
    is_new = pc.fill_null(pc.not_equal(ids[1:], ids[:-1]), True).combine_chunks()
    is_first = pa.concat_arrays([pa.array([True]), is_new])
    return listing.filter(is_first), listing.filter(pc.invert(is_first))


def _kept_rejections(earlier: pa.Table | None, listing: pa.Table, duplicates: pa.Table) -> pa.Table:
    """The rejections that need no second look: duplicates, and earlier ones of unchanged files."""
    rejected = [_reject_duplicates(duplicates)]
    if earlier is not None:
        is_temporary = pc.is_in(earlier["reason"], value_set=pa.array(_TEMPORARY_REASONS))
        earlier = earlier.filter(pc.invert(is_temporary))
        unchanged = earlier.filter(_has_same_source(earlier, listing))
        rejected.append(unchanged.select(REJECTED.names).cast(REJECTED))
    return pa.concat_tables(rejected)


def _reject_duplicates(duplicates: pa.Table) -> pa.Table:
    reason = pa.repeat(pa.scalar("duplicate_id"), duplicates.num_rows)
    detail = pc.binary_join_element_wise(
        pa.scalar("another picture has this item id:", TEXT),
        pc.fill_null(duplicates["uri"], "a row without a uri"),
        pa.scalar(" ", TEXT),
    )
    columns = [duplicates["item_id"], reason, detail, duplicates["source"]]
    return pa.table(columns, schema=REJECTED)


def _has_same_source(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Whether each row shares item id and source with one of the others; False for null sources."""
    keys = source_keys(rows["item_id"], rows["source"])
    other_keys = source_keys(others["item_id"], others["source"])
    return pc.and_(is_in(keys, pc.drop_null(other_keys)), pc.is_valid(keys))
