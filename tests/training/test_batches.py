"""Sources of batches: whom and what they draw, how workers share it, and what they refuse."""

import dataclasses
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import checkerboard, ragged
from visrec.errors import InputError
from visrec.models.base import Needs
from visrec.models.inputs import JaggedTensor, RatingBatch, TripleBatch, UserBatch
from visrec.sampling.triples import SamplingConfig
from visrec.training.batches import DrawnTripleSource, RatingSource, TripleSource, UserSource
from visrec.training.data import TrainingData

DATA = checkerboard()
CPU = torch.device("cpu")
SAMPLING = SamplingConfig()


def _with(lists: list[list[int]], **changes: Any) -> TrainingData:
    """The same items with other training items of other users, in baskets of one."""
    basket_R = np.concatenate([np.arange(len(items)) for items in lists])
    return dataclasses.replace(DATA, train=ragged(lists), basket_R=basket_R, **changes)


def _lists(bags: JaggedTensor) -> list[list[int]]:
    return [rows.tolist() for rows in torch.split(bags.values, bags.lengths.tolist())]


# Users, each with all of their items.

# Two took nothing, and no two took the same.
TAKEN = [[0, 1], [], [2], [3, 4, 5], [6, 9], [], [7, 8, 10, 11, 12], [13]]
ACTIVE = sorted(items for items in TAKEN if items)


def _users(
    size: int, steps: int, epoch: int = 0, seed: int = 0, rank: int = 0, workers: int = 1
) -> list[list[int]]:
    source = UserSource(_with(TAKEN), SAMPLING, seed, Needs())
    source.start_epoch(epoch, size * steps)
    batches = [source.batch(step, size, rank, workers, CPU) for step in range(steps)]
    return [items for batch in batches for items in _lists(batch.items)]


def test_every_user_comes_once_before_any_comes_again() -> None:
    drawn = _users(size=4, steps=6)
    assert len(drawn) == 24
    for start in range(0, 24, len(ACTIVE)):
        assert sorted(drawn[start : start + len(ACTIVE)]) == ACTIVE
    rounds = {str(drawn[start : start + len(ACTIVE)]) for start in range(0, 24, len(ACTIVE))}
    assert len(rounds) > 1  # each in an order of its own


def test_step_of_more_users_than_there_are_is_full() -> None:
    drawn = _users(size=16, steps=1)
    assert len(drawn) == 16
    assert {str(items) for items in drawn} == {str(items) for items in ACTIVE}


def test_users_are_drawn_by_seed_and_epoch() -> None:
    kinds = [_users(4, 6, epoch, seed) for epoch, seed in ((0, 0), (1, 0), (0, 1))]
    assert kinds[0] == _users(4, 6)
    assert len({str(drawn) for drawn in kinds}) == 3


def test_source_that_goes_on_draws_what_one_from_there_does() -> None:
    source = UserSource(_with(TAKEN), SAMPLING, 0, Needs())
    for epoch in range(3):
        source.start_epoch(epoch, 24)
    batch = source.batch(5, 4, 0, 1, CPU)
    assert _lists(batch.items) == _users(4, 6, epoch=2)[20:]


def test_users_of_two_workers_are_those_of_one() -> None:
    source = UserSource(_with(TAKEN), SAMPLING, 0, Needs())
    source.start_epoch(0, 24)
    for step in range(6):
        whole = source.batch(step, 4, 0, 1, CPU)
        shares: list[UserBatch] = [source.batch(step, 4, rank, 2, CPU) for rank in range(2)]
        assert [share.first for share in shares] == [0, 2]
        assert (whole.first, whole.total) == (0, 4)
        assert {share.total for share in shares} == {4}
        assert [*chain(*(_lists(share.items) for share in shares))] == _lists(whole.items)


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
    source = RatingSource(data, SAMPLING, seed, Needs(ratings=True))
    source.start_epoch(0, 64 * steps)
    batches: list[RatingBatch] = [source.batch(s, 64, rank, workers, CPU) for s in range(steps)]
    columns = [
        torch.cat([getattr(batch, name) for batch in batches]).tolist()
        for name in ("user_B", "item_B", "rating_B", "other_B")
    ]
    return list(zip(*columns, strict=True))


def test_ratings_are_those_of_the_pairs() -> None:
    drawn = _ratings(_rated())
    assert len(drawn) == 512
    for user, item, rating, _ in drawn:
        assert item in RATED[user]
        assert rating == _rating(user, item)


def test_other_item_is_one_that_the_user_did_not_take() -> None:
    drawn = _ratings(_rated())
    assert not any(other in RATED[user] for user, _, _, other in drawn)
    assert len({other for *_, other in drawn}) > 50  # of 60


def test_every_rating_is_learned_from() -> None:
    # Of users who rated but one item too.
    every = {(user, item) for user, items in enumerate(RATED) for item in items}
    assert {(user, item) for user, item, *_ in _ratings(_rated(), steps=16)} == every


def test_ratings_of_two_workers_are_those_of_one() -> None:
    one, other = (_ratings(_rated(), rank=rank, workers=2) for rank in range(2))
    count_same_code = [one[at : at + 32] + other[at : at + 32] for at in range(0, 256, 32)]
    assert [*chain(*count_same_code)] == _ratings(_rated())
    assert _ratings(_rated(), seed=1) != _ratings(_rated())


def test_what_was_taken_counts_1_where_nobody_rated_and_it_is_said() -> None:
    source = RatingSource(_with(RATED), SAMPLING, 0, Needs(ratings=True))
    assert source.notes == ("no ratings: what was taken counts 1",)
    assert {rating for _, _, rating, _ in _ratings(_with(RATED))} == {1.0}
    assert RatingSource(_rated(), SAMPLING, 0, Needs(ratings=True)).notes == ()


def test_guidelines_have_no_say_in_ratings() -> None:
    # Neither clusters nor artists are there for them, and nobody's profiles are no pairs.
    asked = SamplingConfig(guidelines={"single_item": 1.0, "next_basket": 1.0}, negatives="hard")
    source = RatingSource(_rated(), asked, 0, Needs(ratings=True, supports_new_users=False))
    source.start_epoch(0, 64)
    batch = source.batch(0, 64, 0, 1, CPU)
    assert (batch.user_B >= 0).all()
    assert batch.other_B.shape == (64,)


# Triples.


def _triples(source: TripleSource, size: int = 16, rank: int = 0, workers: int = 1) -> TripleBatch:
    source.start_epoch(0, 64)
    return source.batch(1, size, rank, workers, CPU)


@pytest.mark.parametrize("asked", ["catalogue", "in_batch"])
def test_pairs_scored_one_by_one_have_negatives_of_their_own_and_it_is_said(asked: Any) -> None:
    source = DrawnTripleSource(DATA, SamplingConfig(negatives=asked), 0, Needs())
    batch = _triples(source)
    assert batch.candidates is None
    assert batch.negative_BK.shape == (16, 1)
    for user, item in zip(batch.user_B, batch.item_M[batch.negative_BK[:, 0]], strict=True):
        assert int(item) not in DATA.train[int(user)].tolist()
    assert len(source.notes) == 1
    assert asked in source.notes[0]
    assert "--sampling.negatives" in source.notes[0]


@pytest.mark.parametrize(("asked", "negatives"), [("drawn", 1), ("hard", 5)])
def test_negatives_of_a_triples_own_stay_as_asked(asked: Any, negatives: int) -> None:
    config = SamplingConfig(negatives=asked, hard_pool=5)
    source = DrawnTripleSource(DATA, config, 0, Needs())
    assert _triples(source).negative_BK.shape == (16, negatives)
    assert source.notes == ()


@pytest.mark.parametrize("source", [TripleSource, DrawnTripleSource])
@pytest.mark.parametrize("guideline", ["single_item", "same_artist"])
def test_profiles_of_nobody_are_refused_for_a_model_that_needs_users(
    source: type[TripleSource], guideline: str
) -> None:
    config = SamplingConfig(guidelines={"random": 1.0, guideline: 0.5})
    with pytest.raises(InputError, match=rf"{guideline} in --sampling\.guidelines"):
        source(DATA, config, 0, Needs(supports_new_users=False))


def test_profiles_of_nobody_are_drawn_for_a_model_that_scores_them() -> None:
    asked = SamplingConfig(guidelines={"single_item": 1.0})
    assert (_triples(TripleSource(DATA, asked, 0, Needs())).user_B == -1).all()
    # A weight of 0 is none.
    none = SamplingConfig(guidelines={"random": 1.0, "single_item": 0.0})
    batch = _triples(TripleSource(DATA, none, 0, Needs(supports_new_users=False)))
    assert (batch.user_B >= 0).all()


# The step's own positives as candidates.

IN_BATCH = SamplingConfig(negatives="in_batch")


def _items(batch: TripleBatch, places: torch.Tensor) -> list[int]:
    return [int(item) for item in batch.item_M[places]]


def test_candidates_in_batch_are_the_positives_of_all_workers() -> None:
    whole = _triples(TripleSource(DATA, IN_BATCH, 0, Needs()))
    shares = [_triples(TripleSource(DATA, IN_BATCH, 0, Needs()), 16, r, 2) for r in range(2)]
    positives = [_items(share, share.positive_B) for share in shares]
    assert positives[0] + positives[1] == _items(whole, whole.positive_B)
    assert positives[0] != positives[1]
    assert whole.candidates is not None
    for batch in (whole, *shares):
        assert batch.candidates is not None
        assert _items(batch, slice(len(batch.candidates))) == sorted({*positives[0], *positives[1]})
        assert torch.equal(batch.candidates.log_q_C, whole.candidates.log_q_C)
        assert batch.negative_BK.shape == (len(batch.positive_B), 0)
    masks = [share.candidates.taken_BC for share in shares if share.candidates]
    assert torch.equal(torch.cat(masks), whole.candidates.taken_BC)


def test_what_the_user_took_is_no_negative_in_batch() -> None:
    batch = _triples(TripleSource(DATA, IN_BATCH, 0, Needs()))
    assert batch.candidates is not None
    candidates = _items(batch, slice(len(batch.candidates)))
    for user, mask in zip(batch.user_B.tolist(), batch.candidates.taken_BC.tolist(), strict=True):
        taken = set(DATA.train[user].tolist())
        assert mask == [item in taken for item in candidates]


def _how_often(lists: list[list[int]], config: SamplingConfig) -> tuple[Any, Any]:
    """(N,) how often a step of 8 has each item as a candidate, and how often log Q says it does."""
    steps, size, items = 6000, 8, len(DATA.item_ids)
    source = TripleSource(_with(lists), config, 3, Needs())
    source.start_epoch(0, steps * size)
    often_N, told_N = np.zeros(items), np.zeros(items)
    for step in range(steps):
        batch = source.batch(step, size, 0, 1, CPU)
        assert batch.candidates is not None
        there = _items(batch, slice(len(batch.candidates)))
        often_N[there] += 1 / steps
        told_N[there] = batch.candidates.log_q_C.exp()
    return often_N, told_N


# Item 0 has 11 takers, item 11 one.
NESTED = [[item for item in range(12) if item <= user] for user in range(1, 12)]


def test_q_is_how_often_a_step_has_the_item_in_batch() -> None:
    often_N, told_N = _how_often(NESTED, IN_BATCH)
    assert not often_N[12:].any()
    assert often_N[0] > 5 * often_N[11]
    np.testing.assert_allclose(told_N, often_N, atol=0.02)


@pytest.mark.parametrize("keep", [True, False])
def test_q_knows_that_who_took_one_item_may_give_no_example(keep: bool) -> None:
    # Their only item is a positive only where the positive stays in the profile.
    config = dataclasses.replace(IN_BATCH, keep_positive_in_profile=keep)
    often_N, told_N = _how_often([*NESTED, *[[11]] * 20], config)
    assert bool(often_N[11] > 0.5) is keep
    np.testing.assert_allclose(told_N, often_N, atol=0.02)
