"""Cards: whole pictures as small WebP, titles, and a bound on the size of a page."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.sources.test_images import opened_files
from visrec.errors import InputError, StorageError
from visrec.evaluation import cards
from visrec.evaluation.cards import add_pictures, make_cards, thumbnail
from visrec.evaluation.report_content import (
    ClusterRow,
    ItemCard,
    ListEntry,
    UserExample,
    VisualClusters,
)
from visrec.sources.images import PictureSource
from visrec.storage.input_table import InputTable


def picture(width: int, height: int, kind: str = "PNG") -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 200
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def noise(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *(((640, 480), (176, 132)), ((30, 400), (13, 176)), ((96, 96), (96, 96))),
        *(((5, 5), (5, 5)), ((3000, 1), (176, 1))),
    ],
)
def test_thumbnail_is_the_whole_picture(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    small = thumbnail(picture(*shape))
    assert small is not None
    with Image.open(io.BytesIO(small)) as opened:
        assert (opened.format, opened.size, opened.mode) == ("WEBP", expected, "RGB")
        red, green, blue = np.asarray(opened).mean(axis=(0, 1))
    assert abs(red - 200) < 5
    assert max(green, blue) < 8


def test_corners_of_the_picture_are_on_the_thumbnail() -> None:
    pixels = np.full((300, 900, 3), 255, np.uint8)
    pixels[:60, :60] = (255, 0, 0)
    pixels[-60:, -60:] = (0, 0, 255)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    small = thumbnail(out.getvalue())
    assert small is not None
    with Image.open(io.BytesIO(small)) as opened:
        shown = np.asarray(opened).astype(int)
    assert shown[3, 3, 0] - shown[3, 3, 2] > 150
    assert shown[-4, -4, 2] - shown[-4, -4, 0] > 150


@pytest.mark.parametrize("max_bytes", [8000, 4000, 2500])
def test_thumbnail_has_at_most_so_many_bytes(max_bytes: int) -> None:
    small = thumbnail(noise(400, 300), max_bytes)
    assert small is not None
    assert len(small) <= max_bytes


def test_thumbnail_that_fits_nowhere_is_the_smallest() -> None:
    small = thumbnail(noise(400, 300), 10)
    assert small is not None
    with Image.open(io.BytesIO(small)) as opened:
        assert max(opened.size) == 96


@pytest.mark.parametrize("data", [b"", b"not a picture", picture(64, 64)[:80], b"<svg></svg>"])
def test_bytes_that_are_no_picture_have_no_thumbnail(data: bytes) -> None:
    assert thumbnail(data) is None


def test_cards_have_titles_and_pictures_where_these_exist(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(40, 30))
    (tmp_path / "b.png").write_bytes(b"damaged")
    items = str(tmp_path / "items.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b"], "title": ["A hill", None]}), items)
    found = make_cards(pa.array(["a", "b", "c"]), str(tmp_path), InputTable(uri=items, key="items"))
    assert [(card.name, bool(card.thumbnail)) for card in found.values()] == [
        *(("A hill", True), ("b", False), ("c", False))
    ]
    without = make_cards(pa.array(["a"]), str(tmp_path / "nowhere"), None)
    assert without == {"a": ItemCard(item_id="a")}


def test_pictures_of_a_page_share_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"i{n}" for n in range(10)]
    for key in ids:
        (tmp_path / f"{key}.png").write_bytes(noise(300, 200))
    monkeypatch.setattr(cards, "_ALL_BYTES", 30_000)
    found = make_cards(pa.array(ids), str(tmp_path), None)
    assert sum(len(card.thumbnail or b"") for card in found.values()) <= 30_000


def test_all_places_of_an_item_get_its_card(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(40, 30))
    item, other = ItemCard(item_id="a"), ItemCard(item_id="b")
    entry = ListEntry(item=item, because=other)
    user = UserExample(
        user_id="u", profile=[other], profile_size=1, held_out=[entry], recommended=[entry]
    )
    clusters = VisualClusters(count=1, rows=[ClusterRow(size=2, share=1, items=[item, other])])
    (shown,), pictured, why = add_pictures([user], clusters, str(tmp_path), None)
    assert why is None
    assert pictured is not None
    thumbnails = {card.item_id: card.thumbnail for card in (*shown.items, *pictured.rows[0].items)}
    assert thumbnails["a"] is not None
    assert thumbnails["b"] is None
    assert shown.recommended[0].because == other


def test_store_that_does_not_list_its_pictures_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: object) -> None:
        raise StorageError("s3://shop/images refused: AccessDenied")

    monkeypatch.setattr(cards, "list_pictures", refuse)
    card = ItemCard(item_id="a")
    clusters = VisualClusters(count=1, rows=[ClusterRow(size=1, share=1, items=[card])])
    users, pictured, why = add_pictures([], clusters, PictureSource("s3://shop/images"), None)
    assert (users, pictured) == ([], clusters)
    assert why == "No pictures are shown: s3://shop/images refused: AccessDenied"


def test_proxy_that_cannot_be_used_costs_nothing_but_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "socks5://proxy.example:1080")
    images, items = str(tmp_path / "images.parquet"), str(tmp_path / "items.parquet")
    uris = pa.table({"item_id": ["a"], "uri": ["https://shop.example/a.jpg"]})
    pq.write_table(uris, images)
    pq.write_table(pa.table({"item_id": ["a"], "title": ["A hill"]}), items)
    titles = InputTable(uri=items, key="items")
    expected = ItemCard(item_id="a", title="A hill")
    clusters = VisualClusters(
        count=1, rows=[ClusterRow(size=1, share=1, items=[ItemCard(item_id="a")])]
    )
    _, shown, why = add_pictures([], clusters, PictureSource(images), titles)
    assert shown is not None
    assert shown.rows[0].items == [expected]
    assert why is not None
    assert why.startswith("Pictures are missing: Found https_proxy 'socks5://proxy.example:1080'")
    assert make_cards(pa.array(["a"]), PictureSource(images), titles) == {"a": expected}
    nowhere = InputTable(uri=str(tmp_path / "nowhere.parquet"), key="items")
    with pytest.raises(InputError, match="--items"):
        add_pictures([], clusters, PictureSource(images), nowhere)


def test_cards_leave_no_file_of_pictures_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = pa.table({"item_id": ["a", "b"], "image": [picture(40, 30)] * 2})
    pq.write_table(pictures, tmp_path / "images.parquet")
    opened = opened_files(monkeypatch)
    (card,) = make_cards(pa.array(["a"]), PictureSource(str(tmp_path)), None).values()
    assert card.thumbnail
    assert opened
    assert all(file.closed for file in opened)


def test_first_view_that_can_be_decoded_is_shown(tmp_path: Path) -> None:
    """`2` comes before `10`, and a damaged `1` is passed over."""
    for name, size in (("a_10", (40, 20)), ("a_2", (20, 40)), ("b_1", (30, 30))):
        (tmp_path / f"{name}.png").write_bytes(picture(*size))
    (tmp_path / "a_1.png").write_bytes(b"no picture")
    (tmp_path / "c_1.png").write_bytes(b"no picture")
    source = PictureSource(str(tmp_path), "{item_id}_{view}.png")
    found = make_cards(pa.array(["a", "b", "c", "d"]), source, None)
    sizes = {}
    for key, card in found.items():
        if card.thumbnail is not None:
            with Image.open(io.BytesIO(card.thumbnail)) as opened:
                sizes[key] = opened.size
    assert sizes == {"a": (20, 40), "b": (30, 30)}
