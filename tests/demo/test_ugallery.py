"""The scenario ugallery: each work is sold once, and most users buy once."""

import numpy as np
import pytest

from tests.demo.files import Files, frame, gallery, vectors
from visrec.demo.gallery import GalleryConfig

SMALL = GalleryConfig(scenario="ugallery", paintings=604, artists=20, users=238, picture_size=32)


@pytest.fixture(scope="module")
def files() -> Files:
    return gallery(SMALL)[0]


def test_default_size_is_that_of_the_paper() -> None:
    size = GalleryConfig(scenario="ugallery").size
    assert (size.paintings, size.users) == (6040, 2378)


def test_every_user_buys_and_purchases_have_the_share_of_the_paper(files: Files) -> None:
    sales = frame(files, "interactions.parquet")
    assert sales.user_id.nunique() == 238
    assert len(sales) == 534  # 5,336 of 2,378 users


def test_a_sold_work_is_gone(files: Files) -> None:
    items, sales = frame(files, "items.parquet"), frame(files, "interactions.parquet")
    assert sales.item_id.is_unique
    assert (items.copies == 1).all()
    assert (items.available == ~items.item_id.isin(sales.item_id)).all()
    released = items.set_index("item_id").release_time[sales.item_id].to_numpy()
    assert (sales.timestamp.to_numpy() >= released).all()


def test_most_users_buy_once_and_some_baskets_hold_several_works(files: Files) -> None:
    sales = frame(files, "interactions.parquet")
    baskets = sales.groupby("user_id").timestamp.nunique()
    assert 0.5 < (baskets == 1).mean() < 0.8
    assert sales.groupby(["user_id", "timestamp"]).size().max() > 1


def test_planted_taste_explains_purchases(files: Files) -> None:
    items, sales = frame(files, "truth/items.parquet"), frame(files, "interactions.parquet")
    score_UI = vectors(files, "truth/users.parquet") @ vectors(files, "truth/items.parquet").T
    item = items.set_index("item_id").index.get_indexer(sales.item_id)
    user = sales.user_id.str.removeprefix("user-").astype(int).to_numpy()
    score_RI = score_UI[user]
    below_R = (score_RI < score_RI[np.arange(len(item)), item][:, None]).mean(axis=1)
    assert below_R.mean() > 0.8


def test_favourite_artist_and_subject_are_bought_more_often(files: Files) -> None:
    """Each is bought far more often than by chance, and subjects are those of the artists."""
    items, sales = frame(files, "items.parquet"), frame(files, "interactions.parquet")
    user_Ud = vectors(files, "truth/users.parquet")
    subject_U, artist_U = np.argmax(user_Ud[:, 3:11], axis=1), np.argmax(user_Ud[:, 11:], axis=1)
    bought = sales.merge(items, on="item_id")
    user = bought.user_id.str.removeprefix("user-").astype(int).to_numpy()
    artist = bought.artist_id.str.removeprefix("artist-").astype(int).to_numpy()
    item_Id = vectors(files, "truth/items.parquet")
    row = items.set_index("item_id").index.get_indexer(bought.item_id)
    assert (artist == artist_U[user]).mean() > 3 / 20
    assert (np.argmax(item_Id[row, 3:11], axis=1) == subject_U[user]).mean() > 2 / 8
