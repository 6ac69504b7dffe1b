"""Batch sources: what they sample, how workers share a step, and what they refuse."""

import dataclasses
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import checkerboard, jagged_lists
from visrec.errors import InputError
from visrec.models.base import ModelTraits
from visrec.models.inputs import JaggedTensor, RatingBatch, TripleBatch, UserBatch
from visrec.sampling.triples import SamplingConfig
from visrec.training.batches import PerTripleNegativesSource, RatingSource, TripleSource, UserSource
from visrec.training.data import TrainingData

DATA = checkerboard()
CPU = torch.device("cpu")
SAMPLING = SamplingConfig()


def _with(lists: list[list[int]], **changes: Any) -> TrainingData:
    """The same items with other training items of other users, in baskets of one."""
    basket_R = np.concatenate([np.arange(len(items)) for items in lists])
    return dataclasses.replace(DATA, train=jagged_lists(lists), basket_R=basket_R, **changes)


def _lists(bags: JaggedTensor) -> list[list[int]]:
    return [rows.tolist() for rows in torch.split(bags.values, bags.lengths.tolist())]


# Users, each with all of their items.

# Two users took nothing, and no two users took the same items.
TAKEN = [[0, 1], [], [2], [3, 4, 5], [6, 9], [], [7, 8, 10, 11, 12], [13]]
ACTIVE = sorted(items for items in TAKEN if items)


def _users(
    size: int, steps: int, epoch: int = 0, seed: int = 0, rank: int = 0, workers: int = 1
) -> list[list[int]]:
    source = UserSource(_with(TAKEN), SAMPLING, seed, ModelTraits())
    source.start_epoch(epoch, size * steps)
    batches = [source.batch(step, size, rank, workers, CPU) for step in range(steps)]
    return [items for batch in batches for items in _lists(batch.items)]


def test_every_user_comes_once_before_any_user_comes_again() -> None:
    sampled = _users(size=4, steps=6)
    assert len(sampled) == 24
    for start in range(0, 24, len(ACTIVE)):
        assert sorted(sampled[start : start + len(ACTIVE)]) == ACTIVE
    rounds = {str(sampled[start : start + len(ACTIVE)]) for start in range(0, 24, len(ACTIVE))}
    assert len(rounds) > 1  # each round has its own order


def test_step_larger_than_the_number_of_users_is_full() -> None:
    sampled = _users(size=16, steps=1)
    assert len(sampled) == 16
    assert {str(items) for items in sampled} == {str(items) for items in ACTIVE}


def test_order_of_users_depends_on_seed_and_epoch() -> None:
    orders = [_users(4, 6, epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert orders[0] == _users(4, 6)
    assert len({str(order) for order in orders}) == 3


def test_epoch_is_the_same_in_a_source_that_starts_with_it() -> None:
    source = UserSource(_with(TAKEN), SAMPLING, 0, ModelTraits())
    for epoch in range(3):
        source.start_epoch(epoch, 24)
    batch = source.batch(5, 4, 0, 1, CPU)
    assert _lists(batch.items) == _users(4, 6, epoch=2)[20:]


def test_two_workers_get_the_users_of_one() -> None:
    source = UserSource(_with(TAKEN), SAMPLING, 0, ModelTraits())
    source.start_epoch(0, 24)
    for step in range(6):
        by_one = source.batch(step, 4, 0, 1, CPU)
        shares: list[UserBatch] = [source.batch(step, 4, rank, 2, CPU) for rank in range(2)]
        assert [share.first for share in shares] == [0, 2]
        assert (by_one.first, by_one.total) == (0, 4)
        assert {share.total for share in shares} == {4}
        assert [*chain(*(_lists(share.items) for share in shares))] == _lists(by_one.items)


# Ratings.

RATED = [[0, 1], [5], [2, 3, 4, 9], list(range(0, 60, 3)), [7, 0]]


def _rating(user: int, item: int) -> float:
    return user + item / 64


def _rated() -> TrainingData:
    rating_R = [_rating(user, item) for user, items in enumerate(RATED) for item in items]
    return _with(RATED, rating_R=np.array(rating_R, np.float32))


def _ratings(
    data: TrainingData, steps: int = 8, rank: int = 0, workers: int = 1, seed: int = 0
) -> list[tuple[int, int, float, int]]:
    """User, item, rating and the other item of each example of some steps of 64."""
    source = RatingSource(data, SAMPLING, seed, ModelTraits(requires_ratings=True))
    source.start_epoch(0, 64 * steps)
    batches: list[RatingBatch] = [source.batch(s, 64, rank, workers, CPU) for s in range(steps)]
    columns = [
        torch.cat([getattr(batch, name) for batch in batches]).tolist()
        for name in ("user_B", "item_B", "rating_B", "other_B")
    ]
    return list(zip(*columns, strict=True))


def test_each_pair_has_its_rating() -> None:
    sampled = _ratings(_rated())
    assert len(sampled) == 512
    for user, item, rating, _ in sampled:
        assert item in RATED[user]
        assert rating == _rating(user, item)


def test_other_item_is_never_one_that_the_user_took() -> None:
    sampled = _ratings(_rated())
    assert not any(other in RATED[user] for user, _, _, other in sampled)
    assert len({other for *_, other in sampled}) > 50  # of 60


def test_every_rating_is_sampled() -> None:
    # Also those of users who rated a single item.
    every = {(user, item) for user, items in enumerate(RATED) for item in items}
    assert {(user, item) for user, item, *_ in _ratings(_rated(), steps=16)} == every


def test_two_workers_get_the_ratings_of_one() -> None:
    one, other = (_ratings(_rated(), rank=rank, workers=2) for rank in range(2))
    interleaved = [one[at : at + 32] + other[at : at + 32] for at in range(0, 256, 32)]
    assert [*chain(*interleaved)] == _ratings(_rated())
    assert _ratings(_rated(), seed=1) != _ratings(_rated())


def test_taken_items_count_as_rated_1_without_ratings_and_a_note_says_so() -> None:
    source = RatingSource(_with(RATED), SAMPLING, 0, ModelTraits(requires_ratings=True))
    assert source.notes[-1] == "no ratings: each taken item counts as rated 1"
    assert {rating for _, _, rating, _ in _ratings(_with(RATED))} == {1.0}
    drawn = SamplingConfig(negatives="drawn")
    assert RatingSource(_rated(), drawn, 0, ModelTraits(requires_ratings=True)).notes == ()


def test_ratings_replace_guidelines_and_negatives_and_say_so() -> None:
    # There are no clusters or artists for these, and anonymous profiles give no pairs.
    sampling = SamplingConfig(guidelines={"single_item": 1.0, "next_basket": 1.0})
    source = RatingSource(
        _rated(), sampling, 0, ModelTraits(requires_ratings=True, supports_new_users=False)
    )
    source.start_epoch(0, 64)
    batch = source.batch(0, 64, 0, 1, CPU)
    assert (batch.user_B >= 0).all()
    assert batch.other_B.shape == (64,)
    why = "the model scores pairs one by one"
    assert source.notes == (
        f"--sampling.guidelines single_item, next_basket is replaced by random: {why}",
        f"--sampling.negatives catalogue is replaced by drawn: {why}",
    )


# Triples.


def _triples(source: TripleSource, size: int = 16, rank: int = 0, workers: int = 1) -> TripleBatch:
    source.start_epoch(0, 64)
    return source.batch(1, size, rank, workers, CPU)


@pytest.mark.parametrize("negatives", ["catalogue", "in_batch"])
def test_pairwise_scorer_gets_a_negative_per_triple_and_a_note_says_so(negatives: Any) -> None:
    source = PerTripleNegativesSource(DATA, SamplingConfig(negatives=negatives), 0, ModelTraits())
    batch = _triples(source)
    assert batch.candidates is None
    assert batch.negative_BK.shape == (16, 1)
    for user, item in zip(batch.user_B, batch.item_M[batch.negative_BK[:, 0]], strict=True):
        assert int(item) not in DATA.train[int(user)].tolist()
    assert len(source.notes) == 1
    assert negatives in source.notes[0]
    assert "--sampling.negatives" in source.notes[0]


def test_drawn_negatives_stay_as_configured() -> None:
    config = SamplingConfig(negatives="drawn")
    source = PerTripleNegativesSource(DATA, config, 0, ModelTraits())
    assert _triples(source).negative_BK.shape == (16, 1)
    assert source.notes == ()


@pytest.mark.parametrize("source", [TripleSource, PerTripleNegativesSource])
@pytest.mark.parametrize("guideline", ["single_item", "same_artist"])
def test_anonymous_profiles_are_refused_for_a_model_with_user_embeddings(
    source: type[TripleSource], guideline: str
) -> None:
    config = SamplingConfig(guidelines={"random": 1.0, guideline: 0.5})
    with pytest.raises(InputError, match=rf"{guideline} in --sampling\.guidelines"):
        source(DATA, config, 0, ModelTraits(supports_new_users=False))


def test_anonymous_profiles_are_sampled_for_a_model_that_scores_new_users() -> None:
    sampling = SamplingConfig(guidelines={"single_item": 1.0})
    assert (_triples(TripleSource(DATA, sampling, 0, ModelTraits())).user_B == -1).all()
    # A guideline with a weight of 0 is not used.
    unused = SamplingConfig(guidelines={"random": 1.0, "single_item": 0.0})
    batch = _triples(TripleSource(DATA, unused, 0, ModelTraits(supports_new_users=False)))
    assert (batch.user_B >= 0).all()


# In-batch candidates: the positives of the step.

IN_BATCH = SamplingConfig(negatives="in_batch")


def _items(batch: TripleBatch, positions: Any) -> list[int]:
    return [int(item) for item in batch.item_M[positions]]


def test_in_batch_candidates_are_the_positives_of_all_workers() -> None:
    by_one = _triples(TripleSource(DATA, IN_BATCH, 0, ModelTraits()))
    shares = [_triples(TripleSource(DATA, IN_BATCH, 0, ModelTraits()), 16, r, 2) for r in range(2)]
    positives = [_items(share, share.positive_B) for share in shares]
    assert positives[0] + positives[1] == _items(by_one, by_one.positive_B)
    assert positives[0] != positives[1]
    assert by_one.candidates is not None
    for batch in (by_one, *shares):
        assert batch.candidates is not None
        assert _items(batch, slice(len(batch.candidates))) == sorted({*positives[0], *positives[1]})
        assert torch.equal(batch.candidates.log_q_C, by_one.candidates.log_q_C)
        assert batch.negative_BK.shape == (len(batch.positive_B), 0)
    masks = [share.candidates.invalid_BC for share in shares if share.candidates]
    assert torch.equal(torch.cat(masks), by_one.candidates.invalid_BC)


def test_item_that_the_user_took_is_masked_in_batch() -> None:
    batch = _triples(TripleSource(DATA, IN_BATCH, 0, ModelTraits()))
    assert batch.candidates is not None
    candidates = _items(batch, slice(len(batch.candidates)))
    for user, mask in zip(batch.user_B.tolist(), batch.candidates.invalid_BC.tolist(), strict=True):
        taken = set(DATA.train[user].tolist())
        assert mask == [item in taken for item in candidates]


def _frequencies(lists: list[list[int]], config: SamplingConfig) -> tuple[Any, Any]:
    """(N,) the share of steps of 8 that have each item as a candidate, and the share by log Q."""
    steps, size, items = 6000, 8, len(DATA.item_ids)
    source = TripleSource(_with(lists), config, 3, ModelTraits())
    source.start_epoch(0, steps * size)
    found_N, expected_N = np.zeros(items), np.zeros(items)
    for step in range(steps):
        batch = source.batch(step, size, 0, 1, CPU)
        assert batch.candidates is not None
        candidates = _items(batch, slice(len(batch.candidates)))
        found_N[candidates] += 1 / steps
        expected_N[candidates] = batch.candidates.log_q_C.exp()
    return found_N, expected_N


# 11 users took item 0, and one took item 11.
NESTED = [[item for item in range(12) if item <= user] for user in range(1, 12)]


def test_log_q_is_the_log_frequency_of_an_in_batch_candidate() -> None:
    found_N, expected_N = _frequencies(NESTED, IN_BATCH)
    assert not found_N[12:].any()
    assert found_N[0] > 5 * found_N[11]
    np.testing.assert_allclose(expected_N, found_N, atol=0.02)


@pytest.mark.parametrize("keep", [True, False])
def test_log_q_counts_users_of_one_item_only_where_they_give_examples(keep: bool) -> None:
    # Their only item can be a positive only if the positive stays in the profile.
    config = dataclasses.replace(IN_BATCH, keep_positive_in_profile=keep)
    found_N, expected_N = _frequencies([*NESTED, *[[11]] * 20], config)
    assert bool(found_N[11] > 0.5) is keep
    np.testing.assert_allclose(expected_N, found_N, atol=0.02)
