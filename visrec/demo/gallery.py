"""The demo data set: a gallery of painted pictures whose buyers' taste is known.

Every work has a *style*, a unit vector of three properties that a visitor can see: how warm the
palette is, how broad the brush is, which way the strokes run. Each artist has a style, and each
work deviates a little from the style of its artist. A user's taste is a direction in the same
space. Purchases are drawn with probability softmax(taste . style), so the best possible ranking
(the *oracle*) is known. The subject, the light, the surface and the mat vary freely and say nothing
about taste, yet a pretrained network notices them first: plain similarity finds another portrait in
an oval, and a trained model has to find the same artist.

Originals are sold once; editions have several copies. The newest works arrived after the last sale,
and some users buy nothing: there are cold items and cold users, as in any real shop.

Shapes: I works, A artists, U users, T style properties, N rows.
"""

import io
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.config import SEEDS, check_fields
from visrec.demo.painting import SUBJECTS, Artist, Floats, Random, paint
from visrec.errors import InputError

Ints = npt.NDArray[np.int64]

STYLE = ("warm", "broad", "upright")  # the T properties, each from -1 to 1

OPENING = 1_609_459_200  # 2021-01-01, the first day of sales
SEASON = 2 * 365 * 86_400  # seconds; sales go on for two years
MAX_BASKET = 4
MAX_PROFILE = 30

ONLOOKERS = 0.06  # share of users who bought nothing
ONE_TIMERS = 0.1  # share of users who bought one work
EDITIONS = 0.7  # share of works with several copies
ARRIVALS = 0.04  # share of works that arrived after the last sale

# A sharper taste makes both the oracle and the models better; 10 puts the oracle near 0.94 AUC.
SHARPNESS = 10.0
DEVIATION = 0.3  # of a work from its artist's style, per property
FASHION = 0.35  # weight of a taste that all users share, which makes popularity a weak signal


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """The size of the gallery.

    Attributes:
        paintings: number of works.
        artists: number of artists; every artist has at least one work.
        users: number of users, including those who buy nothing.
        picture_size: side of the square pictures, in pixels.
        seed: the same seed gives the same files, byte for byte.
    """

    paintings: int = 1500
    artists: int = 60
    users: int = 600
    picture_size: int = 176
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses impossible numbers.

        Raises:
            InputError: a number is outside its range, or there are fewer works than artists.
        """
        check_fields(
            self,
            "gallery",
            paintings="[1, 10000000]",
            artists="[1, 1000000]",
            users="[1, 10000000]",
            picture_size="[32, 4096]",
            seed=SEEDS,
        )
        if self.paintings < self.artists:
            raise InputError(
                f"Found --gallery.paintings {self.paintings}; expected at least one for each of "
                f"the {self.artists} of --gallery.artists.",
                key="gallery.paintings",
            )


TITLES = ("Quiet", "Late", "Blue Hour", "Northern", "Sunday", "Second", "Lost", "Winter", "Early")


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
class Planted:
    """The truth behind the purchases.

    Attributes:
        artists: A artists.
        artist_I: (I,) number of each work's artist.
        style_IT: (I, T) style of each work, a unit vector.
        taste_UT: (U, T) taste of each user; its dot product with a style is the log-odds of a
            purchase.
    """

    artists: list[Artist]
    artist_I: Ints
    style_IT: Floats
    taste_UT: Floats


def write_gallery(config: GalleryConfig, write: Callable[[str, bytes], None]) -> dict[str, int]:
    """Plants tastes and styles, plays the sales, paints the works, and writes all files.

    Args:
        config: the size of the gallery.
        write: called with a relative name and the file's bytes: `images/<item_id>.jpg`,
            `interactions.parquet`, `items.parquet`, `users.parquet`, and the planted truth,
            `truth/items.parquet` and `truth/users.parquet`: the dot product of a user's and an
            item's vector is the log-odds with which the purchase was drawn.

    Returns:
        The numbers of paintings, users, buyers, repeat buyers (with several baskets) and
        interactions.
    """
    rng = np.random.default_rng(config.seed)
    planted = _plant(config, rng)
    copies_I, offered_I = _stock(config, rng)
    visits = _visits(config.users, rng)
    score_UI: Floats = (planted.taste_UT @ planted.style_IT.T).astype(np.float32)
    sales, left_I = _sell(score_UI, offered_I, visits, rng)
    is_available_I = (left_I > 0) | (offered_I < copies_I)

    item_ids = [f"work-{i:05d}" for i in range(config.paintings)]
    user_ids = [f"user-{u:05d}" for u in range(config.users)]
    subjects, titles = _paint_works(config, planted, item_ids, write)
    items = {
        "item_id": item_ids,
        "artist_id": [f"artist-{a:03d}" for a in planted.artist_I],
        "category": subjects,
        "title": titles,
        "copies": copies_I,
        "available": is_available_I,
    }
    interactions = {
        "user_id": [user_ids[sale.user] for sale in sales],
        "item_id": [item_ids[sale.item] for sale in sales],
        "timestamp": pa.array([sale.timestamp for sale in sales], pa.int64()),
    }
    write("items.parquet", _parquet(pa.table(items)))
    write("users.parquet", _parquet(pa.table({"user_id": user_ids})))
    write("interactions.parquet", _parquet(pa.table(interactions)))
    write("truth/items.parquet", _vectors("item_id", item_ids, planted.style_IT))
    write("truth/users.parquet", _vectors("user_id", user_ids, planted.taste_UT))
    return _counts(config, sales)


def _plant(config: GalleryConfig, rng: Random) -> Planted:
    """Draws artists, styles and tastes."""
    artists = _artists(config.artists, rng)
    artist_I = rng.permutation(np.arange(config.paintings) % config.artists)
    artist_style_IT = np.stack([artists[a].style_T for a in artist_I])
    style_IT = _unit(artist_style_IT + DEVIATION * rng.normal(size=artist_style_IT.shape))
    fashion_T = _unit(rng.normal(size=len(STYLE)))
    taste_UT = np.float32(SHARPNESS) * _unit(
        _unit(rng.normal(size=(config.users, len(STYLE)))) + FASHION * fashion_T
    )
    return Planted(artists=artists, artist_I=artist_I, style_IT=style_IT, taste_UT=taste_UT)


def _artists(count: int, rng: Random) -> list[Artist]:
    """Artists whose styles cover the sphere."""
    style_AT = _unit(rng.normal(size=(count, len(STYLE))))
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


def _stock(config: GalleryConfig, rng: Random) -> tuple[Ints, Ints]:
    """(I,) copies of each work, and (I,) copies on sale during the season."""
    is_edition_I = rng.random(config.paintings) < EDITIONS
    copies_I = np.where(is_edition_I, rng.integers(4, 13, config.paintings), 1)
    offered_I = copies_I.copy()
    offered_I[config.paintings - math.ceil(config.paintings * ARRIVALS) :] = 0
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
        days = rng.choice(SEASON // 86_400, len(sizes), replace=False)
        seconds = rng.integers(9 * 3600, 20 * 3600, len(sizes))
        visits += [
            Visit(OPENING + int(day) * 86_400 + int(second), int(user), size)
            for day, second, size in zip(days, seconds, sizes, strict=True)
        ]
    return sorted(visits, key=lambda visit: (visit.timestamp, visit.user, visit.works))


def _sell(
    score_UI: Floats, stock_I: Ints, visits: list[Visit], rng: Random
) -> tuple[list[Sale], Ints]:
    """Plays the season.

    A basket of n works is the top n of score + Gumbel noise, which is n draws from the softmax of
    the scores without replacement, among the works in stock that the user does not have.

    Returns:
        The sales in the order of time, then user; and (I,) the copies left.
    """
    left_I = stock_I.copy()
    has_UI = np.zeros(score_UI.shape, bool)
    sales = []
    for visit in visits:
        wish_I = score_UI[visit.user] + rng.gumbel(size=len(left_I))
        wish_I[has_UI[visit.user] | (left_I == 0)] = -np.inf
        for item in np.argsort(-wish_I)[: visit.works]:
            if wish_I[item] > -np.inf:
                sales.append(Sale(visit.timestamp, visit.user, int(item)))
                has_UI[visit.user, item] = True
                left_I[item] -= 1
    return sales, left_I


def _paint_works(
    config: GalleryConfig,
    planted: Planted,
    item_ids: list[str],
    write: Callable[[str, bytes], None],
) -> tuple[list[str], list[str]]:
    """Paints and writes each picture; returns the subjects and the titles."""
    subjects, titles = [], []
    for i, item_id in enumerate(item_ids):
        artist = planted.artists[planted.artist_I[i]]
        rng_i = np.random.default_rng([config.seed, i])
        is_favourite = rng_i.random() < 0.3
        subject = str(rng_i.choice(artist.subjects if is_favourite else list(SUBJECTS)))
        subjects.append(subject)
        titles.append(f"{rng_i.choice(TITLES)} {subject.title()}, No. {rng_i.integers(1, 100)}")
        picture = paint(planted.style_IT[i], artist, subject, config.picture_size, rng_i)
        write(f"images/{item_id}.jpg", picture)
    return subjects, titles


def _counts(config: GalleryConfig, sales: list[Sale]) -> dict[str, int]:
    baskets = Counter(user for _, user in {(sale.timestamp, sale.user) for sale in sales})
    return {
        "paintings": config.paintings,
        "users": config.users,
        "buyers": len(baskets),
        "repeat_buyers": sum(count > 1 for count in baskets.values()),
        "interactions": len(sales),
    }


def _unit(x_NT: npt.NDArray[np.floating]) -> Floats:
    """(N, T) rows scaled to length 1."""
    unit_NT: Floats = (x_NT / np.linalg.norm(x_NT, axis=-1, keepdims=True)).astype(np.float32)
    return unit_NT


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _vectors(key: str, ids: list[str], vector_NT: Floats) -> bytes:
    """A table of the planted truth: ids and their vectors."""
    flat = pa.array(vector_NT.ravel(), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(flat, vector_NT.shape[1])
    return _parquet(pa.table({key: pa.array(ids, pa.string()), "vector": vectors}))
