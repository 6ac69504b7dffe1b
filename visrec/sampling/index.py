"""What triples are drawn from: profiles, visual clusters, artists, and their sizes.

A profile is a list of items. Profile rows 0 to U - 1 are the users with their training items in
time order; profile row U + n holds the item n alone. All profiles are stored one after another in
one array, and a *position* is an index into that array.

Only training items are in here: nothing depends on a held-out item.

Shapes: U users, N items, O = U + N profiles, R training items of all users, T = R + N positions,
C clusters, A pairs of a user and an artist in the user's profile, B any batch.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visrec.errors import InputError
from visrec.features.clusters import Clusters
from visrec.jagged import Jagged, chunk_rows, concat_ranges, offsets_from_lengths

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_PAIRS_AT_ONCE = 4_000_000  # bounds the memory of `SamplingIndex.in_cluster_count_A`


@dataclass(frozen=True)
class SamplingIndex:
    """The data that guidelines and negative samplers read. Derived arrays are cached.

    Attributes:
        train: U lists of training items in time order, without repeats in a list.
        basket_R: (R,) the basket number of each training item; it rises along a list.
        num_items: N.
        clusters: (N,) the clusters of the items; None if no guideline needs them.
        artist_N: (N,) artist codes, -1 for none; None if no item has an artist.
        near_identical_N: (N,) items with the same number have near-identical pictures. Ignored if
            `clusters` is given, which has its own groups. None: no two pictures are near-identical.
    """

    train: Jagged
    basket_R: Ints
    num_items: int
    clusters: Clusters | None = None
    artist_N: Ints | None = None
    near_identical_N: Ints | None = None

    # Profiles.

    @property
    def num_users(self) -> int:
        """The number of users (U)."""
        return len(self.train)

    @cached_property
    def profiles(self) -> Jagged:
        """The O profiles: each user's items, then each item alone."""
        values = np.concatenate([self.train.values, np.arange(self.num_items)])
        ends = self.train.offsets[-1] + np.arange(1, self.num_items + 1)
        return Jagged(values.astype(np.int32), np.concatenate([self.train.offsets, ends]))

    @cached_property
    def profile_row_T(self) -> Ints:
        """(T,) the profile row of each position."""
        return self.profiles.row_ids

    @cached_property
    def profile_length_O(self) -> Ints:
        """(O,) the number of items in each profile."""
        return np.asarray(self.profiles.lengths)

    def in_profile(self, profile_row_B: Ints, item_B: Ints) -> Bools:
        """(B,) whether the item is in the profile; fastest if the rows are sorted."""
        key_B = profile_row_B * self.num_items + item_B
        keys = self._profile_item_keys
        return np.asarray(keys[np.minimum(np.searchsorted(keys, key_B), len(keys) - 1)] == key_B)

    @cached_property
    def _profile_item_keys(self) -> Ints:
        """(T,) a sorted number for each pair of a profile and an item in it."""
        return np.sort(self.profile_row_T * self.num_items + self.profiles.values)

    @cached_property
    def basket_range_R(self) -> tuple[Ints, Ints]:
        """(R,) and (R,): the positions at which each training item's basket begins and ends."""
        rows = len(self.basket_R)
        is_first_R = np.ones(rows, bool)
        is_first_R[1:] = np.diff(self.basket_R) != 0
        is_first_R[self.train.offsets[:-1][self.train.lengths > 0]] = True
        start_K = np.flatnonzero(is_first_R)
        basket_R = np.cumsum(is_first_R) - 1
        return start_K[basket_R], np.append(start_K[1:], rows)[basket_R]

    def basket_start(self, row_B: Ints, user_B: Ints) -> Ints:
        """(B,) the position at which the basket of a training item begins.

        Args:
            row_B: (B,) positions of training items.
            user_B: (B,) the users whose items these are.
        """
        # Baskets rise along a user's list: a bisection for all items at once.
        from_B = self.train.offsets[user_B]
        to_B = row_B.copy()
        while (is_open_B := from_B < to_B).any():
            middle_B = (from_B + to_B) // 2
            is_before_B = self.basket_R[middle_B] < self.basket_R[row_B]
            from_B = np.where(is_open_B & is_before_B, middle_B + 1, from_B)
            to_B = np.where(is_open_B & ~is_before_B, middle_B, to_B)
        return from_B

    @property
    def has_two_baskets(self) -> bool:
        """Whether any user has training items in two baskets."""
        start_U, end_U = self.train.offsets[:-1], self.train.offsets[1:]
        taken_U = end_U > start_U
        first_U, last_U = self.basket_R[start_U[taken_U]], self.basket_R[end_U[taken_U] - 1]
        return bool((last_U > first_U).any())

    # Near-identical pictures.

    @cached_property
    def group_N(self) -> Ints:
        """(N,) items with the same group number have near-identical pictures."""
        if self.clusters is not None:
            return self.clusters.group_N.astype(np.int64)
        if self.near_identical_N is not None:
            return self.near_identical_N
        return np.arange(self.num_items)

    @cached_property
    def items_by_group(self) -> Jagged:
        """The items of each group."""
        return Jagged.by_code(self.group_N)

    @cached_property
    def outside_near_identical_T(self) -> Ints:
        """(T,) how many items outside the profile are near-identical to the position's item."""
        group_T = self.group_N[self.profiles.values]
        size_G = np.bincount(self.group_N)
        return np.asarray(size_G[group_T] - count_same_code(self.profile_row_T, group_T))

    @cached_property
    def has_valid_negative_T(self) -> Bools:
        """(T,) whether an item outside the profile is not near-identical to the position's item."""
        invalid_T = self.profile_length_O[self.profile_row_T] + self.outside_near_identical_T
        return np.asarray(invalid_T < self.num_items)

    @cached_property
    def has_valid_negative_O(self) -> Bools:
        """(O,) whether the items outside the profile outnumber the largest near-identical group."""
        largest_group = np.bincount(self.group_N).max()
        return np.asarray(self.profile_length_O + largest_group < self.num_items)

    # Clusters.

    @cached_property
    def cluster_N(self) -> Ints:
        """(N,) the cluster of each item.

        Raises:
            InputError: there are no clusters.
        """
        if self.clusters is None:
            raise InputError(
                "The guidelines of --sampling.guidelines need visual clusters; expected training "
                "data with clusters, and found none."
            )
        return self.clusters.cluster_N.astype(np.int64)

    @cached_property
    def items_by_cluster(self) -> Jagged:
        """The items of each of the C clusters."""
        return Jagged.by_code(self.cluster_N)

    @cached_property
    def user_clusters(self) -> Jagged:
        """The distinct clusters of each user's items, sorted."""
        user_R = self.profile_row_T[: len(self.basket_R)]
        cluster_R = self.cluster_N[self.train.values]
        return _distinct_codes(user_R, cluster_R, self.num_users, len(self.items_by_cluster))

    def user_has_cluster(self, user_B: Ints, cluster_B: Ints) -> Bools:
        """(B,) whether the user has an item of the cluster."""
        byte_B = self._cluster_bits_UX[user_B, cluster_B >> 3]
        return np.asarray((byte_B >> (cluster_B & 7).astype(np.uint8)) & 1, bool)

    @cached_property
    def _cluster_bits_UX(self) -> npt.NDArray[np.uint8]:
        """(U, ceil(C / 8)) one bit for each user and cluster."""
        width = -(-len(self.items_by_cluster) // 8)
        bits_UX = np.zeros((self.num_users, width), np.uint8)
        cluster_V = self.user_clusters.values
        bit_V = np.left_shift(1, cluster_V & 7).astype(np.uint8)
        np.bitwise_or.at(bits_UX, (self.user_clusters.row_ids, cluster_V >> 3), bit_V)
        return bits_UX

    # Artists. An item without an artist is in no list.

    @cached_property
    def items_by_artist(self) -> Jagged:
        """The items of each artist."""
        assert self.artist_N is not None
        return Jagged.by_code(self.artist_N)

    @cached_property
    def user_artists(self) -> Jagged:
        """The distinct artists of each user's items, sorted; A values."""
        assert self.artist_N is not None
        artist_R = self.artist_N[self.train.values]
        user_R = self.profile_row_T[: len(artist_R)]
        has_artist_R = artist_R >= 0
        return _distinct_codes(
            user_R[has_artist_R], artist_R[has_artist_R], self.num_users, len(self.items_by_artist)
        )

    @cached_property
    def in_cluster_count_A(self) -> Ints:
        """(A,) how many items of the artist are in one of the user's clusters."""
        assert self.artist_N is not None
        count = len(self.items_by_cluster)
        has_artist_N = self.artist_N >= 0
        key_E, size_E = np.unique(
            self.artist_N[has_artist_N] * count + self.cluster_N[has_artist_N], return_counts=True
        )
        artist_clusters = Jagged.from_row_ids(
            key_E // count, key_E % count, len(self.items_by_artist)
        )
        user_A, artist_A = self.user_artists.row_ids, self.user_artists.values
        count_A = np.zeros(len(artist_A), np.int64)
        for chunk in chunk_rows(artist_clusters.lengths[artist_A], _PAIRS_AT_ONCE):
            offsets = offsets_from_lengths(artist_clusters.lengths[artist_A[chunk]])
            entry_V = concat_ranges(artist_clusters.offsets[artist_A[chunk]], offsets)
            user_V = np.repeat(user_A[chunk], np.diff(offsets))
            has_cluster_V = self.user_has_cluster(user_V, artist_clusters.values[entry_V])
            count_A[chunk] = np.diff(offsets_from_lengths(size_E[entry_V] * has_cluster_V)[offsets])
        return count_A

    def user_artist_index(self, user_B: Ints, artist_B: Ints) -> Ints:
        """(B,) each pair's index in `user_artists`; -1 if the user has no item of the artist."""
        key_B = user_B * len(self.items_by_artist) + artist_B
        keys = self._user_artist_keys
        index_B = np.minimum(np.searchsorted(keys, key_B), len(keys) - 1)
        is_found_B = (keys[index_B] == key_B) & (artist_B >= 0)
        return np.where(is_found_B, index_B, -1)

    @cached_property
    def _user_artist_keys(self) -> Ints:
        """(A + 1,) a sorted number for each user and artist, and a larger one after the last.

        With that one the array is never empty.
        """
        artists = self.user_artists
        keys = artists.row_ids * len(self.items_by_artist) + artists.values
        return np.append(keys, np.iinfo(np.int64).max)


def count_same_code(row_T: Ints, code_T: Ints) -> Ints:
    """(T,) how many positions, this one included, are of the same row and have the same code."""
    key_T = row_T * (int(code_T.max(initial=0)) + 1) + code_T
    _, inverse_T, count = np.unique(key_T, return_inverse=True, return_counts=True)
    return np.asarray(count[inverse_T])


def sorted_unique(values: Ints) -> Ints:
    """The distinct non-negative values, sorted: much faster than `np.unique`, which hashes."""
    ordered = np.sort(values)
    return np.asarray(ordered[np.diff(ordered, prepend=-1) != 0])


def _distinct_codes(row_R: Ints, code_R: Ints, num_rows: int, num_codes: int) -> Jagged:
    """The distinct codes of each row, sorted."""
    key = sorted_unique(row_R * num_codes + code_R)
    return Jagged.from_row_ids(key // max(num_codes, 1), key % max(num_codes, 1), num_rows)
