"""Items as the report shows them: with a title and a thumbnail, where these exist."""

import io
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from visrec.errors import InputError, StorageError
from visrec.evaluation.report import ItemCard
from visrec.features.containers import PictureError
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.ids import is_in
from visrec.sources.images import fetch_pictures, list_pictures
from visrec.storage import schemas
from visrec.storage.tables import load_table


def make_cards(
    rows: npt.NDArray[np.int64], item_ids: pa.Array, images: str, items_uri: str | None
) -> dict[int, ItemCard]:
    """A card for each of these catalogue rows, by row."""
    ids = item_ids.take(pa.array(rows))
    titles, pictures = _titles(ids, items_uri), dict(_pictures(ids, images))
    return {
        int(row): ItemCard(item_id=key, title=titles.get(key), thumbnail=pictures.get(key))
        for row, key in zip(rows, ids.to_pylist(), strict=True)
    }


def _titles(item_ids: pa.Array, items_uri: str | None) -> dict[str, str | None]:
    if not items_uri:
        return {}
    items = load_table(items_uri, schemas.ITEMS, "items")
    if "title" not in items.column_names:
        return {}
    items = items.filter(is_in(items["item_id"], item_ids))
    return dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))


def _pictures(item_ids: pa.Array, images: str) -> Iterable[tuple[str, bytes | None]]:
    try:
        for page in list_pictures(images):
            wanted = page.filter(is_in(page["item_id"], item_ids))
            for item_id, data in zip(
                wanted["item_id"].to_pylist(), fetch_pictures(wanted), strict=True
            ):
                yield item_id, None if isinstance(data, StorageError) else thumbnail(data)
    except InputError:
        return  # there may be no pictures: features can be imported from a table


def thumbnail(data: bytes, size: int = 96) -> bytes | None:
    """A square JPEG from the middle of a picture; None if the picture cannot be decoded."""
    square = Preprocessing(
        resize=size,
        crop=(size, size),
        interpolation="lanczos",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    try:
        pixels = decode(data, square, PictureLimits())
    except PictureError:
        return None
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=80, optimize=True)
    return out.getvalue()
