"""The guidelines by which triples are drawn (Messina et al. 2020, arXiv 2009.04426, section 4.2).

The numbers are the paper's; random is its baseline.

| # | guideline         | profile                   | positive               | negative           |
|---|-------------------|---------------------------|------------------------|--------------------|
| 1 | hidden_item       | a user's first k baskets  | an item of basket k,   | Unrelated          |
|   |                   | without the positive      | which has two or more  |                    |
| 2 | next_basket       | a user's first k - 1      | an item of basket k    | Unrelated          |
|   |                   | baskets                   |                        |                    |
| 3 | favourite_artists | a user's training items   | another item of the    | Unrelated          |
|   |                   |                           | user's artists and     |                    |
|   |                   |                           | clusters               |                    |
| 4 | own_profile       | a user's training items   | one of them            | FineGrained        |
| 5 | single_item       | one item                  | that item              | FineGrained        |
| 6 | same_artist       | one item                  | another by its artist  | VisuallyConsistent |
|   | random            | a user's training items   | one of them            | OutsideProfile     |

The last column names a class of `visrec.sampling.negatives`, and holds if `--sampling.negatives` is
drawn: `make_negative_sampler` in `visrec.sampling.triples` chooses it. By default no negative is
drawn for a triple: under every guideline, the positive is compared with the softmax candidates of
the step (`visrec.sampling.candidates`).

Guidelines 1, 2, 4 and random draw their positive uniformly from the training items that fit the
table and have a valid negative. Guideline 3 draws a training item in this way and takes its user
and its artist. Guidelines 5 and 6 draw a catalogue item that has a valid negative, uniformly, as
the profile. With drawn negatives, guideline 6 draws the whole triple again until the pictures
confirm the negative, so some items come more often. Conditions on artists and clusters refer to all
training items of the user. If no item has an artist, conditions on artists are dropped.

Shapes: U users, N items, O = U + N profiles, R training items, T = R + N positions (see
`visrec.sampling.index`), B triples, S positions or items to start from, K negatives of a triple.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from visrec.jagged import Jagged
from visrec.sampling.index import Bools, Ints, SamplingIndex, count_same_code
from visrec.sampling.negatives import NegativeSampler, Positives
from visrec.sampling.rejection import Random, draw_accepted, random_below
from visrec.sampling.rows import Rows, SampledTriples

# same_artist draws a triple until the pictures confirm its negative. It is refused if they confirm
# less than this share of the negatives of a probe.
_MIN_CONSISTENT, _PROBE_SIZE = 1e-3, 20_000

_UNRELATED = "an item that is in none of that user's clusters and by none of that user's artists"
_TWO_ITEMS = (
    "a user with two training items (with --sampling.keep_positive_in_profile true, one), and an "
    "item outside the profile"
)


class Guideline(ABC):
    """Draws triples: profile and positive itself, negatives with a sampler.

    Attributes:
        requirement: what the data must contain, for an error message.
        artist_conditions: which of "positive" and "negative" depend on artists.

    Args:
        index: the training data.
        negatives: draws the negatives.
        keep_positive: whether a positive that is an item of the profile stays in it. Only
            own_profile and random read this; in the others it follows from the guideline.
    """

    requirement: ClassVar[str]
    artist_conditions: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        self._index, self._negatives, self._keep_positive = index, negatives, keep_positive

    @property
    @abstractmethod
    def can_draw(self) -> bool:
        """Whether the data give any triple."""

    @abstractmethod
    def draw(self, size: int, random: Random) -> SampledTriples:
        """Draws `size` triples; only if `can_draw`."""


class _PositiveInProfileRow(Guideline):
    """The positive is an item of a profile row, and the profile is the first items of that row.

    The positive may be among these items or come after them.

    A subclass sets `_positive_position_S`, the positions of possible positives, and
    `_profile_length_T`, the number of items in the profile of the positive at each position.
    """

    _positive_position_S: Ints
    _profile_length_T: Ints

    @property
    def can_draw(self) -> bool:
        return len(self._positive_position_S) > 0

    def draw(self, size: int, random: Random) -> SampledTriples:
        position_B = _choose(self._positive_position_S, size, random)
        profile_row_B = self._index.profile_row_T[position_B]
        positive_B = self._index.profiles.values[position_B].astype(np.int64)
        positives = Positives(profile_row_B, positive_B, position_B)
        return SampledTriples(
            profile_row_B=profile_row_B,
            profile_length_B=self._profile_length_T[position_B],
            position_B=position_B,
            keeps_positive_B=np.full(size, self._keep_positive),
            positive_B=positive_B,
            negative_BK=self._negatives.draw(positives, random),
        )


class OwnProfile(_PositiveInProfileRow):
    """own_profile and random: the profile is all items of a user, the positive is one of them.

    The two differ in their negative samplers alone. `draw` is that of the base class.
    """

    requirement = _TWO_ITEMS

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        super().__init__(index, negatives, keep_positive)
        rows = len(index.basket_R)
        length_R = index.profile_length_O[index.profile_row_T[:rows]]
        has_profile_R = length_R >= (1 if keep_positive else 2)
        self._positive_position_S = np.flatnonzero(
            has_profile_R & negatives.has_valid_negative_T[:rows]
        )
        self._profile_length_T = length_R


class SingleItem(_PositiveInProfileRow):
    """single_item: the positive is the only item of the profile, and stays in it.

    `draw` is that of the base class. Its negative, if one is drawn: `FineGrained.draw`.
    """

    requirement = "an item that is not near-identical to all others"

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        del keep_positive  # without the positive the profile would be empty
        super().__init__(index, negatives, keep_positive=True)
        position_S = np.flatnonzero(negatives.has_valid_negative_T)
        self._positive_position_S = position_S[position_S >= len(index.basket_R)]
        self._profile_length_T = np.ones(len(index.profile_row_T), np.int64)


class NextBasket(_PositiveInProfileRow):
    """next_basket: the profile is all baskets before the positive's basket."""

    requirement = f"a user with two baskets and {_UNRELATED}"
    artist_conditions = ("negative",)

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        del keep_positive  # the positive comes after the profile
        super().__init__(index, negatives, keep_positive=False)
        rows = len(index.basket_R)
        start_R, _ = index.basket_range_R
        length_R = start_R - index.profiles.offsets[index.profile_row_T[:rows]]
        has_profile_R = length_R > 0
        self._positive_position_S = np.flatnonzero(
            has_profile_R & negatives.has_valid_negative_T[:rows]
        )
        self._profile_length_T = length_R


class HiddenItem(_PositiveInProfileRow):
    """hidden_item: the profile is all items up to the positive's basket, without the positive."""

    requirement = f"a user with a basket of two items and {_UNRELATED}"
    artist_conditions = ("negative",)

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        del keep_positive  # a hidden positive never stays
        super().__init__(index, negatives, keep_positive=False)
        rows = len(index.basket_R)
        start_R, stop_R = index.basket_range_R
        has_rest_R = stop_R - start_R > 1
        self._positive_position_S = np.flatnonzero(
            has_rest_R & negatives.has_valid_negative_T[:rows]
        )
        self._profile_length_T = stop_R - index.profiles.offsets[index.profile_row_T[:rows]]


class _PositiveOutsideProfileRow(Guideline):
    """The profile is all items of a profile row, and the positive is another item."""

    def _complete(self, profile_row_B: Ints, positive_B: Ints, random: Random) -> SampledTriples:
        """The triples of these profiles and positives, with negatives drawn for them."""
        position_B = np.full(len(profile_row_B), -1)
        positives = Positives(profile_row_B, positive_B, position_B)
        return SampledTriples(
            profile_row_B=profile_row_B,
            profile_length_B=self._index.profile_length_O[profile_row_B],
            position_B=position_B,
            keeps_positive_B=np.zeros(len(profile_row_B), bool),
            positive_B=positive_B,
            negative_BK=self._negatives.draw(positives, random),
        )


@dataclass(frozen=True)
class _UserArtists(Rows):
    """Users, and for each the artist whose item becomes the positive of favourite_artists.

    Attributes:
        user_B: (B,) users.
        code_B: (B,) one of the user's artists; one of the user's clusters if no item has an artist.
    """

    user_B: Ints
    code_B: Ints


class FavouriteArtists(_PositiveOutsideProfileRow):
    """favourite_artists: the positive is by an artist of the profile and in one of its clusters.

    If no item has an artist, the positive is only in one of the clusters.
    """

    requirement = f"a user with another item of their artists in their clusters, and {_UNRELATED}"
    artist_conditions = ("positive", "negative")

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        super().__init__(index, negatives, keep_positive)
        rows = len(index.basket_R)
        self._user_R = index.profile_row_T[:rows]
        if index.artist_N is None:
            self._code_N, self._items_by_code = index.cluster_N, index.items_by_cluster
            self._code_R = self._code_N[index.train.values]
            in_cluster_R = self._items_by_code.lengths[self._code_R]
        else:
            self._code_N, self._items_by_code = index.artist_N, index.items_by_artist
            self._code_R = self._code_N[index.train.values]
            artist_index_R = index.user_artist_index(self._user_R, self._code_R)
            in_cluster_R = np.append(index.in_cluster_count_A, 0)[artist_index_R]
        has_positive_R = in_cluster_R > count_same_code(self._user_R, self._code_R + 1)
        self._start_position_S = np.flatnonzero(
            has_positive_R & negatives.has_valid_negative_O[self._user_R]
        )
        self.weight_N = np.ones(index.num_items)

    @property
    def can_draw(self) -> bool:
        return len(self._start_position_S) > 0

    def draw(self, size: int, random: Random) -> SampledTriples:
        position_B = _choose(self._start_position_S, size, random)
        rows = _UserArtists(self._user_R[position_B], self._code_R[position_B])
        key_B = rows.user_B * len(self._items_by_code) + rows.code_B
        positive_B = draw_accepted(self, rows, key_B, random)
        return self._complete(rows.user_B, positive_B, random)

    def propose(self, rows: _UserArtists, random: Random) -> Ints:
        within_B = random_below(self._items_by_code.lengths[rows.code_B], random)
        start_B = self._items_by_code.offsets[rows.code_B]
        return np.asarray(self._items_by_code.values[start_B + within_B])

    def accepts(self, rows: _UserArtists, item_B: Ints) -> Bools:
        accepted_B = self._index.user_has_cluster(rows.user_B, self._index.cluster_N[item_B])
        accepted_B &= self._code_N[item_B] == rows.code_B
        return np.asarray(accepted_B & ~self._index.in_profile(rows.user_B, item_B))


class SameArtist(_PositiveOutsideProfileRow):
    """same_artist: the profile is one item, and the positive is another item by its artist.

    A triple is drawn again until its negative is one that the pictures confirm: see
    `VisuallyConsistent`. If no item has an artist, all items count as one artist's.
    """

    requirement = (
        "two items of one artist and one of another, whose pictures agree in at least one of "
        f"{1 / _MIN_CONSISTENT:,.0f} draws"
    )
    artist_conditions = ("positive", "negative")

    def __init__(
        self, index: SamplingIndex, negatives: NegativeSampler, keep_positive: bool
    ) -> None:
        super().__init__(index, negatives, keep_positive)
        n = index.num_items
        self._artist_N = np.zeros(n, np.int64) if index.artist_N is None else index.artist_N
        self._items_by_artist = Jagged.by_code(self._artist_N)
        self._rank_N = _ranks_in_lists(self._items_by_artist, n)
        has_positive_N = np.append(self._items_by_artist.lengths, 0)[self._artist_N] > 1
        has_negative_N = negatives.has_valid_negative_O[index.num_users :]
        self._item_S = np.flatnonzero(has_positive_N & has_negative_N)

    @property
    def can_draw(self) -> bool:
        if not len(self._item_S):
            return False
        probe = self._attempt(_PROBE_SIZE, np.random.default_rng(0))
        return bool((probe.negative_BK >= 0).all(axis=1).mean() >= _MIN_CONSISTENT)

    def draw(self, size: int, random: Random) -> SampledTriples:
        sampled = self._attempt(size, random)
        while len(again := np.flatnonzero((sampled.negative_BK < 0).any(axis=1))):
            sampled.put(again, self._attempt(len(again), random))
        return sampled

    def _attempt(self, size: int, random: Random) -> SampledTriples:
        """Draws triples once; where the negative was not confirmed it is -1."""
        item_B = _choose(self._item_S, size, random)
        artist_B = self._artist_N[item_B]
        # A rank among the artist's items, of which the item itself is skipped.
        rank_B = random_below(self._items_by_artist.lengths[artist_B] - 1, random)
        rank_B += rank_B >= self._rank_N[item_B]
        positive_B = self._items_by_artist.values[self._items_by_artist.offsets[artist_B] + rank_B]
        return self._complete(self._index.num_users + item_B, positive_B, random)


def _ranks_in_lists(lists: Jagged, num_items: int) -> Ints:
    """(N,) the index of each item within its list; 0 for items in no list."""
    rank_N = np.zeros(num_items, np.int64)
    rank_N[lists.values] = np.arange(len(lists.values)) - lists.offsets[lists.row_ids]
    return rank_N


def _choose(value_S: Ints, size: int, random: Random) -> Ints:
    """(B,) uniform choices, sorted, because sorted profile rows are looked up much faster."""
    return np.asarray(value_S[np.sort(random.integers(0, len(value_S), size))])


# Triples are drawn in this order, so another order would give every seed other triples.
GUIDELINES: dict[str, type[Guideline]] = {
    "own_profile": OwnProfile,
    "single_item": SingleItem,
    "favourite_artists": FavouriteArtists,
    "same_artist": SameArtist,
    "next_basket": NextBasket,
    "hidden_item": HiddenItem,
    "random": OwnProfile,
}

# Their profiles are single items of the catalogue and belong to no user.
ANONYMOUS_GUIDELINES = frozenset({"single_item", "same_artist"})
