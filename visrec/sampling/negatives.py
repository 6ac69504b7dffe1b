"""Negative samplers: each draws an item that the user is assumed to like less than the positive.

A negative is never an item of the profile and never near-identical to the positive. A sampler says
which positives have a valid negative, and may be asked for those only. A *fine-grained* negative is
likely to be of the positive's own visual cluster, where only details tell the two apart.
`visrec.sampling.triples.make_negative_sampler` chooses the sampler of a guideline.

The softmax candidates of a step are drawn in `visrec.sampling.candidates`, whose
`invalid_negative_mask` applies the same two conditions to them.

Shapes: U users, N items, O = U + N profiles, T positions (see `visrec.sampling.index`),
B positives, K negatives of a positive (0 or 1), M (user, cluster) pairs.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from visrec.jagged import offsets_from_lengths
from visrec.sampling.index import Bools, Ints, SamplingIndex, count_same_code
from visrec.sampling.rejection import Random, draw_accepted, random_below
from visrec.sampling.rows import Rows

# By how much the cosine of the positive and the profile's item must exceed that of the negative.
_SIMILARITY_MARGIN = 0.1


@dataclass(frozen=True)
class Positives(Rows):
    """The positives that negatives are drawn for.

    Attributes:
        profile_row_B: (B,) the profiles.
        positive_B: (B,) the positives, items.
        position_B: (B,) the position of the positive in the profile; -1 if it is not in it.
    """

    profile_row_B: Ints
    positive_B: Ints
    position_B: Ints


class NegativeSampler(ABC):
    """Draws K negatives for each positive.

    Attributes:
        has_valid_negative_T: (T,) whether there is a valid negative if the item at this position is
            the positive.
        has_valid_negative_O: (O,) whether there is a valid negative for this profile, whichever
            item outside it is the positive.
    """

    def __init__(
        self, index: SamplingIndex, has_valid_negative_T: Bools, has_valid_negative_O: Bools
    ) -> None:
        self._index = index
        self.has_valid_negative_T = has_valid_negative_T
        self.has_valid_negative_O = has_valid_negative_O

    @abstractmethod
    def draw(self, positives: Positives, random: Random) -> Ints:
        """(B, K) items; -1 where the sampler found no negative."""


class NoNegatives(NegativeSampler):
    """Draws no negatives, because the candidates of the step are the negatives."""

    def __init__(self, index: SamplingIndex) -> None:
        profiles = index.profiles
        super().__init__(index, np.ones(len(profiles.values), bool), np.ones(len(profiles), bool))

    def draw(self, positives: Positives, random: Random) -> Ints:
        del random
        return np.zeros((len(positives.positive_B), 0), np.int64)


class OutsideProfile(NegativeSampler):
    """Draws any item outside the profile, in proportion to (training count + 1) ** popularity.

    Args:
        index: the training data.
        popularity: 0 is uniform.
    """

    def __init__(self, index: SamplingIndex, popularity: float) -> None:
        super().__init__(index, index.has_valid_negative_T, index.has_valid_negative_O)
        count_N = np.bincount(index.train.values, minlength=index.num_items)
        self.weight_N = (count_N + 1.0) ** popularity
        self._is_uniform = popularity == 0
        self._edge_N = np.cumsum(self.weight_N)

    def draw(self, positives: Positives, random: Random) -> Ints:
        group_B = self._index.group_N[positives.positive_B]
        key_B = positives.profile_row_B * self._index.num_items + group_B
        return draw_accepted(self, positives, key_B, random)[:, None]

    def propose(self, rows: Positives, random: Random) -> Ints:
        size = len(rows.positive_B)
        n = self._index.num_items
        if self._is_uniform:
            return np.asarray(random.integers(0, n, size))
        drawn = random.random(size) * self._edge_N[-1]
        return np.asarray(np.minimum(np.searchsorted(self._edge_N, drawn, side="right"), n - 1))

    def accepts(self, rows: Positives, item_B: Ints) -> Bools:
        group_N = self._index.group_N
        differs_B = group_N[item_B] != group_N[rows.positive_B]
        return np.asarray(differs_B & ~self._index.in_profile(rows.profile_row_B, item_B))


@dataclass(frozen=True)
class _FineGrainedRows(Positives):
    """Positives, and for each whether its negative must be of the positive's cluster."""

    same_cluster_B: Bools


class FineGrained(NegativeSampler):
    """Draws a fine-grained negative: a cluster first, then an item of it outside the profile.

    With the probability `own_cluster` it is the positive's cluster, if that has a valid negative.
    Otherwise it is a uniformly drawn one, which may be the same. So, with C clusters, about
    own_cluster + (1 - own_cluster) / C of the negatives are of the positive's. Items of one cluster
    are equally likely.
    """

    def __init__(self, index: SamplingIndex, own_cluster: float) -> None:
        super().__init__(index, index.has_valid_negative_T, index.has_valid_negative_O)
        self._own_cluster = own_cluster
        cluster_size_C = index.items_by_cluster.lengths
        cluster_T = index.cluster_N[index.profiles.values]
        invalid_T = count_same_code(index.profile_row_T, cluster_T) + index.outside_near_identical_T
        self._has_valid_in_cluster_T = cluster_size_C[cluster_T] > invalid_T
        self.weight_N = 1.0 / cluster_size_C[index.cluster_N]

    def draw(self, positives: Positives, random: Random) -> Ints:
        position_B = positives.position_B
        same_cluster_B = random.random(len(position_B)) < self._own_cluster
        same_cluster_B &= self._has_valid_in_cluster_T[position_B]
        rows = _FineGrainedRows(
            positives.profile_row_B, positives.positive_B, position_B, same_cluster_B
        )
        return draw_accepted(self, rows, position_B * 2 + same_cluster_B, random)[:, None]

    def propose(self, rows: _FineGrainedRows, random: Random) -> Ints:
        return _draw_from_cluster(self._index, rows.positive_B, rows.same_cluster_B, random)

    def accepts(self, rows: _FineGrainedRows, item_B: Ints) -> Bools:
        cluster_N, group_N = self._index.cluster_N, self._index.group_N
        accepted_B = ~rows.same_cluster_B | (cluster_N[item_B] == cluster_N[rows.positive_B])
        accepted_B &= group_N[item_B] != group_N[rows.positive_B]
        return np.asarray(accepted_B & ~self._index.in_profile(rows.profile_row_B, item_B))


class VisuallyConsistent(NegativeSampler):
    """For one-item profiles: draws a fine-grained negative by another artist, or none.

    The negative counts only if the pictures confirm that the positive is nearer to the profile's
    item p: either the positive is in the cluster of p and the negative is not, or the positive is
    more similar to p than the negative is, by `_SIMILARITY_MARGIN`.

    One item is drawn for each positive; where it does not count, the result is -1. Which profiles
    have a valid negative is not known without drawing, so `has_valid_negative_O` is true for all.
    """

    def __init__(self, index: SamplingIndex, own_cluster: float) -> None:
        super().__init__(index, index.has_valid_negative_T, np.ones(len(index.profiles), bool))
        assert index.clusters is not None
        self._visual_NP = index.clusters.visual_NP
        self._own_cluster = own_cluster

    def draw(self, positives: Positives, random: Random) -> Ints:
        cluster_N, group_N = self._index.cluster_N, self._index.group_N
        item_B = positives.profile_row_B - self._index.num_users
        positive_B = positives.positive_B
        same_cluster_B = random.random(len(item_B)) < self._own_cluster
        negative_B = _draw_from_cluster(self._index, positive_B, same_cluster_B, random)
        valid_B = group_N[negative_B] != group_N[positive_B]
        if self._index.artist_N is not None:
            valid_B &= self._index.artist_N[negative_B] != self._index.artist_N[item_B]
        separated_B = cluster_N[positive_B] == cluster_N[item_B]
        separated_B &= cluster_N[negative_B] != cluster_N[item_B]
        undecided = np.flatnonzero(valid_B & ~separated_B)
        for rows in np.array_split(undecided, len(item_B) // 1024 + 1):
            difference_SP = self._visual_NP[positive_B[rows]] - self._visual_NP[negative_B[rows]]
            margin_S = np.einsum("sp,sp->s", self._visual_NP[item_B[rows]], difference_SP)
            valid_B[rows] = margin_S > _SIMILARITY_MARGIN
        return np.where(valid_B, negative_B, -1)[:, None]


def _draw_from_cluster(
    index: SamplingIndex, item_B: Ints, same_cluster_B: Bools, random: Random
) -> Ints:
    """(B,) a uniformly drawn item, of the given item's cluster or of a uniformly drawn cluster."""
    clusters = index.items_by_cluster
    random_B = random.integers(0, len(clusters), len(item_B))
    cluster_B = np.where(same_cluster_B, index.cluster_N[item_B], random_B)
    within_B = random_below(clusters.lengths[cluster_B], random)
    return np.asarray(clusters.values[clusters.offsets[cluster_B] + within_B])


class Unrelated(NegativeSampler):
    """Draws an item of none of the user's clusters and none of the user's artists, uniformly.

    Items outside the user's clusters are proposed without rejection. All items are in the order of
    their clusters. An example: the clusters a, a, b, c of four items, and a user who has cluster b.
    The items outside are at positions 0, 1 and 3. Item r = 2 of them is at 3: its number plus the
    size of the user's clusters before it. These sums are stored, and a binary search finds the
    right one. So a user who has nearly all clusters costs no more than any other user. Proposed
    items of the user's artists are rejected.

    The negative cannot be near-identical to the positive, which is in one of the user's clusters,
    because near-identical items share a cluster.
    """

    def __init__(self, index: SamplingIndex) -> None:
        clusters, user_clusters = index.items_by_cluster, index.user_clusters
        n = index.num_items
        self.weight_N = np.ones(n)
        self._skipped_M = offsets_from_lengths(clusters.lengths[user_clusters.values])
        self._first_U = user_clusters.offsets
        self._outside_U = n - np.diff(self._skipped_M[self._first_U])
        skipped_before_M = self._skipped_M[:-1] - np.repeat(
            self._skipped_M[self._first_U[:-1]], user_clusters.lengths
        )
        rank_M = clusters.offsets[user_clusters.values] - skipped_before_M
        self._key_M = user_clusters.row_ids * (n + 1) + rank_M
        valid_U = self._outside_U
        if index.artist_N is not None:
            artists = index.user_artists
            blocked_A = index.items_by_artist.lengths[artists.values] - index.in_cluster_count_A
            valid_U = valid_U - np.diff(offsets_from_lengths(blocked_A)[artists.offsets])
        has_valid_negative_O = np.append(valid_U > 0, np.zeros(n, bool))
        super().__init__(index, has_valid_negative_O[index.profile_row_T], has_valid_negative_O)

    def draw(self, positives: Positives, random: Random) -> Ints:
        return draw_accepted(self, positives, positives.profile_row_B, random)[:, None]

    def propose(self, rows: Positives, random: Random) -> Ints:
        user_B = rows.profile_row_B
        rank_B = random_below(self._outside_U[user_B], random)
        key_B = user_B * (self._index.num_items + 1) + rank_B
        last_B = np.searchsorted(self._key_M, key_B, side="right")
        skipped_B = self._skipped_M[last_B] - self._skipped_M[self._first_U[user_B]]
        return np.asarray(self._index.items_by_cluster.values[rank_B + skipped_B])

    def accepts(self, rows: Positives, item_B: Ints) -> Bools:
        user_B = rows.profile_row_B
        related_B = self._index.user_has_cluster(user_B, self._index.cluster_N[item_B])
        if self._index.artist_N is not None:
            artist_B = self._index.artist_N[item_B]
            related_B |= self._index.user_artist_index(user_B, artist_B) >= 0
        return np.asarray(~related_B)
