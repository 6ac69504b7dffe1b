"""Triples against what they promise, for any log, any number of workers and any epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from visrec.errors import InputError
from visrec.interactions.triples import SamplingConfig, Triples, TripleSampler, stream_count
from visrec.ragged import Ragged

N = 12
Lists = list[list[int]]
LISTS = st.lists(st.lists(st.integers(0, N - 1), unique=True), min_size=1, max_size=6)
CONFIGS = st.builds(
    SamplingConfig, max_profile=st.integers(1, 6), keep_positive_in_profile=st.booleans()
)


def ragged(lists: Lists) -> Ragged:
    values = np.array([item for one in lists for item in one], np.int32)
    return Ragged(values, np.cumsum([0, *map(len, lists)]).astype(np.int64))


def sampler(
    lists: Lists, config: SamplingConfig | None = None, num_items: int = N, seed: int = 0
) -> TripleSampler:
    return TripleSampler(ragged(lists), num_items, config or SamplingConfig(), seed)


def usable(lists: Lists, config: SamplingConfig) -> set[int]:
    least = 1 if config.keep_positive_in_profile else 2
    return {user for user, items in enumerate(lists) if least <= len(items) < N}


def rows(triples: Triples) -> list[tuple[int, tuple[int, ...], int, int]]:
    return [
        (int(user), tuple(triples.profiles[b].tolist()), int(positive), int(negative))
        for b, (user, positive, negative) in enumerate(
            zip(triples.user_B, triples.positive_B, triples.negative_B, strict=True)
        )
    ]


@settings(deadline=None)
@given(LISTS, CONFIGS, st.integers(0, 9), st.integers(0, 9))
def test_every_triple_is_what_it_should_be(
    lists: Lists, config: SamplingConfig, seed: int, epoch: int
) -> None:
    users = usable(lists, config)
    if not users:
        with pytest.raises(InputError):
            sampler(lists, config)
        return
    drawn = sampler(lists, config, seed=seed)
    drawn.start_epoch(epoch)
    triples = drawn.step(3, 16, range(2))
    assert len(triples.profiles) == 32
    for user, profile, positive, negative in rows(triples):
        assert user in users
        taken = set(lists[user])
        assert positive in taken
        assert 0 <= negative < N
        assert negative not in taken
        assert set(profile) <= taken
        assert len(set(profile)) == len(profile)
        kept = config.keep_positive_in_profile
        assert (positive in profile) == kept
        assert len(profile) == min(len(taken) - (not kept), config.max_profile)


LOG: Lists = [[0, 1, 2, 3, 4, 5, 6], [7, 8], [9], [], list(range(N)), [1, 3, 5, 7, 9, 11]]


def test_users_who_cannot_give_a_triple_are_never_drawn() -> None:
    # One item leaves no profile, none at all gives no positive, all of them leave no negative.
    assert set(sampler(LOG).step(0, 3_000, range(8)).user_B.tolist()) == {0, 1, 5}
    kept = sampler(LOG, SamplingConfig(keep_positive_in_profile=True))
    assert set(kept.step(0, 3_000, range(8)).user_B.tolist()) == {0, 1, 2, 5}


@pytest.mark.parametrize(
    ("lists", "keep"),
    [([[1], [2], []], False), ([[], []], True), ([list(range(N))], False), ([], True)],
)
def test_nobody_who_can_give_a_triple_is_refused(lists: Lists, keep: bool) -> None:
    with pytest.raises(InputError) as caught:
        sampler(lists, SamplingConfig(keep_positive_in_profile=keep))
    assert f"None of the {len(lists)} users has {1 if keep else 2} training items" in str(
        caught.value
    )


@pytest.mark.parametrize("max_profile", [0, -1])
def test_a_profile_of_nothing_is_refused(max_profile: int) -> None:
    with pytest.raises(InputError, match=f"--sampling.max_profile {max_profile}; expected at lea"):
        SamplingConfig(max_profile=max_profile)


# ---------------------------------------------------------------------------- workers and epochs


def test_streams_divide_among_the_workers() -> None:
    assert [stream_count(workers) for workers in (1, 2, 4, 8)] == [8, 8, 8, 8]
    assert all(stream_count(workers) % workers == 0 for workers in range(1, 20))


@pytest.mark.parametrize("workers", [2, 4, 8])
def test_any_number_of_workers_draws_the_same_triples(workers: int) -> None:
    config = SamplingConfig(max_profile=3)
    for epoch, step in ((0, 0), (0, 1), (2, 5)):
        together: Counter[object] = Counter()
        for rank in range(workers):
            mine = sampler(LOG, config)  # each worker has its own
            mine.start_epoch(epoch)
            share = mine.step(step, 10, range(rank, stream_count(workers), workers))
            assert len(share.user_B) == 10 * 8 // workers
            together.update(rows(share))
        alone = sampler(LOG, config)
        alone.start_epoch(epoch)
        assert together == Counter(rows(alone.step(step, 10, range(8))))


def test_a_run_that_resumes_draws_what_it_would_have_drawn() -> None:
    config = SamplingConfig(max_profile=2)
    through = sampler(LOG, config)
    drawn = []
    for epoch in range(3):
        through.start_epoch(epoch)
        drawn.append([rows(through.step(step, 6, range(8))) for step in range(4)])
    resumed = sampler(LOG, config)
    resumed.start_epoch(2)
    assert [rows(resumed.step(step, 6, range(8))) for step in range(4)] == drawn[2]


def test_steps_epochs_streams_and_seeds_draw_differently() -> None:
    def drawn(seed: int = 0, epoch: int = 0, step: int = 0, stream: int = 0) -> str:
        one = sampler(LOG, seed=seed)
        one.start_epoch(epoch)
        triples = one.step(step, 20, [stream])
        # Not the profiles: an epoch's order alone makes those differ.
        return str((triples.user_B.tolist(), triples.negative_B.tolist()))

    different = {drawn(), drawn(seed=1), drawn(epoch=1), drawn(step=1), drawn(stream=1)}
    assert len(different) == 5


# ------------------------------------------------------------------------------------ distributions

# Seeds are fixed, so that these either always pass or always fail.
LEAST_P = 1e-3
DRAWS = 4_000  # a stream, of 8


def test_negatives_are_uniform_over_what_the_user_did_not_take() -> None:
    triples = sampler(LOG).step(0, DRAWS, range(8))
    for user in (0, 1, 5):
        drawn = Counter(triples.negative_B[triples.user_B == user].tolist())
        others = set(range(N)) - set(LOG[user])
        assert set(drawn) == others
        assert chisquare([drawn[item] for item in others]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
def test_positives_are_uniform_over_the_interactions(keep: bool) -> None:
    config = SamplingConfig(keep_positive_in_profile=keep, max_profile=2)
    triples = sampler(LOG, config).step(0, DRAWS, range(8))
    drawn = Counter(zip(triples.user_B.tolist(), triples.positive_B.tolist(), strict=True))
    interactions = [(user, item) for user in usable(LOG, config) for item in LOG[user]]
    assert set(drawn) == set(interactions)
    assert chisquare([drawn[one] for one in interactions]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
def test_a_cut_profile_has_each_other_item_equally_often(keep: bool) -> None:
    config = SamplingConfig(keep_positive_in_profile=keep, max_profile=3)
    drawn = sampler([LOG[0]], config)
    pairs: Counter[tuple[int, int]] = Counter()
    # The order is drawn once an epoch, and profiles of one epoch are windows of it.
    for epoch in range(3_000):
        drawn.start_epoch(epoch)
        [(_, profile, positive, _)] = rows(drawn.step(0, 1, [0]))
        pairs.update((positive, item) for item in profile if item != positive)
    every = [(a, b) for a in LOG[0] for b in LOG[0] if a != b]
    assert chisquare([pairs[pair] for pair in every]).pvalue > LEAST_P


@pytest.mark.parametrize("keep", [False, True])
def test_a_cut_profile_is_drawn_anew_each_time(keep: bool) -> None:
    config = SamplingConfig(keep_positive_in_profile=keep, max_profile=3)
    seen: dict[int, set[tuple[int, ...]]] = {item: set() for item in LOG[0]}
    for _, profile, positive, _ in rows(sampler([LOG[0]], config).step(0, 200, range(8))):
        seen[positive].add(profile)
    assert min(map(len, seen.values())) > 2


def test_users_times_items_may_pass_32_bits() -> None:
    lists: Lists = [[]] * 49_999
    taken = list(range(0, 50_000, 2))
    triples = sampler([*lists, taken], num_items=50_000).step(0, 100, range(8))
    assert set(triples.user_B.tolist()) == {49_999}
    assert not set(triples.positive_B.tolist()) - set(taken)
    assert not set(triples.negative_B.tolist()) & set(taken)
