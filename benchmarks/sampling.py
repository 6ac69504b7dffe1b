"""Triples per second on one core, by guideline, including the profile of every triple.

python -m benchmarks.sampling
python -m benchmarks.sampling --users 1000000 --json

The data are synthetic: users with a few favourite artists, artists with one style each, and styles
that k-means would find. Each guideline has two figures: in steps of 512 triples, as in a small
training run, and in one step of 65,536, where numpy's overhead vanishes. Steps of 512 are slices of
a window of 65,536 that is drawn at once, so the first figure includes its share of that. Times are
processor time, so that other load on the machine matters less.
"""

import json
import time
from dataclasses import replace

import numpy as np

from benchmarks.arguments import asked
from benchmarks.machine import machine
from visrec.features.clusters import Clusters
from visrec.jagged import Jagged
from visrec.sampling.guidelines import GUIDELINES
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig, TripleSampler

WINDOW = 65_536
SIX = tuple(name for name in GUIDELINES if name != "random")


def make_index(users: int, items: int, artists: int, clusters: int, each: int) -> SamplingIndex:
    """A log of `each` interactions a user on average, in baskets of one to three items.

    Four in five of an artist's items are in the artist's own two clusters, and four in five of a
    user's interactions are with items of the user's three artists.
    """
    random = np.random.default_rng(0)
    artist_N = random.integers(0, artists, items)
    style_A2 = random.integers(0, clusters, (artists, 2))
    cluster_N = style_A2[artist_N, random.integers(0, 2, items)]
    cluster_N = np.where(random.random(items) < 0.8, cluster_N, random.integers(0, clusters, items))
    cluster_N[:clusters] = np.arange(clusters)
    visual_NP = random.normal(size=(clusters, 200))[cluster_N] + random.normal(size=(items, 200))
    visual_NP /= np.linalg.norm(visual_NP, axis=1, keepdims=True)

    count_U = random.integers(each // 2, each * 3 // 2 + 1, users)
    user_R = np.repeat(np.arange(users), count_U)
    favourite_U3 = random.integers(0, artists, (users, 3))
    by_artist = Jagged.from_row_ids(np.sort(artist_N), np.argsort(artist_N, kind="stable"), artists)
    artist_R = favourite_U3[user_R, random.integers(0, 3, len(user_R))]
    within_R = (random.random(len(user_R)) * by_artist.lengths[artist_R]).astype(np.int64)
    item_R = by_artist.values[np.minimum(by_artist.offsets[artist_R] + within_R, items - 1)]
    item_R = np.where(
        random.random(len(user_R)) < 0.8, item_R, random.integers(0, items, len(user_R))
    )
    pair = np.unique(user_R * items + item_R)  # no item twice
    pair = pair[np.lexsort((random.random(len(pair)), pair // items))]
    return SamplingIndex(
        train=Jagged.from_row_ids(pair // items, (pair % items).astype(np.int32), users),
        basket_R=np.cumsum(random.random(len(pair)) < 0.6),
        num_items=items,
        clusters=Clusters(
            cluster_N=cluster_N.astype(np.int32),
            group_N=np.arange(items, dtype=np.int32),
            visual_NP=visual_NP.astype(np.float32),
            silhouette=float("nan"),
        ),
        artist_N=artist_N,
    )


def rate(sampler: TripleSampler, size: int, seconds: float) -> float:
    """Triples per second in steps of `size`, over whole windows, for about so long."""
    sampler.step(0, size)  # what is computed once
    sampler.start_epoch(1, 1 << 30)
    steps, start = 0, time.process_time()
    while steps * size % WINDOW or time.process_time() - start < seconds:
        sampler.step(steps, size)
        steps += 1
    return steps * size / (time.process_time() - start)


def main() -> None:
    args = asked(
        __doc__, users=100_000, items=20_000, artists=500, clusters=100, each=20, seconds=2
    )
    index = make_index(args.users, args.items, args.artists, args.clusters, args.each)
    drawn = SamplingConfig(guidelines={"random": 1.0}, negatives="drawn", popularity=0.0)
    weights = {"all six": dict.fromkeys(SIX, 1.0), **{name: {name: 1.0} for name in SIX}}
    cases = {
        "random": drawn,
        "random, popularity .75": replace(drawn, popularity=0.75),
        "random, no negatives": replace(drawn, negatives="catalogue"),
        **{name: replace(drawn, guidelines=guidelines) for name, guidelines in weights.items()},
    }
    found = {}
    print(f"{len(index.basket_R):,} interactions; triples per second on one core")
    print(f"{'':24}{'set-up s':>10}{'steps of 512':>14}{'of 65,536':>14}")
    for name, config in cases.items():
        start = time.process_time()
        sampler = TripleSampler(index, config, seed=0)
        setup = time.process_time() - start
        small, large = (rate(sampler, size, args.seconds) for size in (512, WINDOW))
        print(f"{name:24}{setup:>10.2f}{small:>14,.0f}{large:>14,.0f}", flush=True)
        found[name] = {"setup_s": setup, "steps_of_512": small, "one_step": large}
    if args.json:
        print(json.dumps({"asked": vars(args), **machine(), "triples_per_second": found}))


if __name__ == "__main__":
    main()
