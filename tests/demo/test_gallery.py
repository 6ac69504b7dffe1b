"""The demo gallery: reproducible, consistent, with a planted taste that explains the purchases."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image

from tests.demo.files import Files, frame, gallery, table, vectors
from visrec.demo.gallery import GalleryConfig, write_gallery
from visrec.errors import InputError

SMALL = GalleryConfig(paintings=90, artists=6, users=60, picture_size=64)


@pytest.fixture(scope="module")
def files() -> Files:
    return gallery(SMALL)[0]


def test_same_seed_gives_the_same_bytes(files: Files) -> None:
    again: Files = {}
    write_gallery(SMALL, again.__setitem__)
    assert again == files


def test_other_seed_gives_other_files(files: Files) -> None:
    other, _ = gallery(GalleryConfig(paintings=90, artists=6, users=60, picture_size=64, seed=1))
    assert other.keys() == files.keys()
    assert all(other[name] != files[name] for name in files if name != "users.parquet")


def test_tables_have_the_declared_columns(files: Files) -> None:
    def types(name: str) -> dict[str, str]:
        return {field.name: str(field.type) for field in table(files, name).schema}

    assert types("interactions.parquet") == {
        "user_id": "string",
        "item_id": "string",
        "timestamp": "int64",
    }
    assert types("items.parquet") == {
        "item_id": "string",
        "artist_id": "string",
        "category": "string",
        "title": "string",
        "copies": "int64",
        "available": "bool",
    }
    assert types("users.parquet") == {"user_id": "string"}
    for name, key in (("truth/items.parquet", "item_id"), ("truth/users.parquet", "user_id")):
        schema = table(files, name).schema
        assert schema.names == [key, "vector"]
        assert pa.types.is_fixed_size_list(schema.field("vector").type)
        assert schema.field("vector").type.value_type == pa.float32()


def test_ids_are_consistent_between_files(files: Files) -> None:
    items, users = frame(files, "items.parquet"), frame(files, "users.parquet")
    pictures = {name for name in files if name.startswith("images/")}
    assert pictures == {f"images/{item}.jpg" for item in items.item_id}
    assert frame(files, "truth/items.parquet").item_id.tolist() == items.item_id.tolist()
    assert frame(files, "truth/users.parquet").user_id.tolist() == users.user_id.tolist()
    sales = frame(files, "interactions.parquet")
    assert set(sales.item_id) <= set(items.item_id)
    assert set(sales.user_id) <= set(users.user_id)


def test_every_artist_has_a_work(files: Files) -> None:
    assert frame(files, "items.parquet").artist_id.nunique() == SMALL.artists


def test_sales_stay_within_stock_and_available_means_copies_left(files: Files) -> None:
    items = frame(files, "items.parquet").set_index("item_id")
    sold = frame(files, "interactions.parquet").item_id.value_counts()
    left = items.copies - sold.reindex(items.index, fill_value=0)
    assert (items.copies == 1).any()
    assert (items.copies > 1).any()
    assert (left == 0).any()
    assert left.min() >= 0
    assert (items.available == (left > 0)).all()


def test_sales_are_in_time_order_and_nobody_buys_a_work_twice(files: Files) -> None:
    sales = frame(files, "interactions.parquet")
    in_order = sales.sort_values(["timestamp", "user_id"], kind="stable")
    assert sales.index.tolist() == in_order.index.tolist()
    assert not sales.duplicated(["user_id", "item_id"]).any()


def test_some_users_and_some_works_are_cold(files: Files) -> None:
    sales = frame(files, "interactions.parquet")
    assert 0 < sales.user_id.nunique() < SMALL.users
    assert 0 < sales.item_id.nunique() < SMALL.paintings
    assert (sales.user_id.value_counts() == 1).any()


def test_some_baskets_hold_several_works(files: Files) -> None:
    baskets = frame(files, "interactions.parquet").groupby(["user_id", "timestamp"]).size()
    assert baskets.max() > 1
    assert (baskets.groupby("user_id").size() > 1).sum() > SMALL.users / 2


def test_returned_counts_are_those_of_the_tables(files: Files) -> None:
    _, counts = gallery(SMALL)
    sales = frame(files, "interactions.parquet")
    visits = sales.drop_duplicates(["user_id", "timestamp"]).user_id.value_counts()
    assert counts == {
        "paintings": 90,
        "users": 60,
        "buyers": sales.user_id.nunique(),
        "repeat_buyers": int((visits > 1).sum()),
        "interactions": len(sales),
    }


def test_works_of_one_artist_look_alike(files: Files) -> None:
    """By mean colour, two works of one artist are closer than works of two artists."""
    items = frame(files, "items.parquet")
    colour_IC = np.stack(
        [
            np.asarray(Image.open(io.BytesIO(files[f"images/{item}.jpg"])), float).mean((0, 1))
            for item in items.item_id
        ]
    )
    tint_IC = colour_IC - colour_IC.mean(1, keepdims=True)  # brightness varies freely
    distance_II = np.linalg.norm(tint_IC[:, None] - tint_IC[None], axis=-1)
    same_II = items.artist_id.to_numpy()[:, None] == items.artist_id.to_numpy()[None]
    different = ~np.eye(len(items), dtype=bool)
    assert distance_II[same_II & different].mean() < 0.9 * distance_II[~same_II].mean()


def test_pictures_have_the_configured_size(files: Files) -> None:
    picture = Image.open(io.BytesIO(files["images/work-00000.jpg"]))
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))


def _last_basket_auc(files: Files, score: Callable[[int], npt.NDArray[np.float32]]) -> float:
    """Mean over users with two baskets of how often a bought work outranks one not bought."""
    sales = frame(files, "interactions.parquet")
    row = {item: i for i, item in enumerate(frame(files, "items.parquet").item_id)}
    aucs = []
    for user_id, bought in sales.groupby("user_id"):
        last = bought.timestamp == bought.timestamp.max()
        if last.all():
            continue
        score_I = score(int(str(user_id).removeprefix("user-")))
        held_out = [row[item] for item in bought.item_id[last]]
        others = np.ones(len(row), bool)
        others[[row[item] for item in bought.item_id]] = False
        aucs.append((score_I[held_out][:, None] > score_I[others][None]).mean())
    return float(np.mean(aucs))


def test_planted_taste_explains_the_last_basket_and_a_random_taste_does_not() -> None:
    # Larger than SMALL, so that favourites do not sell out, which would force second choices.
    files, _ = gallery(GalleryConfig(paintings=400, artists=20, users=100, picture_size=32))
    taste_UT = vectors(files, "truth/users.parquet")
    style_IT = vectors(files, "truth/items.parquet")
    random_UT = np.random.default_rng(0).normal(size=taste_UT.shape)
    assert _last_basket_auc(files, lambda user: style_IT @ taste_UT[user]) > 0.85
    assert 0.3 < _last_basket_auc(files, lambda user: style_IT @ random_UT[user]) < 0.7


def test_style_vectors_of_one_artist_are_similar(files: Files) -> None:
    style_IT = vectors(files, "truth/items.parquet")
    artist = frame(files, "items.parquet").artist_id.to_numpy()
    same_II = artist[:, None] == artist[None]
    similar_II = style_IT @ style_IT.T
    assert similar_II[same_II].mean() > 0.6 > similar_II[~same_II].mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"paintings": 5, "artists": 6},
            r"Found --gallery.paintings 5; expected at least one .* 6 of",
        ),
        ({"users": 0}, r"--gallery.users 0; expected a whole number in \[1, "),
        ({"artists": 0}, r"--gallery.artists 0; expected a whole number in \[1, "),
        ({"picture_size": 8}, r"--gallery.picture_size 8; expected a whole number in \[32, "),
        ({"seed": -1}, r"--gallery.seed -1; expected a whole number in \[0, "),
        ({"scenario": "sales"}, r"--gallery.scenario sales; expected one of editions, trends, "),
        ({"scenario": "trends", "paintings": 79}, r"paintings 79; expected .* each of the 80 of"),
    ],
)
def test_impossible_number_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GalleryConfig(**changes)
