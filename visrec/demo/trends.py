"""The scenario *trends*: works come out over half a year, and interest in each rises and decays.

At a moment, a user takes from the works that are out with probability softmax(taste . style + log
interest): the interest of all users in a work peaks within days of its release and is nearly gone
some weeks later (`InterestCurves` of `visrec.evaluation.oracle`). Users arrive over time and come
back every few days for a while. Some have no taste of their own and follow the others. Works do not
run out, and timestamps are days, so that a basket is what a user took on one day.

Shapes as in `visrec.demo.season`.
"""

import numpy as np

from visrec.demo.painting import Random
from visrec.demo.season import (
    DAY,
    OPENING,
    STYLE,
    Season,
    Size,
    Visit,
    plant_works,
    sell,
    unit,
)
from visrec.evaluation.oracle import InterestCurves

DAYS = 180  # of sales
BACKLIST = 30  # days of releases before the first sale
MAX_BASKET = 8

FOLLOWERS = 0.25  # share of users without a taste of their own
ONLOOKERS = 0.02  # share of users who take nothing
SHARPNESS = 3.5  # of a taste: the greatest log-odds that a style can gain
HIT = 1.7  # standard deviation of the log interest at the peak, between works
AFTERMATH = -3.0  # log interest long after the release, less that at the peak
RISE = (5 * DAY, 14 * DAY)  # seconds from release to peak


def play(size: Size, rng: Random) -> Season:
    """Plants works, tastes and interest, and plays the days."""
    works = plant_works(size.paintings, size.artists, rng)
    interest = _interest(size.paintings, rng)
    taste_UT = np.float32(SHARPNESS) * unit(rng.normal(size=(size.users, len(STYLE))))
    taste_UT[rng.random(size.users) < FOLLOWERS] = 0
    score_UI = np.asarray(taste_UT @ works.style_IT.T, np.float32)
    visits = _visits(size.users, rng)
    no_limit_I = np.full(size.paintings, size.users)  # one for every user
    sales, _ = sell(score_UI, no_limit_I, interest.release_time_I, visits, rng, interest)
    return Season(
        works=works,
        item_Id=works.style_IT,
        user_Ud=taste_UT,
        interest=interest,
        sales=sales,
        release_time_I=interest.release_time_I,
        is_available_I=np.ones(size.paintings, bool),
    )


def _interest(paintings: int, rng: Random) -> InterestCurves:
    """Curves of works in the order of their release, each at noon."""
    day_I = np.sort(rng.integers(-BACKLIST, DAYS - 1, paintings))
    peak_I = rng.normal(0, HIT, paintings)
    return InterestCurves(
        release_time_I=OPENING + day_I * DAY + DAY // 2,
        rise_s_I=RISE[0] * (RISE[1] / RISE[0]) ** rng.random(paintings),
        peak_I=peak_I,
        rest_I=peak_I + AFTERMATH,
    )


def _visits(users: int, rng: Random) -> list[Visit]:
    """The visits in time order: a user's last one is where the half-year ends, or earlier."""
    visits = []
    for user in range(users):
        if rng.random() < ONLOOKERS:
            continue
        gaps = rng.geometric(1 / 4, rng.geometric(1 / 8))
        days = rng.integers(0, DAYS - 5) + np.append(0, np.cumsum(gaps))
        days = days[days < DAYS]
        works = np.minimum(rng.geometric(1 / 2.2, len(days)), MAX_BASKET)
        visits += [
            Visit(OPENING + int(day) * DAY, user, int(count))
            for day, count in zip(days, works, strict=True)
        ]
    return sorted(visits, key=lambda visit: (visit.timestamp, visit.user))
