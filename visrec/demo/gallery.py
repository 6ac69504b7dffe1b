"""The demo data set: a gallery of painted pictures whose buyers' taste is known.

Every work has a *style*, a unit vector of three properties that a visitor can see: how warm the
palette is, how broad the brush is, which way the strokes run. Each artist has a style, and each
work deviates a little from the style of its artist. Purchases are drawn from a softmax of what was
planted, so the ranking by true taste (the *oracle*) is known. The light, the surface and the mat
vary freely and say nothing about taste, nor does the subject of the demo's pictures, yet a
pretrained network notices them first: plain similarity finds another portrait in an oval, and a
trained model has to find the same artist.

What is planted, who comes when and what is on sale is the *scenario*: one module each, `editions`
(the demo), `trends` and `ugallery`.

Shapes as in `visrec.demo.season`.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from visrec.config import SEEDS, check_fields
from visrec.demo import editions, trends, ugallery
from visrec.demo.painting import SUBJECTS, Floats, Random, paint
from visrec.demo.season import Sale, Season, Size
from visrec.errors import InputError

SCENARIOS: dict[str, Callable[[Size, Random], Season]] = {
    "editions": editions.play,
    "trends": trends.play,
    "ugallery": ugallery.play,
}
SIZES = {
    "editions": Size(paintings=1500, artists=60, users=600),
    "trends": Size(paintings=2000, artists=80, users=7000),
    "ugallery": Size(paintings=6040, artists=200, users=2378),
}
TITLES = ("Quiet", "Late", "Blue Hour", "Northern", "Sunday", "Second", "Lost", "Winter", "Early")


@dataclass(frozen=True, kw_only=True)
class GalleryConfig:
    """The gallery: a scenario and its size.

    Attributes:
        scenario: what is planted. editions is the demo: two years of sales, most works in several
            copies. In trends, interest in a work rises and decays within weeks of its release. In
            ugallery, works are one of a kind, and most users buy once.
        paintings: number of works; 1,500, 2,000 or 6,040 by default, in the order of the scenarios.
        artists: number of artists, each with at least one work; by default 60, 80 or 200.
        users: number of users, including those who buy nothing; by default 600, 7,000 or 2,378.
        picture_size: side of the square pictures, in pixels.
        seed: the same seed gives the same files, byte for byte.
    """

    scenario: Literal["editions", "trends", "ugallery"] = "editions"
    paintings: int | None = None
    artists: int | None = None
    users: int | None = None
    picture_size: int = 176
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses impossible values.

        Raises:
            InputError: a value is outside its range, or there are fewer works than artists.
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
        if self.size.paintings < self.size.artists:
            raise InputError(
                f"Found --gallery.paintings {self.size.paintings}; expected at least one for each "
                f"of the {self.size.artists} of --gallery.artists.",
                key="gallery.paintings",
            )

    @property
    def size(self) -> Size:
        usual = SIZES[self.scenario]
        return Size(
            paintings=usual.paintings if self.paintings is None else self.paintings,
            artists=usual.artists if self.artists is None else self.artists,
            users=usual.users if self.users is None else self.users,
        )


def write_gallery(config: GalleryConfig, write: Callable[[str, bytes], None]) -> dict[str, int]:
    """Plays the scenario, paints the works, and writes all files.

    Args:
        config: the scenario and its size.
        write: called with a relative name and the file's bytes: `images/<item_id>.jpg`,
            `interactions.parquet`, `items.parquet`, `users.parquet`, and the planted truth,
            `truth/items.parquet` and `truth/users.parquet`, as `visrec.evaluation.oracle`
            describes them.

    Returns:
        The numbers of paintings, users, buyers, repeat buyers (with several baskets) and
        interactions.
    """
    size = config.size
    season = SCENARIOS[config.scenario](size, np.random.default_rng(config.seed))
    item_ids = [f"work-{i:05d}" for i in range(size.paintings)]
    user_ids = [f"user-{u:05d}" for u in range(size.users)]
    subjects, titles = _paint_works(config, season, item_ids, write)
    items: dict[str, Any] = {
        "item_id": item_ids,
        "artist_id": [f"artist-{a:03d}" for a in season.works.artist_I],
        "category": subjects,
        "title": titles,
    }
    if season.copies_I is not None:
        items["copies"] = season.copies_I
    if season.release_time_I is not None:
        items["release_time"] = season.release_time_I
    items["available"] = season.is_available_I
    interactions = {
        "user_id": [user_ids[sale.user] for sale in season.sales],
        "item_id": [item_ids[sale.item] for sale in season.sales],
        "timestamp": pa.array([sale.timestamp for sale in season.sales], pa.int64()),
    }
    curves = season.interest.columns() if season.interest else {}
    write("items.parquet", _parquet(pa.table(items)))
    write("users.parquet", _parquet(pa.table({"user_id": user_ids})))
    write("interactions.parquet", _parquet(pa.table(interactions)))
    write("truth/items.parquet", _truth("item_id", item_ids, season.item_Id, curves))
    write("truth/users.parquet", _truth("user_id", user_ids, season.user_Ud, {}))
    return _counts(size, season.sales)


def _paint_works(
    config: GalleryConfig,
    season: Season,
    item_ids: list[str],
    write: Callable[[str, bytes], None],
) -> tuple[list[str], list[str]]:
    """Paints and writes each picture; returns the subjects and the titles."""
    subjects, titles, works = [], [], season.works
    for i, item_id in enumerate(item_ids):
        artist = works.artists[works.artist_I[i]]
        rng_i = np.random.default_rng([config.seed, i])
        if season.subjects is None:
            is_favourite = rng_i.random() < 0.3
            subject = str(rng_i.choice(artist.subjects if is_favourite else list(SUBJECTS)))
        else:
            subject = season.subjects[i]
        subjects.append(subject)
        titles.append(f"{rng_i.choice(TITLES)} {subject.title()}, No. {rng_i.integers(1, 100)}")
        write(
            f"images/{item_id}.jpg",
            paint(works.style_IT[i], artist, subject, config.picture_size, rng_i),
        )
    return subjects, titles


def _counts(size: Size, sales: list[Sale]) -> dict[str, int]:
    baskets = Counter(user for _, user in {(sale.timestamp, sale.user) for sale in sales})
    return {
        "paintings": size.paintings,
        "users": size.users,
        "buyers": len(baskets),
        "repeat_buyers": sum(count > 1 for count in baskets.values()),
        "interactions": len(sales),
    }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _truth(key: str, ids: list[str], vector_Nd: Floats, further: Mapping[str, pa.Array]) -> bytes:
    """A table of the planted truth: ids, their vectors and further columns."""
    flat = pa.array(vector_Nd.ravel(), pa.float32())
    vectors = pa.FixedSizeListArray.from_arrays(flat, vector_Nd.shape[1])
    return _parquet(pa.table({key: pa.array(ids, pa.string()), "vector": vectors, **further}))
