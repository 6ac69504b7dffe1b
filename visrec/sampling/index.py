"""What triples are drawn from: training interactions, visual clusters, artists, and their counts.

A profile has an *owner*: owners 0 to U - 1 are the users, with their training items in time order,
and owner U + n is the item n alone, the only one in its profile. All profiles lie behind one
another in one array, and a *place* is a place in it.

Nothing here knows of a held-out row: whatever is said of a user is said by training items alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visrec.errors import InputError
from visrec.features.clusters import Clusters
from visrec.jagged import Jagged, offsets_of, positions

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class SamplingIndex:
    """What the guidelines read, and what follows from it, computed when first asked for.

    Args:
        train: U lists of training items in time order, no item twice in one list.
        basket_R: (R,) the basket of each of them; numbers rise along a list.
        num_items: N.
        clusters: of the N items; None where no guideline asks for them.
        artist_N: (N,) codes, -1 for none; None where no item has an artist.
        alike_N: (N,) items of one number are near-identical, where there are no clusters to say so;
            None where each item is like no other.
    """

    train: Jagged
    basket_R: Ints
    num_items: int
    clusters: Clusters | None = None
    artist_N: Ints | None = None
    alike_N: Ints | None = None

    # Profiles and what is in them.

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.train)

    @cached_property
    def profiles(self) -> Jagged:
        """The U + N profiles: each user's items, then each item alone."""
        values = np.concatenate([self.train.values, np.arange(self.num_items)])
        singles = self.train.offsets[-1] + np.arange(1, self.num_items + 1)
        return Jagged(values.astype(np.int32), np.concatenate([self.train.offsets, singles]))

    @cached_property
    def profile_row_T(self) -> Ints:
        """(T,) the owner of each of the T = R + N places."""
        return self.profiles.owners

    @cached_property
    def count_O(self) -> Ints:
        """(U + N,) items in each profile."""
        return np.asarray(self.profiles.lengths)

    def is_taken(self, owner_B: Ints, item_B: Ints) -> Bools:
        """(B,) whether the item is in the owner's profile; fastest where owners are sorted."""
        key_B = owner_B * self.num_items + item_B
        place_B = np.minimum(np.searchsorted(self._taken_T, key_B), len(self._taken_T) - 1)
        return np.asarray(self._taken_T[place_B] == key_B)

    @cached_property
    def _taken_T(self) -> Ints:
        return np.sort(self.profile_row_T * self.num_items + self.profiles.values)

    @cached_property
    def basket_bounds(self) -> tuple[Ints, Ints]:
        """(R,) and (R,): the place at which the basket of each training row begins and ends."""
        rows = len(self.basket_R)
        starts_R = np.ones(rows, bool)
        starts_R[1:] = np.diff(self.basket_R) != 0
        starts_R[self.train.offsets[:-1][self.train.lengths > 0]] = True
        start_K = np.flatnonzero(starts_R)
        basket_R = np.cumsum(starts_R) - 1
        return start_K[basket_R], np.append(start_K[1:], rows)[basket_R]

    # Near-identical pictures.

    @cached_property
    def group_N(self) -> Ints:
        """(N,) items of one group are near-identical."""
        if self.clusters is not None:
            return self.clusters.group_N.astype(np.int64)
        return np.arange(self.num_items) if self.alike_N is None else self.alike_N

    @cached_property
    def by_group(self) -> Jagged:
        """The items of each group."""
        return positions_by_code(self.group_N)

    @cached_property
    def twins_T(self) -> Ints:
        """(T,) items outside the owner's profile that are near-identical to the item at a place."""
        group_T = self.group_N[self.profiles.values]
        size_G = np.bincount(self.group_N)
        return np.asarray(size_G[group_T] - count_same_code(self.profile_row_T, group_T))

    @cached_property
    def has_valid_negative_T(self) -> Bools:
        """(T,) whether an item is outside the profile and not a twin of the item at the place."""
        return np.asarray(self.count_O[self.profile_row_T] + self.twins_T < self.num_items)

    @cached_property
    def has_valid_negative_O(self) -> Bools:
        """(U + N,) whether more items are outside the profile than any one item has twins."""
        return np.asarray(self.count_O + np.bincount(self.group_N).max() < self.num_items)

    # Clusters.

    @cached_property
    def cluster_N(self) -> Ints:
        """(N,) the cluster of each item.

        Raises:
            InputError: there are none.
        """
        if self.clusters is None:
            raise InputError(
                "The guidelines of --sampling.guidelines need visual clusters; expected the "
                "training data with them, and found it without."
            )
        return self.clusters.cluster_N.astype(np.int64)

    @cached_property
    def by_cluster(self) -> Jagged:
        """The items of each of the C clusters."""
        return positions_by_code(self.cluster_N)

    @cached_property
    def clusters_of(self) -> Jagged:
        """The distinct clusters of each user, sorted."""
        rows = len(self.basket_R)
        cluster_R = self.cluster_N[self.train.values]
        return distinct(self.profile_row_T[:rows], cluster_R, self.num_users, len(self.by_cluster))

    @cached_property
    def _member_UX(self) -> npt.NDArray[np.uint8]:
        """(U, C / 8) a bit for each cluster of each user."""
        width = -(-len(self.by_cluster) // 8)
        member_UX = np.zeros((self.num_users, width), np.uint8)
        cluster_P = self.clusters_of.values
        bit_P = np.left_shift(1, cluster_P & 7).astype(np.uint8)
        np.bitwise_or.at(member_UX, (self.clusters_of.owners, cluster_P >> 3), bit_P)
        return member_UX

    def in_clusters_of(self, user_B: Ints, cluster_B: Ints) -> Bools:
        """(B,) whether the cluster is one of the user's."""
        byte_B = self._member_UX[user_B, cluster_B >> 3]
        return np.asarray((byte_B >> (cluster_B & 7).astype(np.uint8)) & 1, bool)

    # Artists. The item of no artist is in no list and is nobody's.

    @cached_property
    def by_artist(self) -> Jagged:
        """The items of each artist."""
        assert self.artist_N is not None
        return positions_by_code(self.artist_N)

    @cached_property
    def artists_of(self) -> Jagged:
        """The distinct artists of each user, sorted."""
        assert self.artist_N is not None
        artist_R = self.artist_N[self.train.values]
        owner_R = self.profile_row_T[: len(artist_R)]
        known_R = artist_R >= 0
        return distinct(owner_R[known_R], artist_R[known_R], self.num_users, len(self.by_artist))

    @cached_property
    def inside_A(self) -> Ints:
        """For each of `artists_of`: how many of the artist's items are in the user's clusters."""
        assert self.artist_N is not None
        count = len(self.by_cluster)
        known_N = self.artist_N >= 0
        key_E, size_E = np.unique(
            self.artist_N[known_N] * count + self.cluster_N[known_N], return_counts=True
        )
        entries = Jagged.group(key_E // count, key_E % count, len(self.by_artist))
        user_A, artist_A = self.artists_of.owners, self.artists_of.values
        inside_A = np.zeros(len(artist_A), np.int64)
        for part in _parts(entries.lengths[artist_A], _PAIRS_AT_ONCE):
            offsets = offsets_of(entries.lengths[artist_A[part]])
            place_V = positions(entries.offsets[artist_A[part]], offsets)
            user_V = np.repeat(user_A[part], np.diff(offsets))
            mine_V = size_E[place_V] * self.in_clusters_of(user_V, entries.values[place_V])
            inside_A[part] = np.diff(offsets_of(mine_V)[offsets])
        return inside_A

    def artist_place(self, user_B: Ints, artist_B: Ints) -> Ints:
        """(B,) the place of a user's artist among `artists_of`, -1 where it is none of theirs."""
        key_B = user_B * len(self.by_artist) + artist_B
        place_B = np.minimum(np.searchsorted(self._artist_keys, key_B), len(self._artist_keys) - 1)
        found_B = (self._artist_keys[place_B] == key_B) & (artist_B >= 0)
        return np.where(found_B, place_B, -1)

    @cached_property
    def _artist_keys(self) -> Ints:
        keys = self.artists_of.owners * len(self.by_artist) + self.artists_of.values
        return np.append(keys, np.iinfo(np.int64).max)  # never empty


def count_same_code(profile_row_T: Ints, code_T: Ints) -> Ints:
    """(T,) how many places of the same owner have the same code."""
    key_T = profile_row_T * (int(code_T.max(initial=0)) + 1) + code_T
    _, inverse_T, count = np.unique(key_T, return_inverse=True, return_counts=True)
    return np.asarray(count[inverse_T])


def positions_by_code(code_N: Ints) -> Jagged:
    """The places of each code from 0 on; -1 is in no list."""
    order = np.argsort(code_N, kind="stable")[np.count_nonzero(code_N < 0) :]
    return Jagged.group(code_N[order], order, int(code_N.max(initial=-1)) + 1)


def distinct(owner_R: Ints, code_R: Ints, owners: int, codes: int) -> Jagged:
    """The distinct codes of each owner, sorted."""
    key = sorted_set(owner_R * codes + code_R)
    return Jagged.group(key // max(codes, 1), key % max(codes, 1), owners)


def sorted_set(values: Ints) -> Ints:
    """The distinct values, 0 or more, sorted: `np.unique` hashes, and takes many times as long."""
    ordered = np.sort(values)
    return np.asarray(ordered[np.diff(ordered, prepend=-1) != 0])


def _parts(length_A: Ints, most: int) -> Iterator[slice]:
    """Slices of rows that hold `most` between them, or a little more."""
    ends = np.cumsum(length_A)
    start = 0
    while start < len(length_A):
        before = ends[start - 1] if start else 0
        stop = int(np.searchsorted(ends, before + most)) + 1
        yield slice(start, stop)
        start = stop
