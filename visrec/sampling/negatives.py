"""Negatives: the rules by which the item that a user would not prefer is drawn.

A rule says who can be given a negative, exactly, and draws one for whom it can. None draws an item
of the profile's owner, nor one whose picture is near-identical to the positive's. The candidates of
a step, which are drawn elsewhere, are held to the same by `visrec.sampling.candidates.taken_mask`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visrec.jagged import offsets_of
from visrec.sampling.index import Bools, Ints, SamplingIndex, count_same_code, sorted_set

Random = np.random.Generator
# (owner_B, positive_B, place_B, random) -> negative_BK
DrawNegatives = Callable[[Ints, Ints, Ints, Random], Ints]

_OVERHEAD = 1000  # a round of proposals costs as much as so many proposals more
_MARGIN = 0.1  # by which the positive must be more like the profile's item than the negative


@dataclass(frozen=True)
class NegativeSampler:
    """How K negatives of a positive are drawn.

    Args:
        has_valid_negative_T: (T,) for whom it can: an owner with the item at a place of theirs as
            positive.
        has_valid_negative_O: (U + N,) the same with any positive that is not in the profile.
        draw: from owners, positives and the positives' places (-1: not in the profile) to (B, K)
            items; -1 for none.
    """

    has_valid_negative_T: Bools
    has_valid_negative_O: Bools
    draw: DrawNegatives


def draw_allowed(
    propose: Callable[[Ints], Ints],
    allowed: Callable[[Ints, Ints], Bools],
    kind_B: Ints,
    weight_N: npt.NDArray[np.floating],
    random: Random,
) -> Ints:
    """An allowed item for each of B rows, all of which must have one.

    Proposed until allowed, but not for longer than it takes to go through the catalogue for what is
    left: one allowed item of a million is found in bounded time.

    Args:
        propose: from rows to an item for each, drawn in proportion to `weight_N`.
        allowed: from rows and items to whether the row may have the item.
        kind_B: (B,) rows of one kind are allowed the same items.
        weight_N: of the items.
        random: that `propose` draws from.
    """
    n, spent = len(weight_N), 0
    row_S = np.arange(len(kind_B))
    item_B = propose(row_S)
    row_S = row_S[~allowed(row_S, item_B)]
    while len(row_S) and spent < n * len(sorted_set(kind_B[row_S])):
        spent += len(row_S) + _OVERHEAD
        item_S = propose(row_S)
        item_B[row_S] = item_S
        row_S = row_S[~allowed(row_S, item_S)]
    _, first, kind_S = np.unique(kind_B[row_S], return_index=True, return_inverse=True)
    for kind, row in enumerate(row_S[first]):
        upto_N = np.cumsum(weight_N * allowed(np.full(n, row), np.arange(n)))
        mine = row_S[kind_S == kind]
        item_B[mine] = np.searchsorted(upto_N, random.random(len(mine)) * upto_N[-1], side="right")
    return item_B


def random_below(count_B: Ints, random: Random) -> Ints:
    """(B,) uniform from 0 to below each count."""
    return (random.random(len(count_B)) * count_B).astype(np.int64)


def no_negatives(facts: SamplingIndex) -> NegativeSampler:
    """No negative is drawn here, and nobody needs one."""
    everyone = np.ones(len(facts.profiles), bool)
    return NegativeSampler(
        np.ones(len(facts.profiles.values), bool),
        everyone,
        lambda owner_B, *_: np.zeros((len(owner_B), 0), np.int64),
    )


def outside_profile(facts: SamplingIndex, popularity: float, count: int) -> NegativeSampler:
    """Any item outside the profile, in proportion to (its training count + 1) ** popularity.

    Args:
        facts: of the training data.
        popularity: 0 is uniform.
        count: K.
    """
    n = facts.num_items
    weight_N = (np.bincount(facts.train.values, minlength=n) + 1.0) ** popularity
    edge_N = np.cumsum(weight_N)

    def draw(owner_B: Ints, positive_B: Ints, place_B: Ints, random: Random) -> Ints:
        del place_B
        owner_S = np.repeat(owner_B, count)
        group_S = facts.group_N[np.repeat(positive_B, count)]

        def propose(rows: Ints) -> Ints:
            if popularity == 0:
                return np.asarray(random.integers(0, n, len(rows)))
            drawn = random.random(len(rows)) * edge_N[-1]
            return np.asarray(np.minimum(np.searchsorted(edge_N, drawn, side="right"), n - 1))

        def allowed(rows: Ints, items: Ints) -> Bools:
            other = facts.group_N[items] != group_S[rows]
            return np.asarray(other & ~facts.is_taken(owner_S[rows], items))

        kind_S = owner_S * n + group_S
        return draw_allowed(propose, allowed, kind_S, weight_N, random).reshape(-1, count)

    return NegativeSampler(facts.has_valid_negative_T, facts.has_valid_negative_O, draw)


def fine_grained(facts: SamplingIndex, own_cluster: float) -> NegativeSampler:
    """An item outside the profile, of the positive's own cluster or of one drawn uniformly.

    The own cluster is taken with the probability `own_cluster`, where it has an item that is
    allowed. Within a cluster the items are as likely as one another.
    """
    clusters, cluster_N = facts.by_cluster, facts.cluster_N
    cluster_T = cluster_N[facts.profiles.values]
    taken_T = count_same_code(facts.profile_row_T, cluster_T)
    own_open_T = clusters.lengths[cluster_T] > taken_T + facts.twins_T
    weight_N = 1.0 / clusters.lengths[cluster_N]

    def draw(owner_B: Ints, positive_B: Ints, place_B: Ints, random: Random) -> Ints:
        own_B = (random.random(len(owner_B)) < own_cluster) & own_open_T[place_B]
        cluster_B, group_B = cluster_N[positive_B], facts.group_N[positive_B]

        def propose(rows: Ints) -> Ints:
            return of_cluster(facts, cluster_B[rows], own_B[rows], random)

        def allowed(rows: Ints, items: Ints) -> Bools:
            fits = ~own_B[rows] | (cluster_N[items] == cluster_B[rows])
            fits &= facts.group_N[items] != group_B[rows]
            return np.asarray(fits & ~facts.is_taken(owner_B[rows], items))

        kind_B = place_B * 2 + own_B
        return draw_allowed(propose, allowed, kind_B, weight_N, random)[:, None]

    return NegativeSampler(facts.has_valid_negative_T, facts.has_valid_negative_O, draw)


def of_cluster(facts: SamplingIndex, cluster_B: Ints, own_B: Bools, random: Random) -> Ints:
    """(B,) any item of the cluster where it is `own`, else of a cluster drawn uniformly."""
    clusters = facts.by_cluster
    drawn_B = np.where(own_B, cluster_B, random.integers(0, len(clusters), len(own_B)))
    within_B = random_below(clusters.lengths[drawn_B], random)
    return np.asarray(clusters.values[clusters.offsets[drawn_B] + within_B])


def unrelated(facts: SamplingIndex) -> NegativeSampler:
    """An item of none of the user's clusters and of none of the user's artists, all as likely.

    The r-th item outside a user's clusters is found in the items in order of their clusters, by
    skipping those of the user's clusters that begin before it: a user who has nearly all clusters
    takes no longer than another.
    """
    n, clusters, mine = facts.num_items, facts.by_cluster, facts.clusters_of
    before_P = offsets_of(clusters.lengths[mine.values])
    outside_U = n - np.diff(before_P[mine.offsets])
    skipped_P = before_P[:-1] - np.repeat(before_P[mine.offsets[:-1]], mine.lengths)
    key_P = mine.owners * (n + 1) + clusters.offsets[mine.values] - skipped_P
    spare_U = outside_U
    if facts.artist_N is not None:
        theirs = facts.artists_of
        blocked_A = facts.by_artist.lengths[theirs.values] - facts.inside_A
        spare_U = outside_U - np.diff(offsets_of(blocked_A)[theirs.offsets])
    has_valid_negative_O = np.append(spare_U > 0, np.zeros(n, bool))

    def draw(owner_B: Ints, positive_B: Ints, place_B: Ints, random: Random) -> Ints:
        del positive_B, place_B  # in one of the user's clusters, so no twin of what is drawn

        def propose(rows: Ints) -> Ints:
            user_S = owner_B[rows]
            rank_S = random_below(outside_U[user_S], random)
            last_S = np.searchsorted(key_P, user_S * (n + 1) + rank_S, side="right")
            skip_S = before_P[last_S] - before_P[mine.offsets[user_S]]
            return np.asarray(clusters.values[rank_S + skip_S])

        def allowed(rows: Ints, items: Ints) -> Bools:
            user_S = owner_B[rows]
            ours = facts.in_clusters_of(user_S, facts.cluster_N[items])
            if facts.artist_N is not None:
                ours |= facts.artist_place(user_S, facts.artist_N[items]) >= 0
            return np.asarray(~ours)

        return draw_allowed(propose, allowed, owner_B, np.ones(n), random)[:, None]

    return NegativeSampler(has_valid_negative_O[facts.profile_row_T], has_valid_negative_O, draw)


def visually_consistent(facts: SamplingIndex, own_cluster: float) -> NegativeSampler:
    """A fine-grained item of another artist than the one item of the profile, if pictures agree.

    They do if the positive is in that item's cluster and the negative is not, or if the positive
    looks more like it by a margin. An item is drawn once; where the pictures disagree there is
    none, and who can be given one is seen by drawing.
    """
    assert facts.clusters is not None
    look_NP, cluster_N, group_N = facts.clusters.look_NP, facts.cluster_N, facts.group_N

    def draw(owner_B: Ints, positive_B: Ints, place_B: Ints, random: Random) -> Ints:
        del place_B
        item_B = owner_B - facts.num_users
        cluster_B = cluster_N[item_B]
        own_B = random.random(len(owner_B)) < own_cluster
        negative_B = of_cluster(facts, cluster_N[positive_B], own_B, random)
        good_B = group_N[negative_B] != group_N[positive_B]
        if facts.artist_N is not None:
            good_B &= facts.artist_N[negative_B] != facts.artist_N[item_B]
        apart_B = (cluster_N[positive_B] == cluster_B) & (cluster_N[negative_B] != cluster_B)
        for rows in np.array_split(np.flatnonzero(good_B & ~apart_B), len(owner_B) // 1024 + 1):
            nearer_SP = look_NP[positive_B[rows]] - look_NP[negative_B[rows]]
            good_B[rows] = np.einsum("sp,sp->s", look_NP[item_B[rows]], nearer_SP) > _MARGIN
        return np.where(good_B, negative_B, -1)[:, None]

    return NegativeSampler(facts.has_valid_negative_T, np.ones(len(facts.profiles), bool), draw)
