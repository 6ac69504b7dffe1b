"""What each guideline draws, against all triples of small worlds enumerated in plain Python."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.sampling import (
    FIXED,
    SIX,
    Triple,
    World,
    enumerate_pairs,
    enumerate_triples,
    sampling_config,
)
from visrec.errors import InputError
from visrec.sampling.triples import SamplingConfig, TripleSampler


def make_config(name: str, **changes: object) -> SamplingConfig:
    uncut = sampling_config(guidelines={name: 1.0}, sub_profiles=False, max_profile=99)
    return dataclasses.replace(uncut, **changes)


def drawn_triples(world: World, config: SamplingConfig, size: int, seed: int = 0) -> list[Triple]:
    sampler = TripleSampler(world.index, config, seed)
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
    group = draw(st.lists(st.integers(0, n), min_size=n, max_size=n))  # some are near-identical
    cluster_of_group = draw(st.lists(st.integers(0, 4), min_size=n + 1, max_size=n + 1))
    used = sorted({cluster_of_group[g] for g in group})  # numbered without gaps
    names = {g: code for code, g in enumerate(sorted(set(group)))}
    baskets = []
    for _ in range(draw(st.integers(0, 4))):
        items = draw(st.lists(st.integers(0, n - 1), unique=True))
        cuts = draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
        user_baskets: list[list[int]] = []
        for item, cut in zip(items, cuts, strict=True):
            user_baskets = (
                [*user_baskets, [item]]
                if cut or not user_baskets
                else [*user_baskets[:-1], [*user_baskets[-1], item]]
            )
        baskets.append(user_baskets)
    artists = st.lists(st.integers(-1, 3), min_size=n, max_size=n)
    angle = draw(st.lists(st.sampled_from(range(12)), min_size=n, max_size=n))
    return World(
        baskets=baskets,
        cluster=[used.index(cluster_of_group[g]) for g in group],
        group=[names[g] for g in group],
        artist=draw(st.none() | artists.filter(lambda codes: max(codes) >= 0)),
        visual=[(float(np.cos(a * np.pi / 6)), float(np.sin(a * np.pi / 6))) for a in angle],
    )


def consistent_share(world: World, own_cluster: float) -> float:
    """The share of same_artist's draws that are kept, summed over all possible draws."""
    others = {q: world.same_artist(q) for q in world.items if world.same_artist(q)}
    size = Counter(world.cluster)
    share = 0.0
    for _, (item,), positive, negative in enumerate_triples(world, "same_artist"):
        chance = (1 - own_cluster) / len(size) / size[world.cluster[negative]]
        if world.cluster[negative] == world.cluster[positive]:
            chance += own_cluster / size[world.cluster[positive]]
        share += chance / len(others) / len(others[item])
    return share


# Two near-identical items and one other still give triples.
DUPLICATES = World(
    baskets=[], cluster=[0, 0, 0], group=[0, 0, 1], artist=None,
    visual=[(1.0, 0.0), (1.0, 0.0), (0.8, 0.6)],
)  # fmt: skip


@settings(max_examples=150)
@example(DUPLICATES, "same_artist", False, 0)
@given(worlds(), st.sampled_from([*SIX, "random"]), st.booleans(), st.integers(0, 99))
def test_drawn_triples_are_among_those_that_the_guideline_allows(
    world: World, name: str, keep: bool, seed: int
) -> None:
    expected = enumerate_triples(world, name, keep)
    config = make_config(name, keep_positive_in_profile=keep)
    try:
        drawn = drawn_triples(world, config, 64, seed)
    except InputError:
        rare = name == "same_artist" and consistent_share(world, config.own_cluster) < 2e-3
        assert not expected or rare
        return
    assert set(drawn) <= expected


@settings(max_examples=80)
@given(worlds(), st.sampled_from([*SIX, "random"]))
def test_positive_without_a_valid_negative_is_drawn_if_negatives_are_not(
    world: World, name: str
) -> None:
    expected = {
        (u, tuple(sorted(profile)), p) for u, profile, p, _ in enumerate_pairs(world, name, False)
    }
    try:
        sampler = TripleSampler(world.index, make_config(name, negatives="catalogue"), 0)
    except InputError:
        assert not expected
        return
    triples = sampler.step(0, 32)
    assert triples.negative_BK.shape == (32, 0)
    for b in range(32):
        profile = tuple(sorted(triples.profiles[b].tolist()))
        assert (int(triples.user_B[b]), profile, int(triples.positive_B[b])) in expected


@pytest.mark.parametrize("artists", [True, False])
@pytest.mark.parametrize("name", [*SIX, "random"])
def test_every_triple_that_the_guideline_allows_is_drawn(name: str, artists: bool) -> None:
    world = FIXED if artists else dataclasses.replace(FIXED, artist=None)
    for keep in (False, True):
        config = make_config(name, keep_positive_in_profile=keep)
        expected = enumerate_triples(world, name, keep)
        assert set(drawn_triples(world, config, 40_000)) == expected
        assert expected


def test_drawn_negative_is_never_near_identical_to_the_positive() -> None:
    for name in (*SIX, "random"):
        assert not {(p, j) for _, _, p, j in drawn_triples(FIXED, make_config(name), 8_000)} & {
            (10, 11),
            (11, 10),
        }


def test_near_identical_item_is_drawn_as_negative_if_groups_are_unknown() -> None:
    index = dataclasses.replace(FIXED.index, clusters=None)
    triples = TripleSampler(index, make_config("random", keep_positive_in_profile=True), 0).step(
        0, 8_000
    )
    pairs = set(zip(triples.positive_B.tolist(), triples.negative_BK[:, 0].tolist(), strict=True))
    assert (11, 10) in pairs


def test_guideline_that_needs_clusters_is_refused_without_them() -> None:
    index = dataclasses.replace(FIXED.index, clusters=None)
    with pytest.raises(InputError, match="need visual clusters"):
        TripleSampler(index, make_config("own_profile"), 0)


# The first user has all clusters but one, and that cluster has a single item of 300.
NARROW = World(
    baskets=[[[*range(0, 300, 3)]], [[1], [4]]],
    cluster=[2, *(n % 3 for n in range(1, 299)), 3],
    group=list(range(300)),
    artist=[n % 50 for n in range(299)] + [99],
    visual=[(1.0, 0.0)] * 300,
)


def test_rare_unrelated_item_is_found() -> None:
    # Item 298 is by another artist than in NARROW, so that few proposals are accepted.
    config = make_config("hidden_item")
    world = dataclasses.replace(NARROW, artist=[n % 50 if n != 298 else 77 for n in range(300)])
    drawn = {(u, j) for u, _, _, j in drawn_triples(world, config, 500)}
    assert drawn == {(0, j) for j in world.unrelated(0)}
    assert len(drawn) < 5


def plain_world(
    baskets: list[list[list[int]]], cluster: list[int], artist: list[int] | None
) -> World:
    """All items look the same, and no two are near-identical."""
    n = len(cluster)
    return World(baskets, cluster, list(range(n)), artist, [(1.0, 0.0)] * n)


def test_rare_positive_of_favourite_artists_is_found() -> None:
    # Item 1 is by the user's artist and in the user's cluster. 200 items are by the artist in
    # another cluster, and 50 by another artist in the user's cluster. Item 252 is unrelated.
    world = plain_world([[[0]]], [0, 0, *[1] * 200, *[0] * 50, 2], [0, 0, *[0] * 200, *[1] * 50, 2])
    drawn = drawn_triples(world, make_config("favourite_artists"), 50)
    assert set(drawn) == {(0, (0,), 1, 252)}


@pytest.mark.parametrize("name", ["favourite_artists", "next_basket", "hidden_item"])
def test_users_without_an_unrelated_item_are_never_drawn(name: str) -> None:
    # Outside of clusters 0 and 1 all items are by artists of the first user, but not of the second.
    world = plain_world(
        [[[0], [1, 3]], [[3], [4, 5]]], [0, 0, 0, 1, 1, 1, 2, 2, 1], [0, 1, 0, 1, 2, 2, 0, 1, 2]
    )
    second = dataclasses.replace(world, artist=[0, 3, 0, 2, 2, 2, 0, 3, 2])
    with pytest.raises(InputError, match=f"by the guideline {name} from"):
        drawn_triples(dataclasses.replace(world, baskets=world.baskets[:1]), make_config(name), 9)
    assert {user for user, *_ in drawn_triples(second, make_config(name), 99)} == {1}


# ------------------------------------------------------------------------------- distributions

LEAST_P = 1e-3


@pytest.mark.parametrize("own_cluster", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("name", ["own_profile", "single_item"])
def test_fine_grained_negatives_share_the_positives_cluster_as_often_as_configured(
    name: str, own_cluster: float
) -> None:
    n = 400
    world = World(
        baskets=[[list(range(user, user + 5))] for user in range(0, 100, 5)],
        cluster=[item % 4 for item in range(n)],
        group=list(range(n)),
        artist=None,
        visual=[(1.0, 0.0)] * n,
    )
    config = make_config(name, own_cluster=own_cluster, keep_positive_in_profile=True)
    # Few at a time: repeats are drawn again, which would bias a large window.
    drawn = [triple for seed in range(20) for triple in drawn_triples(world, config, 200, seed)]
    shared = np.mean([p % 4 == j % 4 for _, _, p, j in drawn])
    assert shared == pytest.approx(own_cluster + (1 - own_cluster) / 4, abs=0.02)


def test_unrelated_negatives_are_uniform() -> None:
    # The user has the first, the last and some other of these clusters of different sizes.
    cluster = [c for c, size in enumerate([3, 5, 2, 7, 4, 6, 1, 8, 2]) for _ in range(size)]
    items = [0, 3, 4, 10, 22, 36, 37]  # of clusters 0, 1, 3, 5 and 8
    world = plain_world([[items, [9]]], cluster, None)
    drawn = [
        j
        for seed in range(80)
        for *_, j in drawn_triples(world, make_config("next_basket"), 5, seed)
    ]
    counts = Counter(drawn)
    assert set(counts) == set(world.unrelated(0))
    assert chisquare(list(counts.values())).pvalue > LEAST_P


def test_negatives_of_random_are_drawn_in_proportion_to_popularity() -> None:
    # Training counts 3, 1, 0, 0, 0 of the items that the last user has not taken.
    world = dataclasses.replace(
        FIXED,
        baskets=[[[0, 1]], [[0, 4]], [[0, 5]], [[6, 7, 8, 9, 10, 4, 5]]],
        group=list(range(12)),
    )
    for power in (0.0, 0.5, 1.0):
        config = make_config("random", popularity=power)
        sampler = TripleSampler(world.index, config, 0)
        drawn: Counter[int] = Counter()
        for epoch in range(300):
            sampler.start_epoch(epoch, 8)
            triples = sampler.step(0, 8)
            drawn.update(triples.negative_BK[triples.user_B == 3, 0].tolist())
        weights = {0: 4, 1: 2, 2: 1, 3: 1, 11: 1}
        assert set(drawn) == set(weights)
        expected = np.array([weight**power for weight in weights.values()])
        counts = np.array([drawn[item] for item in weights])
        assert chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > LEAST_P
