"""Triples for any log, any number of workers and any epoch: contents and distributions."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.sampling import FIXED, SIX, sampling_config
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.sampling.guidelines import GUIDELINES
from visrec.sampling.index import SamplingIndex
from visrec.sampling.profiles import random_subsets
from visrec.sampling.triples import SamplingConfig, Triples, TripleSampler

N = 12
Lists = list[list[int]]
Row = tuple[int, tuple[int, ...], int, tuple[int, ...]]


LISTS = st.lists(st.lists(st.integers(0, N - 1), unique=True), min_size=1, max_size=6)
CONFIGS = st.builds(
    sampling_config,
    max_profile=st.integers(1, 6),
    sub_profiles=st.booleans(),
    keep_positive_in_profile=st.booleans(),
)
ALL_SIX = sampling_config(guidelines=dict.fromkeys(SIX, 1.0), max_profile=3)


def make_index(lists: Lists, num_items: int = N) -> SamplingIndex:
    values = np.array([item for one in lists for item in one], np.int32)
    train = Jagged(values, np.cumsum([0, *map(len, lists)]).astype(np.int64))
    return SamplingIndex(train, np.arange(len(values)), num_items)


def sampler(
    lists: Lists, config: SamplingConfig | None = None, num_items: int = N, seed: int = 0
) -> TripleSampler:
    return TripleSampler(make_index(lists, num_items), config or sampling_config(), seed)


def usable(lists: Lists, config: SamplingConfig) -> set[int]:
    least = 1 if config.keep_positive_in_profile else 2
    return {user for user, items in enumerate(lists) if least <= len(items) < N}


def rows(triples: Triples) -> list[Row]:
    return [
        (
            int(triples.user_B[b]),
            tuple(triples.profiles[b].tolist()),
            int(triples.positive_B[b]),
            tuple(triples.negative_BK[b].tolist()),
        )
        for b in range(len(triples.user_B))
    ]


@given(LISTS, CONFIGS, st.integers(0, 9), st.integers(0, 9))
def test_every_triple_fits_the_log_and_the_configuration(
    lists: Lists, config: SamplingConfig, seed: int, epoch: int
) -> None:
    users = usable(lists, config)
    if not users:
        with pytest.raises(InputError):
            sampler(lists, config)
        return
    drawn = sampler(lists, config, seed=seed)
    drawn.start_epoch(epoch, 100)
    triples = drawn.step(3, 32)
    assert len(triples.profiles) == 32
    for user, profile, positive, (negative,) in rows(triples):
        assert user in users
        taken = set(lists[user])
        assert positive in taken
        assert 0 <= negative < N
        assert negative not in taken
        assert set(profile) <= taken
        assert len(set(profile)) == len(profile)
        kept = config.keep_positive_in_profile
        assert (positive in profile) == kept
        full = min(len(taken) - (not kept), config.max_profile)
        assert 1 <= len(profile) <= full
        assert config.sub_profiles or len(profile) == full


LOG: Lists = [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9], [], list(range(N)), [1, 3, 5, 7, 9, 11]]


def test_users_who_cannot_give_a_triple_are_never_drawn() -> None:
    # A single item leaves no profile, no item gives no positive, all items leave no negative.
    assert set(sampler(LOG).step(0, 24_000).user_B.tolist()) == {0, 1, 5}
    kept = sampler(LOG, sampling_config(keep_positive_in_profile=True))
    assert set(kept.step(0, 24_000).user_B.tolist()) == {0, 1, 2, 5}


@pytest.mark.parametrize(
    ("lists", "keep"),
    [([[1], [2], []], False), ([[], []], True), ([list(range(N))], False), ([], True)],
)
def test_log_without_any_triple_is_refused(lists: Lists, keep: bool) -> None:
    with pytest.raises(InputError) as caught:
        sampler(lists, sampling_config(keep_positive_in_profile=keep))
    assert f"by the guideline random from {len(lists)} users with {sum(map(len, lists))}" in str(
        caught.value
    )
    assert "--sampling.guidelines" in str(caught.value)


# ----------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_profile": 0}, r"--sampling.max_profile 0; expected a whole number in \[1, "),
        ({"own_cluster": 1.1}, r"--sampling.own_cluster 1.1; expected a number in \[0, 1\]"),
        ({"popularity": float("nan")}, r"--sampling.popularity nan"),
        (
            {"guidelines": {"next_basket": 1.0, "best": 1.0}},
            r"guideline best .*own_profile, single",
        ),
        (
            {"guidelines": {"random": -1.0, "next_basket": 2.0}},
            r"--sampling.guidelines.random -1.0; expected a number in",
        ),
        ({"guidelines": {1: 1.0, "best": 1.0}}, r"Found the guideline 1 in"),
        ({"guidelines": {"random": 0.0}}, r"expected a weight above 0"),
        ({"guidelines": {}}, r"expected a weight above 0"),
        ({"guidelines": {"random": float("nan")}}, r"guidelines.random nan; expected a number in"),
    ],
)
def test_invalid_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sampling_config(**changes)


def test_clusters_and_artists_are_needed_by_the_guidelines_that_read_them() -> None:
    assert not sampling_config().needs_clusters
    assert not sampling_config().artist_conditions
    assert not sampling_config(guidelines={"random": 1.0, "next_basket": 0.0}).needs_clusters
    assert sampling_config(guidelines={"own_profile": 1.0}).needs_clusters
    assert not sampling_config(guidelines={"own_profile": 1.0}).artist_conditions
    assert sampling_config(guidelines={"next_basket": 1.0}).artist_conditions


def test_missing_artists_are_noted_in_one_line() -> None:
    without = dataclasses.replace(FIXED.index, artist_N=None)
    [note] = TripleSampler(without, ALL_SIX, 0).notes
    assert note == (
        "no item has an artist: no condition on artists in favourite_artists (positive and "
        "negative), same_artist (positive and negative), next_basket (negative), hidden_item "
        "(negative)"
    )
    [note] = TripleSampler(without, dataclasses.replace(ALL_SIX, negatives="catalogue"), 0).notes
    assert note.endswith("in favourite_artists (positive), same_artist (positive)")
    assert TripleSampler(FIXED.index, ALL_SIX, 0).notes == ()
    assert TripleSampler(without, sampling_config(), 0).notes == ()


# -------------------------------------------------------------------------------- windows, workers


def wide_log(users: int = 300, items: int = 500) -> Lists:
    random = np.random.default_rng(0)
    return [random.permutation(items)[: random.integers(2, 9)].tolist() for _ in range(users)]


def test_no_triple_is_drawn_twice_in_a_window() -> None:
    drawn = sampler(wide_log(), sampling_config(), 500)
    seen: Counter[object] = Counter()
    for step in range(128):  # 65,536 triples: many of the 700,000 would be there twice
        triples = drawn.step(step, 512)
        seen.update(
            (user, positive, *negative)
            for user, positive, negative in zip(
                triples.user_B.tolist(),
                triples.positive_B.tolist(),
                triples.negative_BK.tolist(),
                strict=True,
            )
        )
    assert max(seen.values()) == 1


def test_no_triple_is_drawn_by_two_guidelines() -> None:
    # Both guidelines share 2 * 3 * 9 distinct triples, more than are drawn.
    lists = [[0, 1, 2], [3, 4, 5]]
    index = dataclasses.replace(
        FIXED.index, train=make_index(lists).train, basket_R=np.zeros(6, np.int64)
    )
    config = sampling_config(guidelines={"random": 1.0, "own_profile": 1.0})
    drawn = TripleSampler(index, config, 0)
    drawn.start_epoch(0, 40)
    triples = [(u, p, j) for u, _, p, j in rows(drawn.step(0, 40))]
    assert len(set(triples)) == 40


def test_repeats_stay_if_there_are_too_few_triples() -> None:
    triples = sampler([[0, 1], [2, 3]], num_items=5).step(0, 1_000)
    assert len(triples.user_B) == 1_000
    assert len({(u, p, j) for u, _, p, j in rows(triples)}) == 2 * 2 * 3


@pytest.mark.parametrize("weights", [(1, 1, 1, 1, 1, 1), (1, 0, 3, 0, 0, 2)])
def test_guidelines_share_a_window_by_their_weights(weights: tuple[int, ...]) -> None:
    chosen = dict(zip(SIX, map(float, weights), strict=True))
    config = sampling_config(guidelines={**chosen, "random": 2.0})
    drawn = TripleSampler(FIXED.index, config, 0)
    edges = drawn._edges(65_536)
    expected = [weight / (sum(weights) + 2) * 65_536 for weight in (*filter(None, weights), 2)]
    np.testing.assert_allclose(np.diff(edges), expected, atol=1)
    assert edges[-1] == 65_536
    # And they are shuffled: the first steps have the same share of one-item profiles.
    drawn.start_epoch(0, 65_536)
    first = (drawn.step(0, 4_096).user_B == -1).mean()
    single = (weights[1] + weights[3]) / (sum(weights) + 2)
    assert first == pytest.approx(single, abs=0.03)


@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("config", [sampling_config(max_profile=3), ALL_SIX])
def test_any_number_of_workers_draws_the_same_triples(config: SamplingConfig, workers: int) -> None:
    for epoch, step in ((0, 0), (0, 1), (2, 5)):
        shares: list[Row] = []
        for rank in range(workers):
            worker = TripleSampler(FIXED.index, config, 0)  # each worker has its own
            worker.start_epoch(epoch, 200)
            share = worker.step(step, 80, rank, workers)
            assert len(share.user_B) == 80 // workers
            shares += rows(share)
        alone = TripleSampler(FIXED.index, config, 0)
        alone.start_epoch(epoch, 200)
        assert shares == rows(alone.step(step, 80))


@pytest.mark.parametrize("config", [sampling_config(max_profile=2), ALL_SIX])
def test_resumed_run_draws_the_same_triples(config: SamplingConfig) -> None:
    through = TripleSampler(FIXED.index, config, 0)
    drawn = []
    for epoch in range(3):
        through.start_epoch(epoch, 4 * 48)
        drawn.append([rows(through.step(step, 48)) for step in range(4)])
    resumed = TripleSampler(FIXED.index, config, 0)
    resumed.start_epoch(2, 4 * 48)
    assert [rows(resumed.step(step, 48)) for step in range(4)] == drawn[2]


def test_steps_windows_epochs_and_seeds_draw_differently() -> None:
    def drawn(seed: int = 0, epoch: int = 0, step: int = 0) -> str:
        one = sampler(LOG, seed=seed)
        one.start_epoch(epoch, 400)
        triples = one.step(step, 200)
        # Not the profiles, which differ in any case.
        return str((triples.user_B.tolist(), triples.negative_BK.tolist()))

    # Steps 0 and 1 are one window, steps 2 and 3 the next.
    different = {drawn(), drawn(seed=1), drawn(epoch=1), drawn(step=1), drawn(step=2)}
    assert len(different) == 5


def test_profiles_are_cut_anew_in_each_step_and_epoch() -> None:
    long = [list(range(40))]
    config = sampling_config(max_profile=10, sub_profiles=False)
    drawn = sampler(long, config, num_items=50)
    profiles = []
    for epoch, step in ((0, 0), (0, 1), (1, 0)):
        drawn.start_epoch(epoch, 16)
        profiles.append(tuple(profile for _, profile, _, _ in rows(drawn.step(step, 16))))
    assert len(set(profiles)) == 3
    assert len(set(profiles[0])) == 16


# ------------------------------------------------------------------------------------ distributions

# Seeds are fixed, so that these either always pass or always fail.
LEAST_P = 1e-3
DRAWS = 32_000
ROUNDS = 400  # small windows, because repeats are drawn again, which biases large ones


def in_rounds(drawn: TripleSampler, size: int = 8) -> list[Row]:
    triples = []
    for epoch in range(ROUNDS):
        drawn.start_epoch(epoch, size)
        triples += rows(drawn.step(0, size))
    return triples


def test_negatives_are_uniform_outside_the_profile() -> None:
    drawn = in_rounds(sampler(LOG))
    for user in (0, 1, 5):
        counts = Counter(j for u, _, _, (j,) in drawn if u == user)
        others = set(range(N)) - set(LOG[user])
        assert set(counts) == others
        assert chisquare([counts[item] for item in others]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
def test_positives_are_uniform_over_the_interactions(keep: bool) -> None:
    config = sampling_config(keep_positive_in_profile=keep, max_profile=2)
    counts = Counter((user, positive) for user, _, positive, _ in in_rounds(sampler(LOG, config)))
    interactions = [(user, item) for user in usable(LOG, config) for item in LOG[user]]
    assert set(counts) == set(interactions)
    assert chisquare([counts[one] for one in interactions]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("most", [3, 20])
def test_subsampled_profiles_have_each_size_equally_often_before_they_are_cut(
    keep: bool, most: int
) -> None:
    config = sampling_config(keep_positive_in_profile=keep, max_profile=most)
    drawn = rows(sampler([LOG[0]], config).step(0, DRAWS))
    full = 7 if keep else 6
    counts = Counter(len(profile) for _, profile, _, _ in drawn)
    expected = [
        DRAWS / full * (1 if size < most else full - most + 1) for size in range(1, full + 1)
    ]
    assert set(counts) == set(range(1, min(full, most) + 1))
    assert chisquare([counts[n] for n in sorted(counts)], expected[: len(counts)]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("sub", [False, True])
def test_cut_profile_is_a_uniform_subset(keep: bool, sub: bool) -> None:
    config = sampling_config(keep_positive_in_profile=keep, max_profile=3, sub_profiles=sub)
    drawn = rows(sampler([LOG[0]], config).step(0, DRAWS))
    sets = Counter(
        (positive, frozenset(profile) - {positive})
        for _, profile, positive, _ in drawn
        if len(profile) == 3
    )
    # All subsets of 3 of the 6 other items, or of 2 beside the positive.
    assert len(sets) == 7 * (15 if keep else 20)
    assert chisquare(list(sets.values())).pvalue > LEAST_P


@given(
    st.lists(st.tuples(st.integers(0, 30), st.floats(0, 1), st.integers(0, 2)), max_size=20),
    st.integers(0, 9),
)
def test_random_subsets_are_subsets(wanted: list[tuple[int, float, int]], seed: int) -> None:
    of = np.array([of for of, _, _ in wanted], np.int64)
    count = np.array([round(of * share) for of, share, _ in wanted], np.int64)
    size = count + np.array([more for _, _, more in wanted], np.int64)
    chances = np.random.default_rng(seed).random(count.sum() + 30)
    drawn = random_subsets(of, count, size, np.cumsum([0, *count])[:-1], chances)
    assert drawn.lengths.tolist() == size.tolist()
    for row in range(len(wanted)):
        chosen = drawn[row][: count[row]].tolist()
        assert len(set(chosen)) == len(chosen)
        assert set(chosen) <= set(range(of[row]))
        assert not drawn[row][count[row] :].any()


def test_random_subsets_are_uniform() -> None:
    rows = 20_000
    three = np.full(rows, 3)
    chances = np.random.default_rng(0).random(3 * rows)
    drawn = random_subsets(np.full(rows, 5), three, three, 3 * np.arange(rows), chances)
    counts = Counter(frozenset(values) for values in drawn.values.reshape(rows, 3).tolist())
    assert len(counts) == 10
    assert chisquare(list(counts.values())).pvalue > LEAST_P


def test_users_times_items_may_exceed_32_bits() -> None:
    lists: Lists = [[]] * 49_999
    taken = list(range(0, 50_000, 2))
    triples = sampler([*lists, taken], num_items=50_000).step(0, 800)
    assert set(triples.user_B.tolist()) == {49_999}
    assert not set(triples.positive_B.tolist()) - set(taken)
    assert not set(triples.negative_BK[:, 0].tolist()) & set(taken)


def test_config_documents_every_guideline() -> None:
    assert set(GUIDELINES) == {*SIX, "random"}
    assert all(name in (SamplingConfig.__doc__ or "") for name in GUIDELINES)


def test_message_names_the_missing_second_item() -> None:
    index = make_index([[0], [3], [5]])
    with pytest.raises(InputError) as caught:
        TripleSampler(index, sampling_config(keep_positive_in_profile=False), seed=0)
    message = str(caught.value)
    assert "3 training items, at most 1 of one user" in message
    assert "expected a user with two training items" in message
    TripleSampler(index, sampling_config(keep_positive_in_profile=True), seed=0)
