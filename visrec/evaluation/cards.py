"""Items as pages show them: with a title and a thumbnail, where these exist."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from visrec.errors import InputError, StorageError
from visrec.evaluation.report_content import ItemCard, ListEntry, UserExample, VisualClusters
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, decode_whole
from visrec.features.table import FEATURES_MANIFEST, read_manifest
from visrec.ids import TEXT, is_in
from visrec.sources.images import PictureSource, close_readers, fetch_pictures, list_pictures
from visrec.sources.views import item_starts, order_views
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import load_table

# Longest edge and quality of a thumbnail: the first that fits. Pages show 70 to 150 pixels.
_SIZES = ((176, 65), (160, 58), (144, 52), (128, 46), (112, 40), (96, 30))
_LIMITS = PictureLimits()
_MAX_BYTES = 8_000  # of a thumbnail
_ALL_BYTES = 9_000_000  # of all thumbnails of a page; in base64, 12 MB


def picture_source(images: str, features: Store) -> PictureSource:
    """The pictures at a location; file names are read as the features' manifest says."""
    pattern = read_manifest(features).image_pattern if features.exists(FEATURES_MANIFEST) else None
    return PictureSource(images, pattern)


def make_cards(
    item_ids: pa.Array,
    images: PictureSource | None,
    items_table: InputTable | None,
    problems: list[str] | None = None,
) -> dict[str, ItemCard]:
    """A card for each of these items, by id.

    Args:
        item_ids: distinct ids, as text.
        images: where the pictures are, None for none; an item may have none.
        items_table: an items table with titles, or None.
        problems: collects why pictures that are listed could not be fetched.
    """
    titles = _titles(item_ids, items_table)
    max_bytes = min(_MAX_BYTES, _ALL_BYTES // max(len(item_ids), 1))
    problems = [] if problems is None else problems
    pictures = {} if images is None else dict(_pictures(item_ids, images, max_bytes, problems))
    return {
        key: ItemCard(item_id=key, title=titles.get(key), thumbnail=pictures.get(key))
        for key in item_ids.to_pylist()
    }


def add_pictures(
    users: Sequence[UserExample],
    clusters: VisualClusters | None,
    images: PictureSource,
    items_table: InputTable | None,
) -> tuple[list[UserExample], VisualClusters | None, str | None]:
    """The users and clusters of a page with titles and pictures; all copies of an item share one.

    An evaluation keeps its figures even if pictures cannot be listed or fetched.

    Args:
        users: users whose items are ids alone.
        clusters: the same; None for none.
        images: where the pictures are; an item may have none.
        items_table: an items table with titles, or None.

    Returns:
        The users, the clusters, and why pictures are missing; None if they could be listed and
        fetched.
    """
    shown = {card.item_id for user in users for card in user.items}
    shown |= {card.item_id for row in (clusters.rows if clusters else ()) for card in row.items}
    item_ids = pa.array(sorted(shown), TEXT)
    problems: list[str] = []
    try:
        cards = make_cards(item_ids, images, items_table, problems)
        why = f"Pictures are missing: {problems[0]}" if problems else None
    except StorageError as error:
        cards = make_cards(item_ids, None, items_table)
        why = f"No pictures are shown: {error}"
    if clusters:
        rows = [replace(r, items=[cards[i.item_id] for i in r.items]) for r in clusters.rows]
        clusters = replace(clusters, rows=rows)
    return [_with_cards(user, cards) for user in users], clusters, why


def _with_cards(user: UserExample, cards: Mapping[str, ItemCard]) -> UserExample:
    return replace(
        user,
        profile=[cards[item.item_id] for item in user.profile],
        held_out=[entry_with_cards(entry, cards) for entry in user.held_out],
        recommended=[entry_with_cards(entry, cards) for entry in user.recommended],
    )


def entry_with_cards(entry: ListEntry, cards: Mapping[str, ItemCard]) -> ListEntry:
    """The entry with the titles and pictures of its items."""
    because = entry.because and cards[entry.because.item_id]
    return replace(entry, item=cards[entry.item.item_id], because=because)


def _titles(item_ids: pa.Array, items_table: InputTable | None) -> dict[str, str | None]:
    if not items_table:
        return {}
    items = load_table(items_table, schemas.ITEMS)
    if "title" not in items.column_names:
        return {}
    items = items.filter(is_in(items["item_id"], item_ids))
    return dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))


def _pictures(
    item_ids: pa.Array, images: PictureSource, max_bytes: int, problems: list[str]
) -> Iterable[tuple[str, bytes]]:
    """The thumbnail of each item, from the first of its pictures that can be decoded.

    A problem that keeps all other pictures from being fetched is added to `problems`, and ends the
    iteration.
    """
    try:
        pages = [page.filter(is_in(page["item_id"], item_ids)) for page in list_pictures(images)]
    except InputError:
        return  # there may be no pictures: features can be imported from a table
    views, _ = order_views(pa.concat_tables(pages))
    while views.num_rows:
        starts = pa.array(item_starts(views["item_id"]))
        first = views.take(starts)
        shown = []
        try:
            answers = fetch_pictures(first, _LIMITS.max_bytes)
        except InputError as error:  # of a proxy, or of a file that got shorter
            problems.append(str(error))
            return
        finally:
            close_readers()  # few items are shown, so readers are not worth keeping open
        for item_id, answer in zip(first["item_id"].to_pylist(), answers, strict=True):
            if isinstance(answer, StorageError) or answer.data is None:
                continue
            if (small := thumbnail(answer.data, max_bytes)) is not None:
                shown.append(item_id)
                yield item_id, small
        is_tried = pc.is_in(pa.array(range(len(views))), value_set=starts)
        is_shown = is_in(views["item_id"], pa.array(shown, TEXT))
        views = views.filter(pc.invert(pc.or_(is_tried, is_shown.combine_chunks())))


def thumbnail(data: bytes, max_bytes: int = _MAX_BYTES) -> bytes | None:
    """A whole picture as a small WebP; None if it cannot be decoded.

    Args:
        data: bytes of the picture.
        max_bytes: the largest size of a thumbnail. If even the smallest one is larger, that one is
            returned.
    """
    try:
        picture = Image.fromarray(decode_whole(data, _SIZES[0][0], _LIMITS))
    except PictureError:
        return None
    encoded = b""
    for longest, quality in _SIZES:
        small = picture.copy()
        small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        small.save(out, "WEBP", quality=quality, method=2)
        encoded = out.getvalue()
        if len(encoded) <= max_bytes:
            break
    return encoded
