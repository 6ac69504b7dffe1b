"""What an extraction has to do: the listed pictures against the features and rejections on disk."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.config import plain
from visrec.features.decode import PictureLimits
from visrec.features.pooling import item_sources
from visrec.features.table import (
    FEATURES_MANIFEST,
    Identity,
    Manifest,
    part_files,
    read_index,
    read_manifest,
    rejected_files,
    require_same_identity,
)
from visrec.ids import TEXT, index_in, is_in
from visrec.jagged import concat_ranges, offsets_from_lengths
from visrec.sources.http import hide_secrets, is_http
from visrec.sources.images import PictureSource, SkippedFiles, list_pictures
from visrec.sources.name_patterns import guess_pattern
from visrec.sources.views import MAX_VIEWS, item_starts, order_views
from visrec.storage.schemas import FETCHED, REJECTED
from visrec.storage.store import Store

# Pictures per task: 64 x 224 x 224 x 3 bytes are a block of 10 MB, and fetching and decoding them
# takes about half a second on one core.
CHUNK = 64
_HINT_ROWS = 10_000  # whose names are looked at for views
# Rejections for these reasons are tried again, though the picture's file is the same.
_TEMPORARY_REASONS = ["duplicate_id", "too_many_views", "unreadable", "out_of_memory"]


@dataclass(frozen=True)
class ExtractionPlan:
    """What an extraction has to do.

    Attributes:
        listing: the pictures by item and view, as `visrec.sources.images.LISTING_SCHEMA`, without
            pictures that are rejected unread, such as those whose earlier rejection still holds.
        pending: the rows of the listing that have to be read, all views of an item together, with
            what is known of pictures at http addresses: the columns of `FETCHED`.
        chunks: where the pictures of each task start in `pending`, and their number at the end.
        stored: item_id, digest, source, part and row of every feature on disk.
        parts: names of the parts that the column `part` of `stored` numbers.
        picture_count: number of pictures, including those that were rejected without being read.
        rejected: rejections that need no second look, with the columns of `REJECTED`.
        not_pictures: number of files that are not pictures, by file extension.
        unmatched: number of pictures whose names the pattern does not match.
        hint: a sentence about names that look like those of views, or an empty text.
    """

    listing: pa.Table
    pending: pa.Table
    chunks: list[int]
    stored: pa.Table
    parts: list[str]
    picture_count: int
    rejected: pa.Table
    not_pictures: Mapping[str, int]
    unmatched: int
    hint: str


def plan_extraction(
    images: PictureSource, store: Store, identity: Identity, limits: PictureLimits
) -> ExtractionPlan:
    """Compares the pictures with the features on disk.

    Args:
        images: location of the pictures.
        store: the features directory.
        identity: the identity of the features to be made.
        limits: rejections under other limits are tried again.

    Raises:
        InputError: there is no picture, or the features on disk are another backbone's.
    """
    skipped = SkippedFiles()
    listing, duplicates = order_views(pa.concat_tables(list_pictures(images, skipped)))
    listing, surplus = _split_surplus(listing)
    unnamed = pa.Table.from_pylist(skipped.rejected, REJECTED)
    earlier = None
    fetched = FETCHED.empty_table()
    if store.exists(FEATURES_MANIFEST):
        manifest = read_manifest(store)
        require_same_identity(manifest.identity, identity, store, "backbone.name")
        if manifest.settings == extraction_settings(images, limits):
            earlier = read_index(store, rejected_files(store), identity, REJECTED.names)
        fetched = _read_fetched(store, manifest, is_same=earlier is not None)
    parts = part_files(store)
    stored = read_index(store, parts, identity, ["item_id", "digest", "source"])
    count = listing.num_rows + duplicates.num_rows + surplus.num_rows + unnamed.num_rows
    kept = _kept_rejections(earlier, listing)
    listing = listing.filter(pc.invert(_has_same_source(listing, kept)))
    pending = _pending(listing, stored)
    return ExtractionPlan(
        listing=listing,
        pending=_with_validators(pending, fetched),
        chunks=_chunks(pending["item_id"]),
        stored=stored,
        parts=parts,
        picture_count=count,
        rejected=pa.concat_tables(
            [kept, _reject_duplicates(duplicates), _reject_surplus(surplus), unnamed]
        ),
        not_pictures=dict(skipped.not_pictures.most_common()),
        unmatched=skipped.unmatched,
        hint="" if images.pattern else _hint(listing),
    )


def extraction_settings(images: PictureSource, limits: PictureLimits) -> dict[str, object]:
    """The `settings` of the manifest of extracted features."""
    return {**plain(limits), "image_pattern": images.pattern}  # Manifest.image_pattern


def source_keys(
    item_ids: pa.ChunkedArray, sources: pa.ChunkedArray, views: pa.ChunkedArray | None = None
) -> pa.ChunkedArray:
    """Item id, view and source as one text per row; null if item id or source is null."""
    parts = [item_ids.cast(TEXT), sources.cast(TEXT)]
    if views is not None:
        parts.insert(1, pc.fill_null(views.cast(TEXT), ""))
    return pc.binary_join_element_wise(*parts, pa.scalar("\0", TEXT))


def _split_surplus(listing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The first `MAX_VIEWS` pictures of each item, and all others."""
    starts = item_starts(listing["item_id"])
    counts = np.diff(np.append(starts, len(listing)))
    is_surplus = np.arange(len(listing)) - np.repeat(starts, counts) >= MAX_VIEWS
    return listing.filter(pa.array(~is_surplus)), listing.filter(pa.array(is_surplus))


def _pending(listing: pa.Table, stored: pa.Table) -> pa.Table:
    """All views of the items that have no feature made of exactly these views."""
    items = item_sources(listing)
    is_done = _has_same_item_source(items, stored)
    pending = is_in(listing["item_id"], items["item_id"].filter(pc.invert(is_done)))
    return _in_order_of_rows(listing.filter(pending))


def _in_order_of_rows(pending: pa.Table) -> pa.Table:
    """The items in the order of their first rows in Parquet, so that tasks read on where the last
    one ended; those of files keep their order."""
    if pending["row_group"].null_count == len(pending):
        return pending
    starts = item_starts(pending["item_id"])
    lengths = np.diff(np.append(starts, len(pending)))
    first = pending.select(["uri", "row_group", "row"]).take(starts)
    order = pc.sort_indices(first, [(name, "ascending") for name in first.column_names]).to_numpy()
    return pending.take(concat_ranges(starts[order], offsets_from_lengths(lengths[order])))


def _chunks(item_ids: pa.ChunkedArray) -> list[int]:
    """Where the pictures of each task start: at most `CHUNK`, and no item in two tasks."""
    ends = [*item_starts(item_ids).tolist()[1:], len(item_ids)] if len(item_ids) else []
    bounds, last = [0], 0
    for end in ends:
        if end - bounds[-1] > CHUNK and last > bounds[-1]:
            bounds.append(last)
        last = end
    return [*bounds, last] if last else bounds


def _kept_rejections(earlier: pa.Table | None, listing: pa.Table) -> pa.Table:
    """Earlier rejections of unchanged files, which need no second look."""
    if earlier is None:
        return REJECTED.empty_table()
    is_temporary = pc.is_in(earlier["reason"], value_set=pa.array(_TEMPORARY_REASONS))
    earlier = earlier.filter(pc.invert(is_temporary))
    unchanged = earlier.filter(_has_same_source(earlier, listing))
    return unchanged.select(REJECTED.names).cast(REJECTED)


def _reject_duplicates(duplicates: pa.Table) -> pa.Table:
    shown = [uri and hide_secrets(uri) for uri in duplicates["uri"].to_pylist()]
    detail = pc.binary_join_element_wise(
        pa.scalar("another picture has this item id:", TEXT),
        pc.fill_null(pa.array(shown, TEXT), "a row without a uri"),
        pa.scalar(" ", TEXT),
    )
    return _reject(duplicates, "duplicate_id", detail)


def _reject_surplus(surplus: pa.Table) -> pa.Table:
    text = f"the item has {MAX_VIEWS} other pictures, the most that are used"
    return _reject(surplus, "too_many_views", pa.repeat(pa.scalar(text), surplus.num_rows))


def _reject(rows: pa.Table, reason: str, detail: pa.Array) -> pa.Table:
    reasons = pa.repeat(pa.scalar(reason), rows.num_rows)
    columns = [rows["item_id"], rows["view"], reasons, detail, rows["source"]]
    return pa.table(columns, names=REJECTED.names).cast(REJECTED)


def _has_same_source(rows: pa.Table, others: pa.Table) -> pa.Array:
    """Whether each row shares item id, view and source with one of the others; False for null
    sources."""
    keys, other_keys = (source_keys(t["item_id"], t["source"], t["view"]) for t in (rows, others))
    return pc.and_(is_in(keys, pc.drop_null(other_keys)), pc.is_valid(keys))


def _has_same_item_source(items: pa.Table, stored: pa.Table) -> pa.Array:
    keys, stored_keys = (source_keys(t["item_id"], t["source"]) for t in (items, stored))
    return pc.and_(is_in(keys, pc.drop_null(stored_keys)), pc.is_valid(keys))


def _hint(listing: pa.Table) -> str:
    first = listing.slice(0, _HINT_ROWS)
    is_file = pc.and_(pc.is_null(first["row_group"]), pc.is_valid(first["source"]))
    guess = guess_pattern(first["item_id"].filter(is_file).to_pylist())
    if guess is None:
        return ""
    pattern, (one, other) = guess
    return (
        f"{one} and {other} look like two pictures of one item: if so, give --image_pattern "
        f"'{pattern}'"
    )


# Pictures at http addresses.


def address_key(uri: str | None) -> str:
    """A hash of an http address, which may hold a password; empty for any other location."""
    return hashlib.sha256(uri.encode()).hexdigest() if uri and is_http(uri) else ""


def _read_fetched(store: Store, manifest: Manifest, *, is_same: bool) -> pa.Table:
    """What the last extraction learned of pictures at http addresses.

    Args:
        store: the features directory.
        manifest: the manifest of the last extraction.
        is_same: whether its settings are those of now; otherwise its rejections are not.
    """
    fetched = read_index(store, list(manifest.fetched), manifest.identity, FETCHED.names)
    fetched = fetched.select(FETCHED.names).cast(FETCHED)
    return fetched if is_same else fetched.filter(pc.equal(fetched["reason"], ""))


def _with_validators(pending: pa.Table, fetched: pa.Table) -> pa.Table:
    """The pictures with what is known of them by their addresses."""
    uris = pending["uri"].to_pylist() if pending["source"].null_count else []
    addresses = [address_key(uri) for uri in uris] or [""] * pending.num_rows
    rows = index_in(pa.array(addresses, TEXT), fetched["address"])
    known = fetched.select(FETCHED.names[1:]).take(pa.array(rows, mask=rows < 0))
    pending = pending.append_column("address", pa.array(addresses, TEXT))
    for name in known.column_names:
        pending = pending.append_column(name, known[name].cast(TEXT))
    return pending
