"""A sampling configuration, and small worlds whose triples are enumerated in plain Python."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visrec.features.clusters import Clusters
from visrec.jagged import Jagged
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig

SIX = (
    *("own_profile", "single_item", "favourite_artists", "same_artist", "next_basket"),
    "hidden_item",
)
Triple = tuple[int, tuple[int, ...], int, int]  # user (-1: anonymous), sorted profile, pos., neg.


def sampling_config(**changes: object) -> SamplingConfig:
    """The guideline random with drawn negatives, whatever the defaults are."""
    base = SamplingConfig(
        guidelines={"random": 1.0},
        negatives="drawn",
        popularity=0.0,
        keep_positive_in_profile=False,
        sub_profiles=True,
        max_profile=20,
    )
    return dataclasses.replace(base, **changes)


@dataclass(frozen=True)
class World:
    """A small log: `baskets[u][k]` are the items of a user's k-th basket."""

    baskets: list[list[list[int]]]
    cluster: list[int]
    group: list[int]
    artist: list[int] | None
    visual: list[tuple[float, float]]

    @property
    def items(self) -> range:
        return range(len(self.cluster))

    def items_of(self, user: int) -> list[int]:
        return [item for basket in self.baskets[user] for item in basket]

    def clusters(self, user: int) -> set[int]:
        return {self.cluster[item] for item in self.items_of(user)}

    def artists(self, user: int) -> set[int]:
        return {self.artist[i] for i in self.items_of(user)} - {-1} if self.artist else set()

    def are_near_identical(self, one: int, other: int) -> bool:
        return self.group[one] == self.group[other]

    def similarity(self, one: int, other: int) -> float:
        (a, b), (c, d) = self.visual[one], self.visual[other]
        return a * c + b * d

    def unrelated(self, user: int) -> list[int]:
        """Items of none of the user's artists and clusters."""
        return [
            j
            for j in self.items
            if self.cluster[j] not in self.clusters(user)
            and not (self.artist and self.artist[j] in self.artists(user))
        ]

    def outside_profile(self, profile: list[int], positive: int) -> list[int]:
        """Items outside the profile that are not near-identical to the positive."""
        return [
            j for j in self.items if j not in profile and not self.are_near_identical(j, positive)
        ]

    def same_artist(self, item: int) -> list[int]:
        """Other items of the same artist; other items if there are no artists."""
        if self.artist is None:
            return [p for p in self.items if p != item]
        if self.artist[item] == -1:
            return []
        return [p for p in self.items if p != item and self.artist[p] == self.artist[item]]

    @property
    def index(self) -> SamplingIndex:
        users = range(len(self.baskets))
        items = [item for user in users for item in self.items_of(user)]
        baskets = [k for user in self.baskets for k, basket in enumerate(user) for _ in basket]
        offsets = np.cumsum([0, *(len(self.items_of(user)) for user in users)])
        return SamplingIndex(
            train=Jagged(np.array(items, np.int32), offsets),
            basket_R=np.array(baskets, np.int64),
            num_items=len(self.items),
            clusters=Clusters(
                cluster_N=np.array(self.cluster, np.int32),
                group_N=np.array(self.group, np.int32),
                visual_NP=np.array(self.visual, np.float32),
                silhouette=0.0,
            ),
            artist_N=None if self.artist is None else np.array(self.artist),
        )


# 12 items: clusters of three; the last two are near-identical; artists across the clusters, none
# for the last.
FIXED = World(
    baskets=[[[0, 1], [2], [3, 4]], [[5], [6, 0, 9]], [[11]], []],
    cluster=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    group=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10],
    artist=[0, 1, 2, 0, 1, 2, 0, 3, 3, 4, 4, -1],
    visual=[(float(np.cos(a)), float(np.sin(a))) for a in range(12)],
)


def enumerate_pairs(
    world: World, guideline: str, keep_positive: bool
) -> Iterator[tuple[int, list[int], int, list[int]]]:
    """Every user, uncut profile and positive of a guideline, with their valid negatives."""
    for user, baskets in enumerate(world.baskets):
        items = world.items_of(user)
        for positive in world.items:
            profile = items if keep_positive else [item for item in items if item != positive]
            if guideline in ("own_profile", "random") and positive in items and profile:
                yield user, profile, positive, world.outside_profile(items, positive)
            if (
                guideline == "favourite_artists"
                and positive not in items
                and (world.artist is None or world.artist[positive] in world.artists(user))
                and world.cluster[positive] in world.clusters(user)
            ):
                yield user, items, positive, world.unrelated(user)
            for k, basket in enumerate(baskets):
                before = [item for earlier in baskets[:k] for item in earlier]
                rest = [item for item in basket if item != positive]
                if guideline == "next_basket" and positive in basket and before:
                    yield user, before, positive, world.unrelated(user)
                if guideline == "hidden_item" and positive in basket and rest:
                    yield user, before + rest, positive, world.unrelated(user)
    for item in world.items:
        if guideline == "single_item":
            yield -1, [item], item, world.outside_profile([item], item)
        for positive in world.same_artist(item) if guideline == "same_artist" else ():
            negatives = [
                j
                for j in world.outside_profile([item], positive)
                if not (world.artist and world.artist[j] == world.artist[item])
                and (
                    world.cluster[positive] == world.cluster[item] != world.cluster[j]
                    or world.similarity(item, positive) > world.similarity(item, j) + 0.1
                )
            ]
            yield -1, [item], positive, negatives


def enumerate_triples(world: World, guideline: str, keep_positive: bool = False) -> set[Triple]:
    return {
        (user, tuple(sorted(profile)), positive, negative)
        for user, profile, positive, negatives in enumerate_pairs(world, guideline, keep_positive)
        for negative in negatives
    }
