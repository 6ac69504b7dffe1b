"""Candidates: the items that stand against all positives of a step.

Either the step's own positives, or of the catalogue: all of it where it fits; otherwise as many as
are asked for, drawn with replacement in proportion to (training count + 1) to a power, each kept
once. Then Q, the chance that a step has item i, is 1 - (1 - p_i)^draws, and the softmax takes log Q
off each score, so that an item that is drawn more often is not pushed down more.

Items that nobody took in training are left out unless asked for: a softmax can only push them down,
and where items are one of a kind they are the very ones to recommend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged
from visrec.sampling.index import SamplingIndex
from visrec.sampling.triples import SamplingConfig, Triples

_CANDIDATES = 1 << 33  # a number of its own among the seeds of an epoch


@dataclass(frozen=True)
class SampledCandidates:
    """The candidates of a step.

    Args:
        item_C: (C,) sorted items.
        log_q_C: (C,) float32, the logarithm of each one's chance to be among them; 0 where all
            are.
    """

    item_C: npt.NDArray[np.int64]
    log_q_C: npt.NDArray[np.float32]


class InBatch:
    """The positives of a step as its candidates.

    A positive is drawn in proportion to its training count, as the guideline random draws it; what
    nobody took, which other guidelines draw, counts as taken once.

    Args:
        train: U lists of training items.
        num_items: N.
        config: how the positives are drawn.
    """

    def __init__(self, train: Jagged, num_items: int, config: SamplingConfig) -> None:
        # A positive that leaves the profile is one of two items or more.
        gives_U = train.lengths > (0 if config.keep_positive_in_profile else 1)
        given_R = train.values[np.repeat(gives_U, train.lengths)]
        count_N = np.maximum(np.bincount(given_R, minlength=num_items), 1)
        self._chance_N = count_N / max(1, len(given_R))

    def of(self, positive_P: npt.NDArray[np.int64]) -> SampledCandidates:
        """The candidates of a step from its (P,) positives, all workers together."""
        item_C = np.unique(positive_P)
        return SampledCandidates(item_C, _log_q(self._chance_N[item_C], len(positive_P)))


def _log_q(chance_X: npt.NDArray[np.float64], draws: int) -> npt.NDArray[np.float32]:
    """(X,) logarithm of the chance to be among so many draws: 1 - (1 - p)^draws."""
    chance_X = np.minimum(chance_X, 1 - 1e-12)
    return np.asarray(np.log(-np.expm1(draws * np.log1p(-chance_X))), np.float32)


class CandidateSampler:
    """Draws the candidates of each step.

    Args:
        train: U lists of training items.
        num_items: N.
        config: how many, and by which popularity.
        seed: the run's seed.
    """

    def __init__(self, train: Jagged, num_items: int, config: SamplingConfig, seed: int) -> None:
        count_N = np.bincount(train.values, minlength=num_items)
        eligible_N = np.ones(num_items, bool) if config.unseen_candidates else count_N > 0
        self._from_F = np.flatnonzero(eligible_N)
        self._seed, self._draws = seed, config.candidates
        self._log_q_F = np.zeros(len(self._from_F), np.float32)
        self._whole = len(self._from_F) <= config.candidates
        weight_F = (count_N[self._from_F] + 1.0) ** config.popularity
        chance_F = weight_F / weight_F.sum()
        self._upto_F = np.cumsum(chance_F)
        if not self._whole:
            self._log_q_F = _log_q(chance_F, self._draws)

    def step(self, key: Sequence[int]) -> SampledCandidates:
        """The candidates of a step, the same for every worker.

        Args:
            key: epoch and step.
        """
        if self._whole:
            return SampledCandidates(self._from_F, self._log_q_F)
        random = np.random.default_rng((self._seed, *key, _CANDIDATES))
        place = np.searchsorted(self._upto_F, random.random(self._draws), side="right")
        place_C = np.unique(np.minimum(place, len(self._from_F) - 1))
        return SampledCandidates(self._from_F[place_C], self._log_q_F[place_C])


def taken_mask(
    triples: Triples, facts: SamplingIndex, item_C: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """(B, C) the candidates that are no negatives of an example.

    These are its positive, what is near-identical to it, and what its user took in training; of a
    profile that is nobody's, what is in it.
    """
    train = facts.train
    theirs, nobody_B = train.take(np.maximum(triples.user_B, 0)), triples.user_B < 0
    mask_BC = np.zeros((len(nobody_B), len(item_C)), bool)
    column_N = np.full(facts.num_items, -1)
    column_N[item_C] = np.arange(len(item_C))

    def mark(owner_V: npt.NDArray[np.int64], item_V: npt.NDArray[np.int64]) -> None:
        column_V = column_N[item_V]
        mask_BC[owner_V[column_V >= 0], column_V[column_V >= 0]] = True

    known_V, alone_V = ~nobody_B[theirs.owners], nobody_B[triples.profiles.owners]
    mark(theirs.owners[known_V], theirs.values[known_V])
    mark(triples.profiles.owners[alone_V], triples.profiles.values[alone_V])
    alike = facts.by_group.take(facts.group_N[triples.positive_B])
    mark(alike.owners, alike.values)
    return mask_BC
