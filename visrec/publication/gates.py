"""The gates before the pointer moves: each is one sentence, one threshold, one row of the manifest.

Some hold of every list there is, whatever the data: they let nothing through unless told to. The
others ask whether a night is like a night at all: their thresholds are wide enough for an honest
one, a small shop's first included, and have no say where there is too little to judge by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.publication.run import Gate
from visrec.publication.verify import ShardFacts
from visrec.retrieval.similar import Kind
from visrec.text import number_beside, shortest

_VISRANK, _POPULARITY = "visrank", "popularity"
NOT_EVALUATED = "this model has not been evaluated"
_FEWEST_ARTISTS = 10  # of fewer, one may well have most of what is liked


@dataclass(frozen=True, kw_only=True)
class GatesConfig:
    """When a publication is held back.

    Attributes:
        min_owners: share of the users (or items) that have a list.
        max_lists_beyond: lists of unknown users, and second ones.
        max_wrong_files: files with other columns, of another run, or changed since written.
        max_wrong_lengths: lists that are not k long, or as long as there are candidates.
        max_repeats: lists that have an item twice.
        max_against_rules: lists with more of a group than the cap, or with look-alikes.
        max_consumed: entries that their user has taken already, or that are blocked for that user;
            of items, the item itself.
        max_unknown: entries with an item that is not in the catalogue.
        max_unavailable: entries with an item that may not be recommended.
        max_not_finite: entries whose score is no number.
        max_unsorted: lists that are not best first.
        max_wrong_reasons: entries whose reason the user never took, and lists marked as the
            fallback that are not.
        min_lists: with fewer lists of the model's own, gates of what a night is like are skipped.
        min_catalogue: share of the available items that somebody is shown; where there are fewer
            entries than items, share of the entries. None, the default, asks for nothing: how much
            of a catalogue is right to show depends on its trends.
        max_item_concentration: how far the k most listed items are ahead of the others, on a scale
            from what the interactions have (0) to lists of the most popular items for everybody
            (1). Skipped where k is more than half of the items, and for a model that gives
            everybody the same list by design.
        max_artist_concentration: how far the twentieth of the artists that is listed most is ahead,
            on a scale from what the interactions have (0) to lists of those artists alone (1).
        min_overlap: how much of the last publication's list a user still has, on average, beyond
            what chance would give: 0 is chance, 1 is the same list.
        max_score_drift: how far the mean of the best scores may move from the last publication of
            the same model, in its standard deviations; and how many times wider or narrower they
            may spread, plus one.
        min_owners_of_last: number of users, as a share of the last publication's.
        min_available_of_last: number of available items, as a share of the last publication's.
        max_missing_tables: tables of items and users that the last publication had.
        max_cold_rise: rise of the share of users with the fallback list since then.
        max_without_feature_rise: rise since the last publication of the share of the interactions,
            and of the available items of the items table, whose item has no feature: the features
            are stale.
        max_without_feature: the same share itself. None, the default, asks for nothing: a shop
            whose pictures of what was sold are gone has many such interactions every night.
        metric: of the held-out set, by which the model is judged.
        min_gain: how far the model must be above VisRank and popularity, noise allowed for: the
            upper end of its 95 % interval counts.
        require_evaluation: hold back where the model was not evaluated.
    """

    min_owners: float = 1.0
    max_lists_beyond: int = 0
    max_wrong_files: int = 0
    max_wrong_lengths: int = 0
    max_repeats: int = 0
    max_against_rules: int = 0
    max_consumed: int = 0
    max_unknown: int = 0
    max_unavailable: int = 0
    max_not_finite: int = 0
    max_unsorted: int = 0
    max_wrong_reasons: int = 0
    min_lists: int = 50
    min_catalogue: float | None = None
    # Measured on catalogues with trends and without: docs/decisions.md.
    max_item_concentration: float = 0.98
    max_artist_concentration: float = 0.5
    min_overlap: float = 0.05
    max_score_drift: float = 2.0
    min_owners_of_last: float = 0.8
    min_available_of_last: float = 0.5
    max_missing_tables: int = 0
    max_cold_rise: float = 0.2
    max_without_feature_rise: float = 0.2
    max_without_feature: float | None = None
    metric: str = "auc"
    min_gain: float = 0.0
    require_evaluation: bool = False

    def __post_init__(self) -> None:
        thresholds = {f.name: "[0, 1000000000]" for f in fields(self) if f.type not in (bool, str)}
        below_chance = {"min_gain": "[-1, 1]", "min_overlap": "[-1, 1]"}
        check_fields(self, "gates", **{**thresholds, **below_chance})


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """What is known of a run beside its lists.

    Args:
        kind: whose lists they are.
        k: entries a list.
        available_N: (N,) which items may be recommended.
        artist_N: (N,) a number for each artist, -1 for none; or None.
        taken_N: (N,) how many users took each item.
        popular_N: (N,) in how many of the model's own lists each item would be, if they were of the
            most popular items.
        personal: whether the model gives each user a list of their own.
        interactions: that count, and how many of them are with items without a feature.
        items: that the items table calls available, and how many of them have no feature.
        model: digest of the model.
        tables: which of items and users there are.
        last: manifest of the last publication; None where there is none of this kind.
        evaluation: what metrics.json says; None where there is none.
    """

    kind: Kind
    k: int
    available_N: npt.NDArray[np.bool_]
    artist_N: npt.NDArray[np.int64] | None
    taken_N: npt.NDArray[Any]
    popular_N: npt.NDArray[np.int64]
    personal: bool
    interactions: tuple[int, int]
    items: tuple[int, int]
    model: str
    tables: Sequence[str]
    last: Mapping[str, Any] | None
    evaluation: Mapping[str, Any] | None

    @property
    def whose(self) -> str:
        return "users" if self.kind == "user_to_item" else "items"

    @property
    def without_feature(self) -> Mapping[str, float]:
        """Shares of the interactions and of the available items whose item has no feature."""
        counts = {"interactions": self.interactions, "items": self.items}
        return {name: _share(missing, whole, 0.0) for name, (whole, missing) in counts.items()}


def judge(facts: ShardFacts, context: GateContext, config: GatesConfig) -> list[Gate]:
    """All gates of a run, in the order of the manifest.

    Args:
        facts: of all shards together.
        context: what else is known.
        config: the thresholds.

    Raises:
        InputError: the evaluation does not know the metric that is asked for.
    """
    gates = [*_of_every_list(facts, context, config), *_of_inputs(context, config)]
    gates += [*_of_the_lists(facts, context, config), *_since_the_last(facts, context, config)]
    if context.kind == "user_to_item":
        gates += _of_the_model(context, config)
    return gates


# What holds of every list.


def _of_every_list(facts: ShardFacts, context: GateContext, config: GatesConfig) -> list[Gate]:
    one = context.whose.removesuffix("s")
    users = context.kind == "user_to_item"
    counts = [
        ("files with other columns, of another run or changed", facts.other_files
         + facts.other_schemas, "max_wrong_files"),
        (f"lists of no known {one}, or second ones", facts.lists_beyond, "max_lists_beyond"),
        (f"lists without {context.k} items, or all there are", facts.wrong_lengths,
         "max_wrong_lengths"),
        ("lists with an item twice", facts.with_repeats, "max_repeats"),
        ("lists with entries that a rule keeps apart", facts.against_rules, "max_against_rules"),
        ("entries with an item not in the catalogue", facts.unknown, "max_unknown"),
        ("entries with an item not available", facts.unavailable, "max_unavailable"),
        ("entries that the user has already" if users else "entries with the item itself",
         facts.consumed, "max_consumed"),
        ("entries without a finite score", facts.not_finite, "max_not_finite"),
        ("lists not best first", facts.unsorted, "max_unsorted"),
    ]  # fmt: skip
    if users:
        wrong = facts.wrong_because + facts.wrong_cold
        counts.append(("reasons and fallback marks that are wrong", wrong, "max_wrong_reasons"))
    owners = _share(facts.owners, facts.owners_expected)
    note = f"{facts.owners:,} of {facts.owners_expected:,}"
    anew = [
        ("lists that the model does not give", facts.not_the_models, facts.rescored),
        ("fallback lists that are not the most popular items", facts.not_popular,
         facts.rescored_fallbacks),
        ("lists with a reason that is missing or not the nearest item", facts.other_reasons,
         facts.rescored),
    ]  # fmt: skip
    return [
        _at_least(f"{context.whose} with a list", owners, config, "min_owners", note),
        *(_at_most(name, found, config, key) for name, found, key in counts),
        *(_none(name, found, tried) for name, found, tried in anew[: 3 if users else 1]),
    ]


_PARTS = {"items": "available items", "interactions": "interactions with items"}


def _of_inputs(context: GateContext, config: GatesConfig) -> list[Gate]:
    """Of the features: whether more items than in the last publication are without."""
    last = (context.last or {}).get("without_feature")
    gates, rise = [], "max_without_feature_rise"
    for part in ("items", "interactions")[: 2 if context.kind == "user_to_item" else 1]:
        share, (whole, missing) = context.without_feature[part], getattr(context, part)
        name, note = f"{_PARTS[part]} without a feature", f"{missing:,} of {whole:,}"
        if config.max_without_feature is not None:
            gates.append(_at_most(name, share, config, "max_without_feature", note))
        name = f"rise of the share of {name}"
        if last is None:
            gates.append(_skipped(name, config, rise, f"{note} now; there is none to compare with"))
        else:
            note += f" now, {last[part]:.0%} in the last publication"
            gates.append(_at_most(name, share - last[part], config, rise, note))
    return gates


# What a night is like. Lists of cold users are left out: they are the same by design.


def _of_the_lists(facts: ShardFacts, context: GateContext, config: GatesConfig) -> list[Gate]:
    names = {
        **({} if config.min_catalogue is None else {"min_catalogue": "catalogue that is shown"}),
        "max_item_concentration": "concentration on few items",
        "max_artist_concentration": "concentration on few artists",
    }
    listed_N, items = facts.listed_N, int(context.available_N.sum())
    entries = int(listed_N.sum())
    if facts.warm < config.min_lists or not entries or not context.personal:
        note = f"{facts.warm:,} lists are of the model's own, fewer than --gates.min_lists"
        if not context.personal:
            note = "the model gives everybody the same list by design"
        elif facts.warm >= config.min_lists:
            note = "the lists are empty"
        return [_skipped(name, config, key, note) for key, name in names.items()]
    gates = []
    if key := "min_catalogue" if "min_catalogue" in names else "":
        shown = int(np.count_nonzero(listed_N))
        note = f"{shown:,} of {items:,} items in {facts.warm:,} lists"
        gates.append(_at_least(names[key], shown / min(items, entries), config, key, note))
    gates.append(_of_items(names["max_item_concentration"], listed_N, context, config))
    return [*gates, _of_artists(names["max_artist_concentration"], listed_N, context, config)]


def _of_items(
    name: str, listed_N: npt.NDArray[np.int64], context: GateContext, config: GatesConfig
) -> Gate:
    key = "max_item_concentration"
    if 2 * context.k > int(context.available_N.sum()):
        return _skipped(name, config, key, "k is more than half of the items")
    found, share = concentration(listed_N, context.available_N, context.k)
    taken = concentration(context.taken_N, np.ones(len(listed_N)), context.k)[0]
    popular = concentration(context.popular_N, context.available_N, context.k)[0]
    note = (
        f"the {context.k} listed most take {share:.0%} of the entries; concentration {found:.3f}, "
        f"of the interactions {taken:.3f}, of the most popular items for everybody {popular:.3f}"
    )
    return _at_most(name, _between(found, taken, popular), config, key, note)


def _between(found: float, least: float, most: float) -> float:
    """Where a figure is on a scale from 0 at the one end to 1 at the other."""
    return (found - least) / (most - least) if most > least else float(found > least)


def _of_artists(
    name: str, listed_N: npt.NDArray[np.int64], context: GateContext, config: GatesConfig
) -> Gate:
    key = "max_artist_concentration"
    if context.artist_N is None:
        return _skipped(name, config, key, "no item has an artist")
    known_N = context.artist_N >= 0
    artist_V = context.artist_N[known_N]
    listed_A = np.bincount(artist_V, weights=listed_N[known_N])
    size_A = np.bincount(artist_V, weights=context.available_N[known_N])
    artists = np.count_nonzero(size_A)
    if artists < _FEWEST_ARTISTS or not listed_A.sum():
        return _skipped(name, config, key, f"{artists} artists have available items")
    few = math.ceil(artists / 20)
    found, share = concentration(listed_A, size_A, few)
    taken_A = np.bincount(artist_V, weights=context.taken_N[known_N])
    taken = concentration(taken_A, np.bincount(artist_V), few)[0]
    note = (
        f"the {few} of {artists:,} artists listed most take {share:.0%} of the entries; "
        f"concentration {found:.3f}, of the interactions {taken:.3f}"
    )
    return _at_most(name, _between(found, taken, 1.0), config, key, note)


def concentration(
    listed_G: npt.NDArray[Any], size_G: npt.NDArray[Any], few: int
) -> tuple[float, float]:
    """How much more than their share the `few` groups listed most take, and what they take.

    Args:
        listed_G: entries of each group.
        size_G: items of each group.
        few: how many groups.

    Returns:
        0 for their share of the items, or where there are no entries, and 1 for all entries; and
        their share of the entries.
    """
    if not listed_G.sum():
        return 0.0, 0.0
    most = np.argsort(-np.asarray(listed_G, np.float64), kind="stable")[:few]
    share = float(listed_G[most].sum() / listed_G.sum())
    fair = float(size_G[most].sum() / size_G.sum())
    return (share - fair) / (1 - fair) if fair < 1 else 0.0, share


def _since_the_last(facts: ShardFacts, context: GateContext, config: GatesConfig) -> list[Gate]:
    whose, last = context.whose, context.last
    names = {
        "min_owners_of_last": f"{whose}, as a share of the last publication's",
        "min_available_of_last": "available items, as a share of the last publication's",
        "max_missing_tables": "tables that the last publication had",
        "max_cold_rise": "rise of the share of users with the fallback list",
        "min_overlap": "lists kept since the last publication, beyond chance",
        "max_score_drift": "drift of the best scores since the last publication",
    }
    if whose == "items":
        del names["max_cold_rise"]
    if last is None:
        note = "there is no publication before this one"
        return [_skipped(name, config, key, note) for key, name in names.items()]
    gates = [
        _at_least(names["min_owners_of_last"], _share(facts.owners, last[whose]), config,
                  "min_owners_of_last", f"{facts.owners:,} now, {last[whose]:,} in it"),
        _available(names["min_available_of_last"], context, last, config),
        _tables(names["max_missing_tables"], context, last, config),
    ]  # fmt: skip
    if whose == "users":
        now, then = _share(facts.cold, facts.owners), _share(last["cold_users"], last[whose])
        note = f"{now:.0%} now, {then:.0%} in the last publication"
        gates.append(_at_most(names["max_cold_rise"], now - then, config, "max_cold_rise", note))
    few = None
    if facts.both < config.min_lists:
        few = f"{facts.both:,} {whose} have a list in both, fewer than --gates.min_lists"
    return [
        *gates,
        _overlap(names["min_overlap"], few, facts, context, config),
        _drift(names["max_score_drift"], few, facts, context, config),
    ]


def _available(
    name: str, context: GateContext, last: Mapping[str, Any], config: GatesConfig
) -> Gate:
    key, now = "min_available_of_last", int(context.available_N.sum())
    if "available" not in last:
        return _skipped(name, config, key, "the last publication does not say how many")
    note = f"{now:,} now, {last['available']:,} in it"
    return _at_least(name, _share(now, last["available"]), config, key, note)


def _tables(name: str, context: GateContext, last: Mapping[str, Any], config: GatesConfig) -> Gate:
    missing = [table for table in ("items", "users")
               if last["inputs"].get(table) and table not in context.tables]  # fmt: skip
    note = f"no table of {' and of '.join(missing)} now" if missing else ""
    return _at_most(name, len(missing), config, "max_missing_tables", note)


def _overlap(
    name: str, few: str | None, facts: ShardFacts, context: GateContext, config: GatesConfig
) -> Gate:
    chance = context.k / max(int(context.available_N.sum()), 1)
    if few is None and 2 * chance > 1:
        few = "k is more than half of the items"
    if few is not None or not facts.overlap_of:
        return _skipped(name, config, "min_overlap", few or "the lists are empty")
    kept = facts.overlap / facts.overlap_of
    note = f"{kept:.0%} of {facts.both:,} lists"
    return _at_least(name, (kept - chance) / (1 - chance), config, "min_overlap", note)


def _drift(
    name: str, few: str | None, facts: ShardFacts, context: GateContext, config: GatesConfig
) -> Gate:
    """How far the mean has moved, or how much the spread has changed, whichever is more."""
    if context.last is not None and context.last["inputs"]["model"] != context.model:
        few = "it was of another model, whose scores have another scale"
    elif few is None and facts.scored < config.min_lists:
        few = f"{facts.scored:,} lists have scores in both"
    if few is not None:
        return _skipped(name, config, "max_score_drift", few)
    now, now_spread = _mean_and_spread(facts.now_sum, facts.now_squares, facts.scored)
    then, spread = _mean_and_spread(facts.before_sum, facts.before_squares, facts.scored)
    if spread <= 1e-3 * abs(then):
        return _skipped(name, config, "max_score_drift", "the scores were all alike")
    wider = now_spread / spread
    found = max(abs(now - then) / spread, max(wider, 1 / max(wider, 1e-3)) - 1)
    note = f"mean {then:.4g} with deviation {spread:.4g}, now {now:.4g} with {now_spread:.4g}"
    return _at_most(name, found, config, "max_score_drift", note)


def _mean_and_spread(total: float, squares: float, count: int) -> tuple[float, float]:
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0))


# The model against the baselines.


def _of_the_model(context: GateContext, config: GatesConfig) -> list[Gate]:
    gates = []
    models = (context.evaluation or {}).get("models", {})
    made = (context.evaluation or {}).get("digests", {})
    mine = [label for label, digest in made.items() if digest == context.model and label in models]
    for title, prefix in (("VisRank", _VISRANK), ("popularity", _POPULARITY)):
        name = f"{config.metric} on the held-out set, above {title}"
        rows = [label for label in models if label.startswith(prefix) and label not in made]
        if not mine or not rows:
            note = NOT_EVALUATED if not mine else f"{title} was not evaluated"
            gates.append(_not_evaluated(name, config, note))
            continue
        own = _figure(models[mine[0]], config.metric)
        best = max(rows, key=lambda label: float(_figure(models[label], config.metric)["mean"]))
        other = float(_figure(models[best], config.metric)["mean"])
        note = f"the model {own['mean']:.4f}, up to {own['high']:.4f}; {best} {other:.4f}"
        gates.append(_at_least(name, float(own["high"]) - other, config, "min_gain", note))
    return gates


def _figure(figures: Mapping[str, Any], metric: str) -> Mapping[str, Any]:
    if metric not in figures:
        raise InputError(
            f"Found --gates.metric {metric!r}; expected one that the evaluation has: "
            f"{', '.join(sorted(figures))}."
        )
    found: Mapping[str, Any] = figures[metric]
    return found


# One gate.


def _share(part: int, whole: int, of_nothing: float = 1.0) -> float:
    return part / whole if whole else of_nothing


def _at_least(name: str, found: float, config: GatesConfig, key: str, note: str = "") -> Gate:
    least = getattr(config, key)
    outcome: Any = "passed" if found >= least else "failed"
    text = f"at least {shortest(least)}"
    return Gate(name, number_beside(found, least), text, outcome, f"gates.{key}", note)


def _at_most(name: str, found: float, config: GatesConfig, key: str, note: str = "") -> Gate:
    most = getattr(config, key)
    outcome: Any = "passed" if found <= most else "failed"
    return Gate(
        name, number_beside(found, most), f"at most {shortest(most)}", outcome, f"gates.{key}", note
    )


def _none(name: str, found: int, tried: int) -> Gate:
    """A gate without a threshold: a list is right, or the publication is held back."""
    if not tried:
        return Gate(name, None, "none", "skipped", note="there are no such lists")
    return Gate(name, found, "none", "failed" if found else "passed",
                note=f"of {tried:,} that were made anew")  # fmt: skip


def _skipped(name: str, config: GatesConfig, key: str, note: str) -> Gate:
    """A gate that has too little to judge by: it neither passes nor holds back."""
    expected = f"at {'least' if key.startswith('min') else 'most'} {shortest(getattr(config, key))}"
    return Gate(name, None, expected, "skipped", f"gates.{key}", note)


def _not_evaluated(name: str, config: GatesConfig, note: str) -> Gate:
    if not config.require_evaluation:
        return _skipped(name, config, "min_gain", note)
    key = "gates.require_evaluation"
    return Gate(name, "no evaluation", "an evaluation", "failed", key, note)
