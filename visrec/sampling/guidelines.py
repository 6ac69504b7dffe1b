"""The guidelines by which triples are drawn (Messina et al. 2020, arXiv 2009.04426, section 4.2).

| guideline         | profile                       | positive             | negative             |
|-------------------|-------------------------------|----------------------|----------------------|
| own_profile       | a user's training items       | one of them          | fine-grained         |
| single_item       | one item                      | that item            | fine-grained         |
| favourite_artists | a user's training items       | another item, of one | of no artist and no  |
|                   |                               | of the user's artists| cluster of the user  |
|                   |                               | in one of the user's |                      |
|                   |                               | clusters             |                      |
| same_artist       | one item                      | another of its artist| fine-grained, of     |
|                   |                               |                      | another artist, if   |
|                   |                               |                      | the pictures agree   |
| next_basket       | all baskets before basket k   | of basket k          | as favourite_artists |
| hidden_item       | the first k baskets less one  | that item            | as favourite_artists |
|                   | item of basket k (of 2 or     |                      |                      |
|                   | more)                         |                      |                      |
| random            | a user's training items       | one of them          | any other item       |

An interaction of those that can give a triple is drawn uniformly, and with it the user; one-item
profiles are drawn uniformly from the catalogue. The artist and the cluster conditions of a user are
on all training items of the user. Where no item has an artist, the artist conditions fall away.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from visrec.sampling.index import Bools, Ints, SamplingIndex, count_same_code, positions_by_code
from visrec.sampling.negatives import NegativeSampler, Random, draw_allowed, random_below

# same_artist draws until the pictures agree; below this share of its draws it is given up.
_LEAST_AGREEING, _PROBE = 1e-3, 20_000


@dataclass(frozen=True)
class SampledTriples:
    """B triples whose profiles are the first items of an owner's, perhaps less one of them.

    Args:
        owner_B: (B,) owners, see `visrec.sampling.index`.
        length_B: (B,) how many of the owner's items.
        place_B: (B,) the place of the positive; -1 if it is none of the owner's items.
        stays_B: (B,) whether it stays in the profile, if it is in there.
        positive_B: (B,) items.
        negative_BK: (B, K) items.
    """

    owner_B: Ints
    length_B: Ints
    place_B: Ints
    stays_B: Bools
    positive_B: Ints
    negative_BK: Ints

    def take(self, rows: Ints | slice) -> "SampledTriples":
        return SampledTriples(*(array[rows] for array in self.__dict__.values()))

    def put(self, rows: Ints, other: "SampledTriples") -> None:
        """Writes other triples over those at `rows`."""
        for name, array in self.__dict__.items():
            array[rows] = getattr(other, name)

    @staticmethod
    def join(parts: "list[SampledTriples]") -> "SampledTriples":
        return SampledTriples(
            *map(np.concatenate, zip(*(p.__dict__.values() for p in parts), strict=True))
        )


Draw = Callable[[int, Random], SampledTriples]


@dataclass(frozen=True)
class Guideline:
    """One row of the table.

    Args:
        build: from facts, the rule for negatives, and whether a positive of the profile stays
            there, to how triples are drawn; None where there are none.
        needs: what there must be, in words.
        by_artist: which of positive and negative has a condition on artists.
    """

    build: Callable[[SamplingIndex, NegativeSampler, bool], Draw | None]
    needs: str
    by_artist: tuple[str, ...] = ()


def _own_profile(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    rows = len(facts.basket_R)
    length_R = facts.count_O[facts.profile_row_T[:rows]]
    open_R = (length_R >= (1 if keep else 2)) & rule.has_valid_negative_T[:rows]
    return _of_places(facts, rule, np.flatnonzero(open_R), length_R, keep)


def _single_item(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    del keep  # else nothing would be left
    place_S = np.flatnonzero(rule.has_valid_negative_T)
    place_S = place_S[place_S >= len(facts.basket_R)]
    return _of_places(facts, rule, place_S, np.ones(len(facts.profile_row_T), np.int64), True)


def _next_basket(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    del keep  # it is not in the profile
    rows = len(facts.basket_R)
    length_R = facts.basket_bounds[0] - facts.profiles.offsets[facts.profile_row_T[:rows]]
    place_S = np.flatnonzero((length_R > 0) & rule.has_valid_negative_T[:rows])
    return _of_places(facts, rule, place_S, length_R, False)


def _hidden_item(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    del keep  # else it would not be hidden
    rows = len(facts.basket_R)
    start_R, stop_R = facts.basket_bounds
    length_R = stop_R - facts.profiles.offsets[facts.profile_row_T[:rows]]
    place_S = np.flatnonzero((stop_R - start_R > 1) & rule.has_valid_negative_T[:rows])
    return _of_places(facts, rule, place_S, length_R, False)


def _of_places(
    facts: SamplingIndex, rule: NegativeSampler, place_S: Ints, length_T: Ints, stays: bool
) -> Draw | None:
    """Draws the item at one of some places, and the first items of its owner's profile."""

    def draw(size: int, random: Random) -> SampledTriples:
        place_B = _pick(place_S, size, random)
        owner_B = facts.profile_row_T[place_B]
        positive_B = facts.profiles.values[place_B].astype(np.int64)
        return SampledTriples(
            owner_B=owner_B,
            length_B=length_T[place_B],
            place_B=place_B,
            stays_B=np.full(size, stays),
            positive_B=positive_B,
            negative_BK=rule.draw(owner_B, positive_B, place_B, random),
        )

    return draw if len(place_S) else None


def _favourite_artists(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    del keep  # it is not in the profile
    rows = len(facts.basket_R)
    user_R = facts.profile_row_T[:rows]
    # Its kin are the items of an item's artist, or, where there are no artists, of its cluster.
    if facts.artist_N is None:
        code_N, kin = facts.cluster_N, facts.by_cluster
        code_R = code_N[facts.train.values]
        inside_R = kin.lengths[code_R]
    else:
        code_N, kin = facts.artist_N, facts.by_artist
        code_R = code_N[facts.train.values]
        inside_R = np.append(facts.inside_A, 0)[facts.artist_place(user_R, code_R)]
    place_S = np.flatnonzero(
        (inside_R > count_same_code(user_R, code_R + 1)) & rule.has_valid_negative_O[user_R]
    )

    def draw(size: int, random: Random) -> SampledTriples:
        place_B = _pick(place_S, size, random)
        user_B, code_B = user_R[place_B], code_R[place_B]

        def propose(rows: Ints) -> Ints:
            code_S = code_B[rows]
            return np.asarray(
                kin.values[kin.offsets[code_S] + random_below(kin.lengths[code_S], random)]
            )

        def allowed(rows: Ints, items: Ints) -> Bools:
            fits = facts.in_clusters_of(user_B[rows], facts.cluster_N[items])
            fits &= code_N[items] == code_B[rows]
            return np.asarray(fits & ~facts.is_taken(user_B[rows], items))

        kind_B = user_B * len(kin) + code_B
        positive_B = draw_allowed(propose, allowed, kind_B, np.ones(facts.num_items), random)
        return _outside_profile(facts, rule, user_B, positive_B, random)

    return draw if len(place_S) else None


def _same_artist(facts: SamplingIndex, rule: NegativeSampler, keep: bool) -> Draw | None:
    del keep  # it is not in the profile
    nobody = facts.artist_N is None
    code_N = np.zeros(facts.num_items, np.int64) if nobody else np.asarray(facts.artist_N)
    kin = positions_by_code(code_N)
    rank_N = np.zeros(facts.num_items, np.int64)  # of an item among its kin
    rank_N[kin.values] = np.arange(len(kin.values)) - kin.offsets[kin.owners]
    many_N = np.append(kin.lengths, 0)[code_N] > 1
    item_S = np.flatnonzero(many_N & rule.has_valid_negative_O[facts.num_users :])

    def attempt(size: int, random: Random) -> SampledTriples:
        item_B = _pick(item_S, size, random)
        code_B = code_N[item_B]
        other_B = random_below(kin.lengths[code_B] - 1, random)
        other_B += other_B >= rank_N[item_B]
        positive_B = kin.values[kin.offsets[code_B] + other_B]
        return _outside_profile(facts, rule, facts.num_users + item_B, positive_B, random)

    def draw(size: int, random: Random) -> SampledTriples:
        drawn = attempt(size, random)
        while len(again := np.flatnonzero((drawn.negative_BK < 0).any(axis=1))):
            drawn.put(again, attempt(len(again), random))
        return drawn

    if not len(item_S):
        return None
    probe = attempt(_PROBE, np.random.default_rng(0))
    visually_consistent = (probe.negative_BK >= 0).all(axis=1).mean()
    return draw if visually_consistent >= _LEAST_AGREEING else None


def _outside_profile(
    facts: SamplingIndex, rule: NegativeSampler, owner_B: Ints, positive_B: Ints, random: Random
) -> SampledTriples:
    """Triples of whole profiles, in which the positives are not."""
    place_B = np.full(len(owner_B), -1)
    return SampledTriples(
        owner_B=owner_B,
        length_B=facts.count_O[owner_B],
        place_B=place_B,
        stays_B=np.zeros(len(owner_B), bool),
        positive_B=positive_B,
        negative_BK=rule.draw(owner_B, positive_B, place_B, random),
    )


def _pick(place_S: Ints, size: int, random: Random) -> Ints:
    """(B,) of the places, drawn uniformly and sorted: a search for sorted owners is much faster."""
    return np.asarray(place_S[np.sort(random.integers(0, len(place_S), size))])


_FOREIGN = "an item of none of their clusters and artists"
_TWO_ITEMS = (
    "a user with two training items (with --sampling.keep_positive_in_profile true, one), and an "
    "item outside the profile"
)
GUIDELINES = {
    "own_profile": Guideline(_own_profile, _TWO_ITEMS),
    "single_item": Guideline(_single_item, "an item that is not near-identical to all others"),
    "favourite_artists": Guideline(
        _favourite_artists,
        f"a user with another item of their artists in their clusters, and {_FOREIGN}",
        ("positive", "negative"),
    ),
    "same_artist": Guideline(
        _same_artist,
        "two items of one artist and one of another, whose pictures agree in at least one of "
        f"{1 / _LEAST_AGREEING:,.0f} draws",
        ("positive", "negative"),
    ),
    "next_basket": Guideline(
        _next_basket, f"a user with two baskets and {_FOREIGN}", ("negative",)
    ),
    "hidden_item": Guideline(
        _hidden_item, f"a user with a basket of two items and {_FOREIGN}", ("negative",)
    ),
    "random": Guideline(_own_profile, _TWO_ITEMS),
}

# Whose profiles are one item alone and nobody's.
ANONYMOUS_PROFILES = frozenset({"single_item", "same_artist"})
