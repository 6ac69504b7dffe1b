"""What the scenarios of the gallery share: works that can be seen, visits, and a season's sales.

Shapes: I works, A artists, U users, T style properties, d vector size, V visits of a day.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.demo.painting import SUBJECTS, Artist, Floats, Random
from visrec.evaluation.oracle import InterestCurves

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY = 86_400
OPENING = 1_609_459_200  # 2021-01-01, the first day of sales
STYLE = ("warm", "broad", "upright")  # the T properties, each from -1 to 1
DEVIATION = 0.3  # of a work from its artist's style, per property


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much there is of everything.

    Attributes:
        paintings: I.
        artists: A.
        users: U, including those who buy nothing.
    """

    paintings: int
    artists: int
    users: int


@dataclass(frozen=True, kw_only=True)
class Works:
    """What the pictures show.

    Attributes:
        artists: A artists.
        artist_I: (I,) number of each work's artist.
        style_IT: (I, T) style of each work, a unit vector.
    """

    artists: list[Artist]
    artist_I: Ints
    style_IT: Floats


@dataclass(frozen=True)
class Visit:
    """A visit that ends in a purchase.

    Attributes:
        timestamp: seconds since 1970.
        user: number of the user.
        works: number of works in the basket.
    """

    timestamp: int
    user: int
    works: int


@dataclass(frozen=True)
class Sale:
    """One sold copy.

    Attributes:
        timestamp: seconds since 1970.
        user: number of the buyer.
        item: number of the work.
    """

    timestamp: int
    user: int
    item: int


@dataclass(frozen=True, kw_only=True)
class Season:
    """What happened, and the truth behind it.

    Attributes:
        works: what the pictures show.
        subjects: I keys of `SUBJECTS`, or None: the painter chooses.
        item_Id: (I, d) vectors.
        user_Ud: (U, d) vectors. The log-odds of a sale are the dot product of the user's and the
            item's, plus the log interest at the moment.
        interest: how interested all users are in each work at a moment, or None: equally.
        sales: in the order of time, then user.
        copies_I: (I,) copies of each work that there ever were; None: no work runs out.
        release_time_I: (I,) when each work came out, in seconds since 1970; None: all at the start.
        is_available_I: (I,) whether a work can still be had after the last sale.
    """

    works: Works
    subjects: list[str] | None = None
    item_Id: Floats
    user_Ud: Floats
    interest: InterestCurves | None = None
    sales: list[Sale]
    copies_I: Ints | None = None
    release_time_I: Ints | None = None
    is_available_I: Bools


def plant_works(paintings: int, artists: int, rng: Random) -> Works:
    """Draws artists, whose styles cover the sphere, and works that deviate from their styles."""
    made = _artists(artists, rng)
    artist_I = rng.permutation(np.arange(paintings) % artists)
    artist_style_IT = np.stack([made[a].style_T for a in artist_I])
    style_IT = unit(artist_style_IT + DEVIATION * rng.normal(size=artist_style_IT.shape))
    return Works(artists=made, artist_I=artist_I, style_IT=style_IT)


def _artists(count: int, rng: Random) -> list[Artist]:
    style_AT = unit(rng.normal(size=(count, len(STYLE))))
    return [
        Artist(
            style_T=style_T,
            pigments=tuple(
                zip(rng.uniform(0.5, 0.65, 5), rng.uniform(-0.01, 0.12, 5), strict=True)
            ),
            lean=int(rng.choice([-1, 1])),
            curl=float(rng.uniform(0.0, 0.08)),
            subjects=tuple(rng.choice(list(SUBJECTS), 3, replace=False)),
        )
        for style_T in style_AT
    ]


def sell(
    score_UI: Floats,
    copies_I: Ints,
    release_time_I: Ints,
    visits: Sequence[Visit],
    rng: Random,
    interest: InterestCurves | None = None,
) -> tuple[list[Sale], Ints]:
    """Plays the visits among the works that are out and in stock and that the user does not have.

    Args:
        score_UI: (U, I) log-odds of a sale.
        copies_I: (I,) how many are on sale.
        release_time_I: (I,) from when on, in seconds since 1970.
        visits: in time order.
        rng: draws the works.
        interest: factors whose log is added to the scores; None for none.

    Returns:
        The sales in the order of time, then user; and (I,) the copies left.
    """
    left_I = copies_I.copy()
    has_UI = np.zeros(score_UI.shape, bool)
    sales: list[Sale] = []
    log_interest_I: Floats = np.zeros(len(left_I), np.float32)
    timestamp = None
    for visit in visits:
        if interest is not None and visit.timestamp != timestamp:
            timestamp = visit.timestamp
            log_interest_I = interest.log_at(timestamp).astype(np.float32)
        is_for_sale_I = (left_I > 0) & (release_time_I <= visit.timestamp)
        is_offered_I = is_for_sale_I & ~has_UI[visit.user]
        score_I = score_UI[visit.user] + log_interest_I
        for item in choose(score_I, is_offered_I, visit.works, rng):
            sales.append(Sale(visit.timestamp, visit.user, item))
            has_UI[visit.user, item] = True
            left_I[item] -= 1
    return sales, left_I


def choose(score_I: Floats, is_offered_I: Bools, works: int, rng: Random) -> list[int]:
    """Up to `works` works, in the order in which they were drawn.

    They are the top of score + Gumbel noise, which is draws from the softmax of the scores without
    replacement.
    """
    wish_I = score_I + rng.gumbel(size=len(score_I))
    wish_I[~is_offered_I] = -np.inf
    return [int(item) for item in np.argsort(-wish_I)[:works] if wish_I[item] > -np.inf]


def unit(x_NT: npt.NDArray[np.floating]) -> Floats:
    """(N, T) rows scaled to length 1."""
    unit_NT: Floats = (x_NT / np.linalg.norm(x_NT, axis=-1, keepdims=True)).astype(np.float32)
    return unit_NT
