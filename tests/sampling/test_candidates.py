"""Softmax candidates: which items are drawn, how often, and how the loss corrects for it."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.training import checkerboard, jagged_lists
from visrec.jagged import Jagged
from visrec.models.base import ModelTraits
from visrec.models.inputs import TripleBatch
from visrec.models.losses import RankingConfig, ranking_loss
from visrec.sampling.candidates import CandidateSampler, invalid_negative_mask
from visrec.sampling.index import Ints, SamplingIndex
from visrec.sampling.triples import SamplingConfig, Triples
from visrec.training.batches import RatingSource, TripleSource
from visrec.training.data import TrainingData

DATA = checkerboard()
N = len(DATA.item_ids)
CPU = torch.device("cpu")
FIELDS = ("item_C", "log_q_C")


def _triples(rows: list[tuple[int, list[int], int]]) -> Triples:
    users, profiles, positives = zip(*rows, strict=True)
    return Triples(
        np.array(users),
        jagged_lists(list(profiles)),
        np.array(positives),
        np.zeros((len(rows), 0), int),
    )


def test_small_catalogue_is_used_whole_without_items_nobody_took() -> None:
    train = jagged_lists([[1, 4], [4, 6]])
    drawn = CandidateSampler(train, 9, SamplingConfig(candidates=4), 0).step((0, 0))
    assert drawn.item_C.tolist() == [1, 4, 6]
    assert not drawn.log_q_C.any()


@pytest.mark.parametrize("popularity", [0.0, 0.75])
def test_q_is_the_probability_that_a_step_has_the_item(popularity: float) -> None:
    lists = [[i for i in range(12) if i <= u] for u in range(12)]  # item 0 has 12 takers, 11 one
    config = SamplingConfig(candidates=5, popularity=popularity)
    sampler = CandidateSampler(jagged_lists(lists), 14, config, seed=3)
    steps = [sampler.step((0, step)) for step in range(6000)]
    often = np.bincount(np.concatenate([s.item_C for s in steps]), minlength=14) / 6000
    assert not often[12:].any()  # nobody took these
    log_q_N = dict(
        zip(*(np.concatenate([getattr(s, f) for s in steps]) for f in FIELDS), strict=True)
    )
    q = np.exp([log_q_N[item] for item in range(12)])
    np.testing.assert_allclose(q, often[:12], atol=0.025)
    weight = (np.arange(12, 0, -1) + 1.0) ** popularity
    chance = 1 - (1 - weight / weight.sum()) ** 5
    np.testing.assert_allclose(q, chance, rtol=1e-5)


def test_candidates_depend_on_seed_epoch_and_step() -> None:
    def items(seed: int, *key: int) -> list[int]:
        sampler = CandidateSampler(DATA.train, N, SamplingConfig(candidates=6), seed)
        return sampler.step(key).item_C.tolist()

    assert items(0, 1, 2) == items(0, 1, 2)
    assert len({str(items(*key)) for key in [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)]}) == 4


def test_mask_has_the_positive_and_the_users_items() -> None:
    index = SamplingIndex(jagged_lists([[0, 1, 2], [3, 5]]), np.arange(5), 9)
    triples = _triples([(0, [0], 2), (1, [3], 8), (-1, [4], 6), (-1, [7], 7)])
    item_C = np.array([1, 2, 4, 5, 6, 7, 8])
    masked = [item_C[row].tolist() for row in invalid_negative_mask(triples, index, item_C)]
    assert masked == [[1, 2], [5, 8], [4, 6], [7]]


class _CountingLists(Jagged):
    """Lists that remember which of them were taken."""

    def take(self, rows: Ints) -> Jagged:
        TAKEN.extend(rows.tolist())
        return super().take(rows)


TAKEN: list[int] = []


def test_items_of_a_user_are_read_once_and_those_of_nobody_never() -> None:
    lists = jagged_lists([[0, 1], [2, 3], [4]])
    counting = _CountingLists(lists.values, lists.offsets)
    index = SamplingIndex(counting, np.arange(5), 5)
    TAKEN.clear()
    triples = _triples([(1, [2], 3), (-1, [4], 4), (1, [3], 2), (-1, [0], 0), (2, [], 4)])
    mask_BC = invalid_negative_mask(triples, index, np.arange(5))
    assert TAKEN == [1, 2]
    masked = [np.flatnonzero(mask_C).tolist() for mask_C in mask_BC]
    assert masked == [[2, 3], [4], [2, 3], [0], [4]]


NEGATIVES = {
    "catalogue": SamplingConfig(),
    "drawn candidates": SamplingConfig(candidates=9, popularity=1.0),
    "in batch": SamplingConfig(negatives="in_batch"),
    "drawn": SamplingConfig(negatives="drawn"),
    "popular": SamplingConfig(negatives="drawn", popularity=1.0),
}


def _with_duplicates() -> TrainingData:
    """Items 0, 10, 20, ... have the same picture, and so have 1 and 11; feature norms differ."""
    feature_ND = np.array(DATA.feature_ND, np.float64)
    feature_ND[::10] = feature_ND[0] * np.linspace(1, 1.5, len(feature_ND[::10]))[:, None]
    feature_ND[11] = feature_ND[1]
    return dataclasses.replace(DATA, feature_ND=feature_ND.astype(np.float32))


@pytest.mark.parametrize("name", NEGATIVES)
def test_no_negative_is_near_identical_to_the_positive(name: str) -> None:
    data, pairs, duplicates = _with_duplicates(), 0, 0
    source = TripleSource(data, NEGATIVES[name], 0, ModelTraits())
    source.start_epoch(0, 1024)
    group_N = np.arange(N)
    group_N[::10], group_N[11] = 0, 1
    for step in range(8):
        batch = source.batch(step, 64, 0, 1, CPU)
        item_M = batch.item_M.numpy()
        positive_B = item_M[batch.positive_B]
        for b, positive in enumerate(positive_B):
            items = item_M[batch.negative_BK.numpy()[b]]
            if batch.candidates is not None:
                items = item_M[: len(batch.candidates)][~batch.candidates.invalid_BC[b].numpy()]
            assert not (group_N[items] == group_N[positive]).any()
            pairs += len(items)
            duplicates += positive % 10 == 0
    assert duplicates
    assert pairs > 400


def test_item_drawn_for_a_rating_is_never_near_identical() -> None:
    source = RatingSource(_with_duplicates(), SamplingConfig(), 0, ModelTraits())
    source.start_epoch(0, 1024)
    batches = [source.batch(step, 64, 0, 1, CPU) for step in range(8)]
    rated = torch.cat([batch.item_B for batch in batches])
    other = torch.cat([batch.other_B for batch in batches])
    assert (rated % 10 == 0).any()
    assert not ((rated % 10 == 0) & (other % 10 == 0)).any()


def _log_likelihood(batch: TripleBatch, item_Nd: np.ndarray, user_Bd: np.ndarray) -> float:
    """The mean negative log-likelihood of the positives, example by example in float64."""
    candidates = batch.candidates
    assert candidates is not None
    losses = []
    for b, user in enumerate(user_Bd):
        positive_score = user @ item_Nd[batch.positive_B[b]] / 2
        logits = [positive_score] + [
            user @ item_Nd[c] / 2 - float(candidates.log_q_C[c])
            for c in range(len(candidates))
            if not candidates.invalid_BC[b, c]
        ]
        losses.append(np.log(np.sum(np.exp(logits))) - positive_score)
    return float(np.mean(losses))


@pytest.mark.parametrize("candidates", [5, N])
def test_loss_is_the_likelihood_of_the_positive_among_candidates(candidates: int) -> None:
    config = SamplingConfig(candidates=candidates, popularity=0.5)
    source = TripleSource(DATA, config, 0, ModelTraits())
    source.start_epoch(0, 64)
    batch = source.batch(0, 16, 0, 1, CPU)
    random = np.random.default_rng(0)
    item_Md, user_Bd = random.normal(size=(len(batch.item_M), 4)), random.normal(size=(16, 4))
    loss = ranking_loss(
        torch.from_numpy(user_Bd), torch.from_numpy(item_Md), batch, RankingConfig(temperature=2.0)
    )
    assert loss.item() == pytest.approx(_log_likelihood(batch, item_Md, user_Bd), rel=1e-6)


def test_loss_of_a_sampled_softmax_estimates_that_of_the_catalogue() -> None:
    """The mean over many samples of half of the items; it would be off without the correction."""
    random = np.random.default_rng(1)
    lists = [sorted(random.choice(40, 3 + 20 * (u % 2), replace=False)) for u in range(40)]
    user_d, item_Nd = random.normal(size=(1, 3)), random.normal(size=(40, 3))
    triples = _triples([(-1, [0], 1)])

    index = SamplingIndex(jagged_lists(lists), np.zeros(sum(map(len, lists)), np.int64), 40)

    def loss(config: SamplingConfig, step: int) -> float:
        drawn = CandidateSampler(jagged_lists(lists), 40, config, 0).step((0, step))
        mask = invalid_negative_mask(triples, index, drawn.item_C)
        positive_score = float(user_d[0] @ item_Nd[1])
        logits = user_d @ item_Nd[drawn.item_C].T - drawn.log_q_C
        return float(np.log(np.exp(positive_score) + np.exp(logits)[~mask].sum()) - positive_score)

    assert set().union(*lists) == set(range(40))
    full = loss(SamplingConfig(), 0)
    few = SamplingConfig(candidates=20, popularity=1.0)
    assert np.mean([loss(few, step) for step in range(500)]) == pytest.approx(full, abs=0.1)
