"""Profiles of triples: subsampled to a random size and cut to a maximum length.

Shapes: B triples, S of them selected, C of these cut, V slots or values of profiles.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.jagged import Jagged, offsets_from_lengths
from visrec.sampling.index import Bools, Ints, SamplingIndex
from visrec.sampling.rejection import Random, random_below
from visrec.sampling.rows import Rows, SampledTriples

Uniforms = npt.NDArray[np.float64]

_SUBSET_ROWS = 2048  # rows whose subsets are drawn at a time: few enough for the cache


@dataclass(frozen=True)
class _Uncut(Rows):
    """Profiles before they are cut.

    Attributes:
        start_B: (B,) the position at which the profile begins.
        others_B: (B,) the number of its items, without the positive.
        hole_B: (B,) the index of the positive in the profile; its length if the positive is not in
            it.
        keeps_B: (B,) whether the positive is in the profile and stays in it.
    """

    start_B: Ints
    others_B: Ints
    hole_B: Ints
    keeps_B: Bools

    @property
    def length_B(self) -> Ints:
        """(B,) the number of items in the profile, if it is not cut."""
        return self.others_B + self.keeps_B


def _uncut_profiles(index: SamplingIndex, sampled: SampledTriples) -> _Uncut:
    start_B = index.profiles.offsets[sampled.profile_row_B]
    length_B, position_B = sampled.profile_length_B, sampled.position_B
    is_inside_B = (position_B >= 0) & (position_B < start_B + length_B)
    return _Uncut(
        start_B=start_B,
        others_B=length_B - is_inside_B,
        hole_B=np.where(is_inside_B, position_B - start_B, length_B),
        keeps_B=is_inside_B & sampled.keeps_positive_B,
    )


def cut_profiles(
    index: SamplingIndex,
    sampled: SampledTriples,
    rows: Ints,
    max_length: int,
    subsample: bool,
    random: Random,
) -> Jagged:
    """The profiles of some triples, as lists of items.

    Random numbers are drawn for all of `sampled`, whichever triples are selected, so a triple has
    the same profile on any worker.

    Args:
        index: the training data.
        sampled: B triples.
        rows: (S,) the triples whose profiles are returned.
        max_length: longer profiles are cut to a random subset of this size.
        subsample: first draw each profile's size uniformly from 1 to its length.
        random: the source of randomness.
    """
    uncut = _uncut_profiles(index, sampled)
    size_B = np.minimum(uncut.length_B, max_length)
    # A triple has one slot for each item of its cut profile. If the positive stays, it takes the
    # last slot.
    slots = Jagged(np.ones(size_B.sum(), bool), offsets_from_lengths(size_B))
    if subsample:
        slots = subsample_profiles(slots, uncut.length_B, uncut.keeps_B, random)
    is_cut_B = uncut.length_B > size_B
    uniform_offsets = offsets_from_lengths(np.where(is_cut_B, size_B - uncut.keeps_B, 0))
    uniform_V = random.random(uniform_offsets[-1] + max_length)
    if len(rows) < len(size_B):
        slots, uncut = slots.take(rows), uncut.take(rows)

    # Each used slot gets an index: that of an item other than the positive, plus the triple's first
    # slot.
    slot_start_S = slots.offsets[:-1]
    length_S = np.add.reduceat(slots.values, slot_start_S, dtype=np.int64)
    index_V = np.flatnonzero(slots.values)
    if (is_cut_S := is_cut_B[rows]).any():
        cut, size_C = uncut.take(np.flatnonzero(is_cut_S)), size_B[rows[is_cut_S]]
        start_C = uniform_offsets[rows[is_cut_S]]
        subsets = random_subsets(cut.others_B, size_C - cut.keeps_B, size_C, start_C, uniform_V)
        is_used_V = slots.values[np.repeat(is_cut_S, slots.lengths)]
        chosen_V = subsets.values + np.repeat(slot_start_S[is_cut_S], subsets.lengths)
        index_V[np.repeat(is_cut_S, length_S)] = chosen_V[is_used_V]

    # Indices become positions. An index at or above the positive's place grows by one, which skips
    # the positive; a profile that keeps the positive gets it in its last slot.
    offsets = offsets_from_lengths(length_S)
    hole_S = uncut.hole_B + slot_start_S
    position_V = index_V + (index_V >= np.repeat(hole_S, length_S))
    position_V[offsets[1:][uncut.keeps_B] - 1] = hole_S[uncut.keeps_B]
    position_V += np.repeat(uncut.start_B - slot_start_S, length_S)
    return Jagged(index.profiles.values[position_V], offsets)


def subsample_profiles(slots: Jagged, full_B: Ints, keeps_B: Bools, random: Random) -> Jagged:
    """Chooses the slots of each profile that are used when its size is drawn uniformly.

    One slot is always used. For the others a probability is drawn uniformly, once for each profile,
    and each of them is used with that probability. So every number of used slots is equally likely,
    and so are all subsets of one size. Probabilities are multiples of 1 / 65,536.

    Args:
        slots: B lists of one or more slots.
        full_B: (B,) the profile's length before it was cut to its slots. The size is drawn from 1
            to this length; a size above the number of slots uses all of them.
        keeps_B: (B,) whether the slot that is always used is the last one.
        random: the source of randomness.

    Returns:
        The slots, true where they are used.
    """
    max_threshold = 65_535
    size_B = slots.lengths
    threshold_B = random.integers(0, max_threshold, len(slots), np.uint16, endpoint=True)
    threshold_B[random_below(full_B, random) >= size_B] = max_threshold
    drawn_V = np.frombuffer(random.bytes(2 * len(slots.values)), np.uint16)
    used_V = drawn_V <= np.repeat(threshold_B, size_B)
    always = np.where(keeps_B, size_B - 1, random_below(size_B, random))
    used_V[slots.offsets[:-1] + always] = True
    return Jagged(used_V, slots.offsets)


def random_subsets(
    population_B: Ints, count_B: Ints, length_B: Ints, start_B: Ints, uniform_V: Uniforms
) -> Jagged:
    """For each row a uniform subset, without replacement, of 0, 1, ... population - 1.

    Robert Floyd's algorithm (Bentley & Floyd 1987, Communications of the ACM 30(9)), for many rows
    at once: for each j from population - count to population - 1, a number is drawn from 0 to j.
    It joins the subset; if it is in the subset already, j joins instead.

    Args:
        population_B: (B,) the size of the population.
        count_B: (B,) the size of the subset, at most the population's.
        length_B: (B,) the length of the row's list, `count_B` or more; the rest of it is 0.
        start_B: (B,) where the row's `count_B` random numbers begin.
        uniform_V: (V,) uniform from 0 to 1. Beyond each start there are at least as many as the
            largest subset needs.
    """
    offsets = offsets_from_lengths(length_B)
    values = np.zeros(offsets[-1], np.int32)
    # The largest subsets first, so that the rows of every step are a prefix. The narrowest integer
    # type sorts fastest.
    key_B = (-count_B).astype(np.min_scalar_type(-int(count_B.max(initial=1))))
    order = np.argsort(key_B, kind="stable")
    for rows in np.array_split(order, len(order) // _SUBSET_ROWS + 1):
        count_S = count_B[rows]
        step_W = np.arange(count_S.max(initial=0))[:, None]
        is_active_WS = step_W < count_S
        last_WS = (population_B[rows] - count_S + step_W).astype(np.int32)
        chosen_WS = (uniform_V[start_B[rows] + step_W] * (last_WS + 1)).astype(np.int32)
        for j, active in enumerate(is_active_WS.sum(axis=1)):
            is_repeat = (chosen_WS[:j, :active] == chosen_WS[j, :active]).any(axis=0)
            np.copyto(chosen_WS[j, :active], last_WS[j, :active], where=is_repeat)
        values[(offsets[rows] + step_W)[is_active_WS]] = chosen_WS[is_active_WS]
    return Jagged(values, offsets)
