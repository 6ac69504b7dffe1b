"""The scenario *ugallery*: as many users, works and purchases as UGallery, the shop of the paper.

Every work is one of a kind: once sold, it is gone. Works are put on sale over four years, and most
users buy once. A user looks for a style and a subject, which together are what a visual cluster of
pictures shares, and has a favourite artist, who has both: the log-odds of a purchase are taste .
style, plus a bonus for the subject, plus one for the artist.

Messina et al. 2020 (arXiv 2009.04426), section 5: 2,378 users, 6,040 works, 5,336 purchases.

Shapes as in `visrec.demo.season`; K subjects, V visits.
"""

import numpy as np

from visrec.demo.painting import SUBJECTS, Floats, Random
from visrec.demo.season import (
    DAY,
    OPENING,
    STYLE,
    Ints,
    Season,
    Size,
    Visit,
    Works,
    plant_works,
    sell,
    unit,
)

DAYS = 4 * 365  # of sales
BACKLIST = 0.2  # share of works that are on sale from the first day
MAX_BASKET = 4
PURCHASES = 5336 / 2378  # a user
LOYALTY = 1.3  # standard deviation of the log of how much users buy after the first work
SAME_BASKET = 0.35  # probability that a user's next work is in the basket of the one before

FAVOURITE_SUBJECT = 0.8  # share of an artist's works that have one of the artist's subjects
SHARPNESS = 8.0  # of a taste: the greatest log-odds that a style can gain
SUBJECT, ARTIST = 3.0, 4.0  # log-odds that a favourite gains


def play(size: Size, rng: Random) -> Season:
    """Plants works, tastes and favourites, and sells each work at most once."""
    works = plant_works(size.paintings, size.artists, rng)
    subject_I = _subjects(works, rng)
    item_Id = np.hstack(
        [works.style_IT, np.eye(len(SUBJECTS))[subject_I], np.eye(size.artists)[works.artist_I]]
    ).astype(np.float32)
    user_Ud = _tastes(size.users, works, rng)
    first_day_I = np.sort(rng.integers(0, DAYS - 1, size.paintings))
    first_day_I[: round(BACKLIST * size.paintings)] = 0
    release_time_I = OPENING + rng.permutation(first_day_I) * DAY
    copies_I = np.ones(size.paintings, np.int64)
    visits = _visits(size, rng)
    sales, left_I = sell(user_Ud @ item_Id.T, copies_I, release_time_I, visits, rng)
    return Season(
        works=works,
        subjects=[list(SUBJECTS)[subject] for subject in subject_I],
        item_Id=item_Id,
        user_Ud=user_Ud,
        sales=sales,
        copies_I=copies_I,
        release_time_I=release_time_I,
        is_available_I=left_I > 0,
    )


def _subjects(works: Works, rng: Random) -> Ints:
    """(I,) the number of each work's subject."""
    names = list(SUBJECTS)
    return np.array(
        [
            rng.choice(len(names))
            if rng.random() >= FAVOURITE_SUBJECT
            else names.index(rng.choice(works.artists[artist].subjects))
            for artist in works.artist_I
        ]
    )


def _tastes(users: int, works: Works, rng: Random) -> Floats:
    """(U, T + K + A) taste, then the bonus of each subject, then of each artist.

    The favourite artist has a style near the taste, and the favourite subject is one of theirs.
    """
    taste_UT = SHARPNESS * unit(rng.normal(size=(users, len(STYLE))))
    style_AT = np.stack([artist.style_T for artist in works.artists])
    artist_U = np.argmax(taste_UT @ style_AT.T + rng.gumbel(size=(users, len(style_AT))), axis=1)
    names = list(SUBJECTS)
    subject_U = [names.index(rng.choice(works.artists[artist].subjects)) for artist in artist_U]
    favourites = (SUBJECT * np.eye(len(names))[subject_U], ARTIST * np.eye(len(style_AT))[artist_U])
    return np.hstack([taste_UT, *favourites]).astype(np.float32)


def _visits(size: Size, rng: Random) -> list[Visit]:
    """The visits in time order: every user buys, and few buy much."""
    weight_U = rng.lognormal(0, LOYALTY, size.users)
    further = round(size.users * (PURCHASES - 1))
    works_U = 1 + rng.multinomial(further, weight_U / weight_U.sum())
    visits = []
    for user, works in enumerate(works_U):
        baskets = [1]
        for _ in range(works - 1):
            if rng.random() < SAME_BASKET and baskets[-1] < MAX_BASKET:
                baskets[-1] += 1
            else:
                baskets.append(1)
        # Without replacement: two baskets of a user never share a timestamp.
        seconds = rng.choice(DAYS * DAY // 60, len(baskets), replace=False) * 60
        visits += [
            Visit(OPENING + int(second), user, basket)
            for second, basket in zip(seconds, baskets, strict=True)
        ]
    return sorted(visits, key=lambda visit: (visit.timestamp, visit.user))
