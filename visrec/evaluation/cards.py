"""Items as the report shows them: a title and a small picture, as far as there are any."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visrec.errors import InputError, StorageError
from visrec.evaluation.report import ItemCard, thumbnail
from visrec.ids import is_among
from visrec.sources.images import fetch, list_pictures
from visrec.storage import schemas
from visrec.storage.tables import read_whole


def make_cards(
    rows: npt.NDArray[np.int64], item_ids: pa.Array, images: str, items_uri: str | None
) -> dict[int, ItemCard]:
    """A card for each catalogue row, with title and thumbnail as far as there are any."""
    ids = item_ids.take(pa.array(rows))
    titles, pictures = _titles(ids, items_uri), dict(_pictures(ids, images))
    return {
        int(row): ItemCard(item_id=key, title=titles.get(key), thumbnail=pictures.get(key))
        for row, key in zip(rows, ids.to_pylist(), strict=True)
    }


def _titles(item_ids: pa.Array, items_uri: str | None) -> dict[str, str | None]:
    if not items_uri:
        return {}
    items = read_whole(items_uri, schemas.ITEMS, "items")
    if "title" not in items.column_names:
        return {}
    items = items.filter(is_among(items["item_id"], item_ids))
    return dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))


def _pictures(item_ids: pa.Array, images: str) -> Iterable[tuple[str, bytes | None]]:
    try:
        for page in list_pictures(images):
            wanted = page.filter(is_among(page["item_id"], item_ids))
            for item_id, data in zip(wanted["item_id"].to_pylist(), fetch(wanted), strict=True):
                yield item_id, None if isinstance(data, StorageError) else thumbnail(data)
    except InputError:
        return  # features may come without pictures, as from a table
