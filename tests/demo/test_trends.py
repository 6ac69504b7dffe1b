"""The scenario trends: works are taken after their release, and interest and taste explain it."""

import numpy as np
import pandas as pd
import pytest

from tests.demo.files import Files, frame, gallery, table, vectors
from visrec.demo.gallery import GalleryConfig
from visrec.evaluation.oracle import InterestCurves

DAY = 86_400
SMALL = GalleryConfig(scenario="trends", paintings=300, artists=20, users=500, picture_size=32)


@pytest.fixture(scope="module")
def files() -> Files:
    return gallery(SMALL)[0]


@pytest.fixture(scope="module")
def sales(files: Files) -> pd.DataFrame:
    """The interactions with rows of users and items, and when the item came out."""
    log, items = frame(files, "interactions.parquet"), frame(files, "truth/items.parquet")
    log["item"] = items.set_index("item_id").index.get_indexer(log.item_id)
    log["user"] = log.user_id.str.removeprefix("user-").astype(int)
    log["release_time"] = items.release_time.to_numpy()[log.item]
    return log


def test_sales_are_in_time_order_by_day_and_nobody_takes_a_work_twice(sales: pd.DataFrame) -> None:
    assert (sales.timestamp % DAY == 0).all()
    assert sales.timestamp.is_monotonic_increasing
    assert not sales.duplicated(["user", "item"]).any()


def test_no_work_is_taken_before_its_release(files: Files, sales: pd.DataFrame) -> None:
    assert (sales.timestamp >= sales.release_time).all()
    released = frame(files, "items.parquet").release_time
    assert released.tolist() == frame(files, "truth/items.parquet").release_time.tolist()
    assert released.max() - released.min() > 150 * DAY


def test_takers_rise_and_decay_within_weeks_of_the_release(sales: pd.DataFrame) -> None:
    # Works that came out early enough for their whole life to be seen.
    early = sales[sales.release_time < sales.timestamp.max() - 100 * DAY]
    takers = np.bincount((early.timestamp - early.release_time) // DAY)  # by day of a work's life
    week = takers[2:9].sum()
    assert week / 7 > 1.3 * takers[0]
    assert week > 3 * takers[42:49].sum() > 0


def test_takings_are_draws_from_the_planted_odds(files: Files, sales: pd.DataFrame) -> None:
    """The log likelihood of the first work of each basket is what the planted odds predict."""
    curves = InterestCurves.from_table(table(files, "truth/items.parquet"))
    assert curves is not None
    score_UI = (
        vectors(files, "truth/users.parquet") @ vectors(files, "truth/items.parquet").T
    ).astype(float)
    surprise, expected, variance = [], [], []
    # A basket is written in the order of the draws, and one's first basket excludes nothing.
    for sale in sales.drop_duplicates("user").itertuples():
        log_p_I = score_UI[sale.user] + curves.log_at(sale.timestamp)
        log_p_I -= np.logaddexp.reduce(log_p_I)
        p_I = np.exp(log_p_I)
        surprise.append(log_p_I[sale.item])
        expected.append(p_I @ log_p_I)
        variance.append(p_I @ log_p_I**2 - expected[-1] ** 2)
    assert abs(np.sum(surprise) - np.sum(expected)) < 4 * np.sqrt(np.sum(variance))


def test_some_users_have_no_taste_of_their_own(files: Files) -> None:
    length_U = np.linalg.norm(vectors(files, "truth/users.parquet"), axis=1)
    assert 0.15 < (length_U == 0).mean() < 0.35


def test_counting_the_last_week_beats_counting_all_time(sales: pd.DataFrame) -> None:
    """Recall at 20 of each user's last basket, among all works."""
    last = sales.groupby("user").timestamp.transform("max")
    held_out, known = sales[sales.timestamp == last], sales[sales.timestamp < last]
    ever_I = np.bincount(known.item, minlength=SMALL.size.paintings)
    hits = []
    for timestamp, basket in held_out.groupby("timestamp"):
        recent = sales[sales.timestamp.between(timestamp - 7 * DAY, timestamp - 1)]
        recent_I = np.bincount(recent.item, minlength=SMALL.size.paintings)
        hits += [
            [item in np.argsort(-count_I, kind="stable")[:20] for count_I in (recent_I, ever_I)]
            for item in basket.item
        ]
    recent, ever = np.mean(hits, axis=0)
    assert recent > 1.3 * ever
