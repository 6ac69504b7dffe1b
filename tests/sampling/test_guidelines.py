"""Each cell of the table of guidelines, restated in plain Python, against what is drawn."""

import dataclasses
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.interactions import sampling
from visrec.errors import InputError
from visrec.features.clusters import Clusters
from visrec.jagged import Jagged
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig, TripleSampler

SIX = (
    *("own_profile", "single_item", "favourite_artists", "same_artist", "next_basket"),
    "hidden_item",
)
Triple = tuple[int, tuple[int, ...], int, int]  # user (-1: one item), sorted profile, pos., neg.


@dataclass(frozen=True)
class World:
    """A small log: `baskets[u][k]` are the items of a user's k-th basket."""

    baskets: list[list[list[int]]]
    cluster: list[int]
    group: list[int]
    artist: list[int] | None
    look: list[tuple[float, float]]

    @property
    def items(self) -> range:
        return range(len(self.cluster))

    def of(self, user: int) -> list[int]:
        return [item for basket in self.baskets[user] for item in basket]

    def clusters(self, user: int) -> set[int]:
        return {self.cluster[item] for item in self.of(user)}

    def artists(self, user: int) -> set[int]:
        return {self.artist[i] for i in self.of(user)} - {-1} if self.artist else set()

    def same(self, one: int, other: int) -> bool:
        return self.group[one] == self.group[other]

    def alike(self, one: int, other: int) -> float:
        (a, b), (c, d) = self.look[one], self.look[other]
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
        return [j for j in self.items if j not in profile and not self.same(j, positive)]

    def mates(self, item: int) -> list[int]:
        """Other items of the same artist; without artists, other items."""
        if self.artist is None:
            return [p for p in self.items if p != item]
        if self.artist[item] == -1:
            return []
        return [p for p in self.items if p != item and self.artist[p] == self.artist[item]]

    @property
    def facts(self) -> SamplingIndex:
        users = range(len(self.baskets))
        items = [item for user in users for item in self.of(user)]
        baskets = [k for user in self.baskets for k, basket in enumerate(user) for _ in basket]
        return SamplingIndex(
            train=Jagged(
                np.array(items, np.int32), np.cumsum([0, *(len(self.of(user)) for user in users)])
            ),
            basket_R=np.array(baskets, np.int64),
            num_items=len(self.items),
            clusters=Clusters(
                cluster_N=np.array(self.cluster, np.int32),
                group_N=np.array(self.group, np.int32),
                look_NP=np.array(self.look, np.float32),
                silhouette=0.0,
            ),
            artist_N=None if self.artist is None else np.array(self.artist),
        )


def pairs(world: World, name: str, keep: bool) -> Iterator[tuple[int, list[int], int, list[int]]]:
    """Every user, whole profile and positive of a guideline, and the negatives it allows them."""
    for user, baskets in enumerate(world.baskets):
        items = world.of(user)
        for positive in world.items:
            others = [item for item in items if item != positive]
            whole = items if keep else others
            mine = world.outside_profile(items, positive)
            if name in ("own_profile", "random") and positive in items and whole:
                yield user, whole, positive, mine
            if (
                name == "favourite_artists"
                and positive not in items
                and (world.artist is None or world.artist[positive] in world.artists(user))
                and world.cluster[positive] in world.clusters(user)
            ):
                yield user, items, positive, world.unrelated(user)
            for k, basket in enumerate(baskets):
                before = [item for earlier in baskets[:k] for item in earlier]
                rest = [item for item in basket if item != positive]
                if name == "next_basket" and positive in basket and before:
                    yield user, before, positive, world.unrelated(user)
                if name == "hidden_item" and positive in basket and rest:
                    yield user, before + rest, positive, world.unrelated(user)
    for item in world.items:
        if name == "single_item":
            yield -1, [item], item, world.outside_profile([item], item)
        for positive in world.mates(item) if name == "same_artist" else ():
            yield (
                -1,
                [item],
                positive,
                [
                    j
                    for j in world.outside_profile([item], positive)
                    if not (world.artist and world.artist[j] == world.artist[item])
                    and (
                        world.cluster[positive] == world.cluster[item] != world.cluster[j]
                        or world.alike(item, positive) > world.alike(item, j) + 0.1
                    )
                ],
            )


def every_triple(world: World, name: str, keep: bool = False) -> set[Triple]:
    return {
        (user, tuple(sorted(profile)), positive, negative)
        for user, profile, positive, negatives in pairs(world, name, keep)
        for negative in negatives
    }


def config_of(name: str, **changes: object) -> SamplingConfig:
    whole = sampling(guidelines={name: 1.0}, sub_profiles=False, max_profile=99)
    return dataclasses.replace(whole, **changes)


def drawn_triples(world: World, config: SamplingConfig, size: int, seed: int = 0) -> list[Triple]:
    sampler = TripleSampler(world.facts, config, seed)
    sampler.start_epoch(0, size)
    triples = sampler.step(0, size)
    return [
        (int(user), tuple(sorted(triples.profiles[b].tolist())), int(positive), int(negative))
        for b, (user, positive) in enumerate(zip(triples.user_B, triples.positive_B, strict=True))
        for negative in triples.negative_BK[b]
    ]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    n = draw(st.integers(2, 9))
    group = draw(st.lists(st.integers(0, n), min_size=n, max_size=n))  # some are twins
    cluster_of_group = draw(st.lists(st.integers(0, 4), min_size=n + 1, max_size=n + 1))
    used = sorted({cluster_of_group[g] for g in group})  # numbered without gaps
    names = {g: code for code, g in enumerate(sorted(set(group)))}
    baskets = []
    for _ in range(draw(st.integers(0, 4))):
        items = draw(st.lists(st.integers(0, n - 1), unique=True))
        cuts = draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
        mine: list[list[int]] = []
        for item, cut in zip(items, cuts, strict=True):
            mine = [*mine, [item]] if cut or not mine else [*mine[:-1], [*mine[-1], item]]
        baskets.append(mine)
    artists = st.lists(st.integers(-1, 3), min_size=n, max_size=n)
    angle = draw(st.lists(st.sampled_from(range(12)), min_size=n, max_size=n))
    return World(
        baskets=baskets,
        cluster=[used.index(cluster_of_group[g]) for g in group],
        group=[names[g] for g in group],
        artist=draw(st.none() | artists.filter(lambda codes: max(codes) >= 0)),
        look=[(float(np.cos(a * np.pi / 6)), float(np.sin(a * np.pi / 6))) for a in angle],
    )


def share_agreeing(world: World, own: float) -> float:
    """The share of same_artist's draws that are kept, by the sum over all of them."""
    mates = {q: world.mates(q) for q in world.items if world.mates(q)}
    size = Counter(world.cluster)
    share = 0.0
    for _, (item,), positive, negative in every_triple(world, "same_artist"):
        chance = (1 - own) / len(size) / size[world.cluster[negative]]
        if world.cluster[negative] == world.cluster[positive]:
            chance += own / size[world.cluster[positive]]
        share += chance / len(mates) / len(mates[item])
    return share


# Two twins beside one other item can give a triple all the same.
TWINS = World(
    baskets=[], cluster=[0, 0, 0], group=[0, 0, 1], artist=None,
    look=[(1.0, 0.0), (1.0, 0.0), (0.8, 0.6)],
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@example(TWINS, "same_artist", False, 0)
@given(worlds(), st.sampled_from([*SIX, "random"]), st.booleans(), st.integers(0, 99))
def test_every_triple_is_one_of_the_table(world: World, name: str, keep: bool, seed: int) -> None:
    expected = every_triple(world, name, keep)
    config = config_of(name, keep_positive_in_profile=keep)
    try:
        drawn = drawn_triples(world, config, 64, seed)
    except InputError:
        rare = name == "same_artist" and share_agreeing(world, config.own_cluster) < 2e-3
        assert not expected or rare
        return
    assert set(drawn) <= expected


@settings(deadline=None, max_examples=80)
@given(worlds(), st.sampled_from([*SIX, "random"]), st.booleans())
def test_hard_negatives_are_those_of_random(world: World, name: str, keep: bool) -> None:
    of_user = {user: world.of(user) for user in range(len(world.baskets))}
    expected = {
        (user, tuple(sorted(profile)), positive, negative)
        for user, profile, positive, _ in pairs(world, name, keep)
        for negative in world.outside_profile(of_user.get(user, profile), positive)
    }
    config = config_of(name, keep_positive_in_profile=keep, negatives="hard", hard_pool=3)
    try:
        drawn = drawn_triples(world, config, 32)
    except InputError:
        # With a positive from outside the profile a user needs more than its twins to be left.
        assert not expected or name in ("favourite_artists", "same_artist")
        return
    assert len(drawn) == 32 * 3
    assert set(drawn) <= expected


@settings(deadline=None, max_examples=80)
@given(worlds(), st.sampled_from([*SIX, "random"]))
def test_nobody_needs_a_negative_where_none_is_drawn(world: World, name: str) -> None:
    expected = {(u, tuple(sorted(profile)), p) for u, profile, p, _ in pairs(world, name, False)}
    try:
        sampler = TripleSampler(world.facts, config_of(name, negatives="catalogue"), 0)
    except InputError:
        assert not expected
        return
    triples = sampler.step(0, 32)
    assert triples.negative_BK.shape == (32, 0)
    for b in range(32):
        profile = tuple(sorted(triples.profiles[b].tolist()))
        assert (int(triples.user_B[b]), profile, int(triples.positive_B[b])) in expected


# 12 items: clusters of three, the last two twins; artists across the clusters, the last has none.
FIXED = World(
    baskets=[[[0, 1], [2], [3, 4]], [[5], [6, 0, 9]], [[11]], []],
    cluster=[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3],
    group=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10],
    artist=[0, 1, 2, 0, 1, 2, 0, 3, 3, 4, 4, -1],
    look=[(float(np.cos(a)), float(np.sin(a))) for a in range(12)],
)


@pytest.mark.parametrize("artists", [True, False])
@pytest.mark.parametrize("name", [*SIX, "random"])
def test_every_triple_of_the_table_is_drawn(name: str, artists: bool) -> None:
    world = FIXED if artists else dataclasses.replace(FIXED, artist=None)
    for keep in (False, True):
        config = config_of(name, keep_positive_in_profile=keep)
        expected = every_triple(world, name, keep)
        assert set(drawn_triples(world, config, 40_000)) == expected
        assert expected


def test_twins_are_never_a_pair() -> None:
    for name in (*SIX, "random"):
        assert not {(p, j) for _, _, p, j in drawn_triples(FIXED, config_of(name), 8_000)} & {
            (10, 11),
            (11, 10),
        }


def test_random_without_clusters_knows_of_no_twins() -> None:
    facts = dataclasses.replace(FIXED.facts, clusters=None)
    triples = TripleSampler(facts, config_of("random", keep_positive_in_profile=True), 0).step(
        0, 8_000
    )
    pairs = set(zip(triples.positive_B.tolist(), triples.negative_BK[:, 0].tolist(), strict=True))
    assert (11, 10) in pairs


def test_guidelines_without_clusters_are_refused() -> None:
    facts = dataclasses.replace(FIXED.facts, clusters=None)
    with pytest.raises(InputError, match="need visual clusters"):
        TripleSampler(facts, config_of("own_profile"), 0)


# Two users who have all clusters but one, in a catalogue where what is left is one item of many.
NARROW = World(
    baskets=[[[*range(0, 300, 3)]], [[1], [4]]],
    cluster=[2, *(n % 3 for n in range(1, 299)), 3],
    group=list(range(300)),
    artist=[n % 50 for n in range(299)] + [99],
    look=[(1.0, 0.0)] * 300,
)


def test_one_item_left_is_found_however_rare() -> None:
    # The first user has artists of cluster 1 and 2 as well, so that proposals are refused.
    config = config_of("hidden_item")
    world = dataclasses.replace(NARROW, artist=[n % 50 if n != 298 else 77 for n in range(300)])
    found = {(u, j) for u, _, _, j in drawn_triples(world, config, 500)}
    assert found == {(0, j) for j in world.unrelated(0)}
    assert len(found) < 5


def plain_world(
    baskets: list[list[list[int]]], cluster: list[int], artist: list[int] | None
) -> World:
    """All items look the same, and none is the twin of another."""
    n = len(cluster)
    return World(baskets, cluster, list(range(n)), artist, [(1.0, 0.0)] * n)


def test_one_favourite_left_is_found_however_rare() -> None:
    # Item 1 is the user's artist's in the user's cluster, with 200 of the artist's elsewhere, and
    # 50 of another artist in the user's cluster. Item 252 is foreign.
    world = plain_world([[[0]]], [0, 0, *[1] * 200, *[0] * 50, 2], [0, 0, *[0] * 200, *[1] * 50, 2])
    drawn = drawn_triples(world, config_of("favourite_artists"), 50)
    assert set(drawn) == {(0, (0,), 1, 252)}


@pytest.mark.parametrize("name", ["favourite_artists", "next_basket", "hidden_item"])
def test_users_whose_artists_have_all_that_is_left_are_never_drawn(name: str) -> None:
    # Outside of clusters 0 and 1 all is of the first user's artists, but not of the second's.
    world = plain_world(
        [[[0], [1, 3]], [[3], [4, 5]]], [0, 0, 0, 1, 1, 1, 2, 2, 1], [0, 1, 0, 1, 2, 2, 0, 1, 2]
    )
    second = dataclasses.replace(world, artist=[0, 3, 0, 2, 2, 2, 0, 3, 2])
    with pytest.raises(InputError, match=f"by the guideline {name} from"):
        drawn_triples(dataclasses.replace(world, baskets=world.baskets[:1]), config_of(name), 9)
    assert {user for user, *_ in drawn_triples(second, config_of(name), 99)} == {1}


# ------------------------------------------------------------------------------- distributions

LEAST_P = 1e-3


@pytest.mark.parametrize("own", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("name", ["own_profile", "single_item"])
def test_fine_grained_negatives_are_so_often_of_the_positives_cluster(
    name: str, own: float
) -> None:
    n = 400
    world = World(
        baskets=[[list(range(user, user + 5))] for user in range(0, 100, 5)],
        cluster=[item % 4 for item in range(n)],
        group=list(range(n)),
        artist=None,
        look=[(1.0, 0.0)] * n,
    )
    config = config_of(name, own_cluster=own, keep_positive_in_profile=True)
    # Few at a time: what is not drawn twice is soon no longer drawn as often as it was.
    drawn = [triple for seed in range(20) for triple in drawn_triples(world, config, 200, seed)]
    shared = np.mean([p % 4 == j % 4 for _, _, p, j in drawn])
    assert shared == pytest.approx(own + (1 - own) / 4, abs=0.02)


def test_negatives_of_no_cluster_of_the_user_are_uniform() -> None:
    # Clusters of different sizes, of which the user has the first, the last and some between.
    cluster = [c for c, size in enumerate([3, 5, 2, 7, 4, 6, 1, 8, 2]) for _ in range(size)]
    mine = [0, 3, 4, 10, 22, 36, 37]  # of clusters 0, 1, 3, 5 and 8
    world = plain_world([[mine, [9]]], cluster, None)
    drawn = [
        j for seed in range(80) for *_, j in drawn_triples(world, config_of("next_basket"), 5, seed)
    ]
    counts = Counter(drawn)
    assert set(counts) == set(world.unrelated(0))
    assert chisquare(list(counts.values())).pvalue > LEAST_P


def test_popular_items_are_drawn_more_often_as_asked() -> None:
    # Counts 3, 1, 0, 0 of items that the last user has not taken.
    world = dataclasses.replace(
        FIXED,
        baskets=[[[0, 1]], [[0, 4]], [[0, 5]], [[6, 7, 8, 9, 10, 4, 5]]],
        group=list(range(12)),
    )
    for power in (0.0, 0.5, 1.0):
        config = config_of("random", popularity=power)
        sampler = TripleSampler(world.facts, config, 0)
        drawn: Counter[int] = Counter()
        for epoch in range(300):
            sampler.start_epoch(epoch, 8)
            triples = sampler.step(0, 8)
            drawn.update(triples.negative_BK[triples.user_B == 3, 0].tolist())
        weights = {0: 4, 1: 2, 2: 1, 3: 1, 11: 1}
        assert set(drawn) == set(weights)
        expected = np.array([weight**power for weight in weights.values()])
        found = np.array([drawn[item] for item in weights])
        assert chisquare(found, expected / expected.sum() * found.sum()).pvalue > LEAST_P
