"""Softmax candidates: the items that all positives of a step are compared with.

Candidates are either the positives of the step or items of the catalogue. Items of the catalogue
without training interactions are never candidates: a softmax could only push them down, and in a
catalogue of unique items they are the ones to recommend.

If at most `--sampling.candidates` items have training interactions, all of them are candidates of
every step. From more, items are drawn with replacement in proportion to (training count + 1) to a
power, and each is kept once. The probability Q that item i is a candidate of a step is then
1 - (1 - p_i)^draws. The softmax subtracts log Q from each score, so that an item that is drawn more
often is not pushed down more.

Shapes: N items, F items that can be candidates, C candidates, P positives of a step, B triples,
K of them with a user, U users, V values of lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged
from visrec.sampling.index import Bools, Ints, SamplingIndex
from visrec.sampling.triples import SamplingConfig, Triples

_CANDIDATE_STREAM = 1 << 33  # part of the seed, which no other random numbers of an epoch have


@dataclass(frozen=True)
class SampledCandidates:
    """The candidates of a step.

    Attributes:
        item_C: (C,) sorted items.
        log_q_C: (C,) float32, log Q of each; 0 if all items are candidates.
    """

    item_C: Ints
    log_q_C: npt.NDArray[np.float32]


class InBatchCandidates:
    """The positives of a step as its candidates.

    Q is computed as if every positive were drawn in proportion to its training count, which is true
    of the guideline random. An item without training interactions, which only other guidelines
    draw, counts once.

    Args:
        train: U lists of training items.
        num_items: N.
        config: how the positives are drawn.
    """

    def __init__(self, train: Jagged, num_items: int, config: SamplingConfig) -> None:
        # If the positive is taken out of its profile, another item must be left there.
        min_length = 1 if config.keep_positive_in_profile else 2
        is_drawn_U = train.lengths >= min_length
        positive_V = train.values[np.repeat(is_drawn_U, train.lengths)]
        count_N = np.maximum(np.bincount(positive_V, minlength=num_items), 1)
        self._chance_N = count_N / max(1, len(positive_V))

    def from_positives(self, positive_P: Ints) -> SampledCandidates:
        """The candidates of a step from its (P,) positives, all workers together."""
        item_C = np.unique(positive_P)
        return SampledCandidates(item_C, _log_q(self._chance_N[item_C], len(positive_P)))


def _log_q(chance_X: npt.NDArray[np.float64], draws: int) -> npt.NDArray[np.float32]:
    """(X,) the logarithm of 1 - (1 - p)^draws, for each chance p."""
    chance_X = np.minimum(chance_X, 1 - 1e-12)
    return np.asarray(np.log(-np.expm1(draws * np.log1p(-chance_X))), np.float32)


class CandidateSampler:
    """Draws the candidates of each step from the catalogue.

    Args:
        train: U lists of training items.
        num_items: N.
        config: how many candidates, and by which popularity.
        seed: the run's seed.
    """

    def __init__(self, train: Jagged, num_items: int, config: SamplingConfig, seed: int) -> None:
        count_N = np.bincount(train.values, minlength=num_items)
        self._item_F = np.flatnonzero(count_N > 0)
        self._seed, self._draws = seed, config.candidates
        self._takes_all = len(self._item_F) <= config.candidates
        weight_F = (count_N[self._item_F] + 1.0) ** config.popularity
        chance_F = weight_F / weight_F.sum()
        self._edge_F = np.cumsum(chance_F)
        self._log_q_F = np.zeros(len(self._item_F), np.float32)
        if not self._takes_all:
            self._log_q_F = _log_q(chance_F, self._draws)

    def step(self, key: Sequence[int]) -> SampledCandidates:
        """The candidates of a step, the same for every worker.

        Args:
            key: epoch and step.
        """
        if self._takes_all:
            return SampledCandidates(self._item_F, self._log_q_F)
        random = np.random.default_rng((self._seed, *key, _CANDIDATE_STREAM))
        drawn = np.searchsorted(self._edge_F, random.random(self._draws), side="right")
        chosen_C = np.unique(np.minimum(drawn, len(self._item_F) - 1))
        return SampledCandidates(self._item_F[chosen_C], self._log_q_F[chosen_C])


def invalid_negative_mask(triples: Triples, index: SamplingIndex, item_C: Ints) -> Bools:
    """(B, C) which candidates are not valid negatives of a triple.

    These are the positive, items that are near-identical to it, and the training items of the user;
    for an anonymous profile, the items in it.
    """
    mask_BC = np.zeros((len(triples.user_B), len(item_C)), bool)
    column_N = np.full(index.num_items, -1)
    column_N[item_C] = np.arange(len(item_C))

    def mask_items(mask_XC: Bools, row_V: Ints, item_V: Ints) -> None:
        column_V = column_N[item_V]
        mask_XC[row_V[column_V >= 0], column_V[column_V >= 0]] = True

    # Once for each user: a user with very many items may have many triples of a step.
    is_anonymous_B = triples.user_B < 0
    user_U, user_of_K = np.unique(triples.user_B[~is_anonymous_B], return_inverse=True)
    taken = index.train.take(user_U)
    mask_UC = np.zeros((len(user_U), len(item_C)), bool)
    mask_items(mask_UC, taken.row_ids, taken.values)
    mask_BC[~is_anonymous_B] = mask_UC[user_of_K]
    profiles = triples.profiles
    of_anonymous_V = is_anonymous_B[profiles.row_ids]
    mask_items(mask_BC, profiles.row_ids[of_anonymous_V], profiles.values[of_anonymous_V])
    near_identical = index.items_by_group.take(index.group_N[triples.positive_B])
    mask_items(mask_BC, near_identical.row_ids, near_identical.values)
    return mask_BC
