"""The scenario *editions*, which is the demo's: two years of sales, most works in several copies.

A user's taste is a direction in the space of styles. Purchases are drawn with probability
softmax(taste . style). Originals are sold once; editions have several copies. The newest works
arrived after the last sale, and some users buy nothing: there are cold items and cold users, as in
any real shop.

Shapes as in `visrec.demo.season`.
"""

import math

import numpy as np

from visrec.demo.painting import Floats, Random
from visrec.demo.season import (
    DAY,
    OPENING,
    STYLE,
    Ints,
    Season,
    Size,
    Visit,
    plant_works,
    sell,
    unit,
)

DAYS = 2 * 365  # of sales
MAX_BASKET = 4
MAX_PROFILE = 30

ONLOOKERS = 0.06  # share of users who bought nothing
ONE_TIMERS = 0.1  # share of users who bought one work
EDITIONS = 0.7  # share of works with several copies
ARRIVALS = 0.04  # share of works that arrived after the last sale

# A sharper taste makes both the oracle and the models better; 10 puts the oracle near 0.94 AUC.
SHARPNESS = 10.0
FASHION = 0.35  # weight of a taste that all users share, which makes popularity a weak signal


def play(size: Size, rng: Random) -> Season:
    """Plants works and tastes, and sells."""
    works = plant_works(size.paintings, size.artists, rng)
    taste_UT = _tastes(size.users, rng)
    copies_I, offered_I = _stock(size.paintings, rng)
    visits = _visits(size.users, rng)
    score_UI: Floats = (taste_UT @ works.style_IT.T).astype(np.float32)
    sales, left_I = sell(score_UI, offered_I, np.zeros_like(offered_I), visits, rng)
    return Season(
        works=works,
        item_Id=works.style_IT,
        user_Ud=taste_UT,
        sales=sales,
        copies_I=copies_I,
        is_available_I=(left_I > 0) | (offered_I < copies_I),
    )


def _tastes(users: int, rng: Random) -> Floats:
    """(U, T) the tastes."""
    fashion_T = unit(rng.normal(size=len(STYLE)))
    taste_UT = unit(unit(rng.normal(size=(users, len(STYLE)))) + FASHION * fashion_T)
    return np.float32(SHARPNESS) * taste_UT


def _stock(paintings: int, rng: Random) -> tuple[Ints, Ints]:
    """(I,) copies of each work, and (I,) copies on sale during the season."""
    is_edition_I = rng.random(paintings) < EDITIONS
    copies_I = np.where(is_edition_I, rng.integers(4, 13, paintings), 1)
    offered_I = copies_I.copy()
    offered_I[paintings - math.ceil(paintings * ARRIVALS) :] = 0
    return copies_I, offered_I


def _visits(users: int, rng: Random) -> list[Visit]:
    """The visits that end in a purchase, in time order."""
    order_U = rng.permutation(users)
    onlookers, one_timers = math.ceil(users * ONLOOKERS), math.ceil(users * ONE_TIMERS)
    visits = []
    for rank, user in enumerate(order_U):
        if rank < onlookers:
            continue
        buys_once = rank < onlookers + one_timers
        count = 1 if buys_once else min(2 + rng.geometric(0.25) - 1, 14)
        sizes = [1] if buys_once else np.minimum(rng.geometric(0.47, count), MAX_BASKET).tolist()
        while sum(sizes) > MAX_PROFILE:
            sizes.pop()
        # Without replacement: two baskets of a user never share a timestamp.
        days = rng.choice(DAYS, len(sizes), replace=False)
        seconds = rng.integers(9 * 3600, 20 * 3600, len(sizes))
        visits += [
            Visit(OPENING + int(day) * DAY + int(second), int(user), size)
            for day, second, size in zip(days, seconds, sizes, strict=True)
        ]
    return sorted(visits, key=lambda visit: (visit.timestamp, visit.user, visit.works))
