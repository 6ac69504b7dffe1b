"""The demo data set: a gallery of painted pictures whose buyers' taste is known.

Every work has a *style*, a unit vector of three properties that a visitor can see: how warm the
palette is, how broad the brush, which way the strokes run. An artist has a style of their own and
each work strays a little from it. A user's taste is a direction in the same space, and purchases
are drawn with probability softmax(taste . style), so the best possible ranking (the *oracle*) is
known. What the picture shows and how (the subject, the light, the ground, the mat) varies freely
and says nothing about taste, yet it is what a pretrained network notices first: plain similarity
finds another portrait in an oval, a trained model has to find the same hand.

Originals are sold once and are gone; editions have a stock of copies. The newest works arrived
after the last sale, and some users only look: both are cold, as on any night of a real shop.

Shapes: I works, A artists, U users, T style properties, H and W the picture's sides.
"""

import io
import math
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
SEASON = 2 * 365 * 86_400  # sales go on for two years
LARGEST_BASKET = 4
LARGEST_PROFILE = 30

ONLOOKERS = 0.06  # users who bought nothing
ONE_TIMERS = 0.1  # users who bought one work
EDITIONS = 0.7  # works with more than one copy
ARRIVALS = 0.04  # works that arrived after the last sale

# Sharper taste makes both the oracle and the models better; 10 puts the oracle near .94 AUC.
SHARPNESS = 10.0
STRAY = 0.3  # how far a work strays from its artist's style, per property
FASHION = 0.35  # how much of a taste everybody shares: popularity is then worth a little


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """What to paint and who visits.

    Attributes:
        paintings: number of works.
        artists: number of artists; every artist has at least one work.
        users: number of users, those who buy nothing included.
        picture_size: side of the square pictures, in pixels.
        seed: the same seed gives the same files, byte for byte.
    """

    paintings: int = 1500
    artists: int = 60
    users: int = 600
    picture_size: int = 176
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers no gallery can have.

        Raises:
            InputError: naming the key, what was found and what was expected.
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
                f"the {self.artists} of --gallery.artists."
            )


MOODS = ("Quiet", "Late", "Blue Hour", "Northern", "Sunday", "Second", "Lost", "Winter", "Early")


def _unit(x_NT: npt.NDArray[np.floating]) -> Floats:
    """Rows of length one."""
    unit_NT: Floats = (x_NT / np.linalg.norm(x_NT, axis=-1, keepdims=True)).astype(np.float32)
    return unit_NT


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


def _baskets(users: int, rng: Random) -> list[tuple[int, int, int]]:
    """Visits that end in a purchase, in time order: (timestamp, user, number of works)."""
    order_U = rng.permutation(users)
    onlookers, one_timers = math.ceil(users * ONLOOKERS), math.ceil(users * ONE_TIMERS)
    visits = []
    for rank, user in enumerate(order_U):
        if rank < onlookers:
            continue
        once = rank < onlookers + one_timers
        count = 1 if once else min(2 + rng.geometric(0.25) - 1, 14)
        sizes = [1] if once else np.minimum(rng.geometric(0.47, count), LARGEST_BASKET).tolist()
        while sum(sizes) > LARGEST_PROFILE:
            sizes.pop()
        # Without replacement: two baskets of a user never share a timestamp.
        days = rng.choice(SEASON // 86_400, len(sizes), replace=False)
        seconds = rng.integers(9 * 3600, 20 * 3600, len(sizes))
        visits += [
            (OPENING + int(day) * 86_400 + int(second), int(user), size)
            for day, second, size in zip(days, seconds, sizes, strict=True)
        ]
    return sorted(visits)


def _sell(
    score_UI: Floats, stock_I: Ints, visits: list[tuple[int, int, int]], rng: Random
) -> tuple[list[tuple[int, int, int]], Ints]:
    """Play the season: who bought what, and what is left.

    A basket of n is the top n of score + Gumbel noise, which is n draws from the softmax of the
    scores without replacement, over what is in stock and not yet the user's own.

    Returns:
        sales: (timestamp, user, item) in order of time, then user.
        left_I: the copies left.
    """
    left_I = stock_I.copy()
    owned_UI = np.zeros(score_UI.shape, bool)
    sales = []
    for timestamp, user, size in visits:
        wish_I = score_UI[user] + rng.gumbel(size=len(left_I))
        wish_I[owned_UI[user] | (left_I == 0)] = -np.inf
        for item in np.argsort(-wish_I)[:size]:
            if wish_I[item] > -np.inf:
                sales.append((timestamp, user, int(item)))
                owned_UI[user, item] = True
                left_I[item] -= 1
    return sales, left_I


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _vectors(key: str, ids: list[str], vector_NT: Floats) -> bytes:
    """A truth table: an id and its fixed-size vector."""
    flat = pa.array(vector_NT.ravel(), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(flat, vector_NT.shape[1])
    return _parquet(pa.table({key: pa.array(ids, pa.string()), "vector": vectors}))


def write_gallery(config: GalleryConfig, write: Callable[[str, bytes], None]) -> dict[str, int]:
    """Paint the works, play the sales, and hand over each file.

    Args:
        config: what to make.
        write: called with a relative name and the file's bytes: `images/<item_id>.jpg`,
            `interactions.parquet`, `items.parquet`, `users.parquet`, and the planted truth,
            `truth/items.parquet` and `truth/users.parquet`: the dot product of a user's and an
            item's vector is the log-odds with which the purchase was drawn.

    Returns:
        How many paintings, users, buyers, repeat buyers (two baskets or more) and interactions.
    """
    rng = np.random.default_rng(config.seed)
    artists = _artists(config.artists, rng)
    artist_I = rng.permutation(np.arange(config.paintings) % config.artists)
    centre_IT = np.stack([artists[a].style_T for a in artist_I])
    style_IT = _unit(centre_IT + STRAY * rng.normal(size=centre_IT.shape))
    fashion_T = _unit(rng.normal(size=len(STYLE)))
    taste_UT = np.float32(SHARPNESS) * _unit(
        _unit(rng.normal(size=(config.users, len(STYLE)))) + FASHION * fashion_T
    )

    edition_I = rng.random(config.paintings) < EDITIONS
    copies_I = np.where(edition_I, rng.integers(4, 13, config.paintings), 1)
    offered_I = copies_I.copy()
    offered_I[config.paintings - math.ceil(config.paintings * ARRIVALS) :] = 0
    visits = _baskets(config.users, rng)
    score_UI: Floats = (taste_UT @ style_IT.T).astype(np.float32)
    sales, left_I = _sell(score_UI, offered_I, visits, rng)
    available_I = (left_I > 0) | (offered_I < copies_I)

    item_ids = [f"work-{i:05d}" for i in range(config.paintings)]
    user_ids = [f"user-{u:05d}" for u in range(config.users)]
    subjects, titles = [], []
    for i, item_id in enumerate(item_ids):
        artist = artists[artist_I[i]]
        rng_i = np.random.default_rng([config.seed, i])
        favourite = rng_i.random() < 0.3
        subject = str(rng_i.choice(artist.subjects if favourite else list(SUBJECTS)))
        subjects.append(subject)
        titles.append(f"{rng_i.choice(MOODS)} {subject.title()}, No. {rng_i.integers(1, 100)}")
        picture = paint(style_IT[i], artist, subject, config.picture_size, rng_i)
        write(f"images/{item_id}.jpg", picture)
    items = {
        "item_id": item_ids,
        "artist_id": [f"artist-{a:03d}" for a in artist_I],
        "category": subjects,
        "title": titles,
        "copies": copies_I,
        "available": available_I,
    }
    interactions = {
        "user_id": [user_ids[user] for _, user, _ in sales],
        "item_id": [item_ids[item] for _, _, item in sales],
        "timestamp": pa.array([timestamp for timestamp, _, _ in sales], pa.int64()),
    }
    write("items.parquet", _parquet(pa.table(items)))
    write("users.parquet", _parquet(pa.table({"user_id": user_ids})))
    write("interactions.parquet", _parquet(pa.table(interactions)))
    write("truth/items.parquet", _vectors("item_id", item_ids, style_IT))
    write("truth/users.parquet", _vectors("user_id", user_ids, taste_UT))
    baskets = [user for _, user in {(timestamp, user) for timestamp, user, _ in sales}]
    return {
        "paintings": config.paintings,
        "users": config.users,
        "buyers": len(set(baskets)),
        "repeat_buyers": sum(baskets.count(user) > 1 for user in set(baskets)),
        "interactions": len(sales),
    }
