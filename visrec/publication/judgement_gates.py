"""Gates on whether a run is like other runs, each with a threshold of `GatesConfig`.

Those on the held-out set are in `held_out_gates.py`.

The gates on concentration, overlap and score drift look at the model's own lists only. The lists of
cold users say nothing about the model.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visrec.publication.gate import Gate, at_least, at_most, skipped
from visrec.publication.gate_context import GateContext, GatesConfig, share
from visrec.publication.held_out_gates import held_out_gates
from visrec.publication.manifest import RunManifest
from visrec.publication.verify import ListChecks
from visrec.text import format_threshold

_MIN_ARTISTS = 10  # of fewer artists, one may well have most of what users like
_COUNTED_NAMES = {"items": "available items", "interactions": "interactions with items"}


def judgement_gates(checks: ListChecks, context: GateContext, config: GatesConfig) -> list[Gate]:
    """The gates that a run passes if it is like other runs.

    Args:
        checks: counts over the lists of all shards.
        context: facts about the run.
        config: the thresholds.

    Raises:
        InputError: the evaluation does not have the metric of the configuration.
    """
    gates = _feature_gates(context, config)
    gates += _concentration_gates(checks, context, config)
    gates += _gates_since_last(checks, context, config)
    if context.kind == "user_to_item":
        gates += held_out_gates(context, config)
    return gates


# The features: do more items lack one than in the last publication?


def _feature_gates(context: GateContext, config: GatesConfig) -> list[Gate]:
    gates = []
    rise_key = "max_without_feature_rise"
    is_of_users = context.kind == "user_to_item"
    for counted in ("items", "interactions") if is_of_users else ("items",):
        found, counts = context.without_feature[counted], context.feature_counts[counted]
        name = f"{_COUNTED_NAMES[counted]} without a feature"
        note = f"{counts.without_feature:,} of {counts.total:,}"
        if config.max_without_feature is not None:
            gates.append(_at_most(name, found, config, "max_without_feature", note))
        name = f"rise of the share of {name}"
        if context.last is None:
            why = f"{note} now; {context.why_no_last}"
            gates.append(_skipped(name, config, rise_key, why))
        else:
            before = context.last.without_feature[counted]
            note += f" now, {before:.0%} in the last publication"
            gates.append(_at_most(name, found - before, config, rise_key, note))
    return gates


# The lists: are they concentrated on few items or artists?


def _concentration_gates(
    checks: ListChecks, context: GateContext, config: GatesConfig
) -> list[Gate]:
    names = {
        "min_catalogue": "share of the catalogue that is in any list",
        "max_item_concentration": "concentration on few items",
        "max_artist_concentration": "concentration on few artists",
    }
    if config.min_catalogue is None:
        del names["min_catalogue"]
    if why := _why_no_concentration(checks, context, config):
        return [_skipped(name, config, key, why) for key, name in names.items()]
    gates = []
    if name := names.get("min_catalogue"):
        listed, entries = int(np.count_nonzero(checks.listed_N)), int(checks.listed_N.sum())
        note = f"{listed:,} of {context.available:,} items in {checks.model_lists:,} lists"
        found = listed / min(context.available, entries)
        gates.append(_at_least(name, found, config, "min_catalogue", note))
    item_gate = _item_concentration_gate(
        names["max_item_concentration"], checks.listed_N, context, config
    )
    artist_gate = _artist_concentration_gate(
        names["max_artist_concentration"], checks.listed_N, context, config
    )
    return [*gates, item_gate, artist_gate]


def _why_no_concentration(
    checks: ListChecks, context: GateContext, config: GatesConfig
) -> str | None:
    """Why the lists say nothing about concentration; None if they do."""
    if not context.personalized:
        return "the model gives everybody the same list by design"
    if checks.model_lists < config.min_lists:
        return f"{checks.model_lists:,} lists are the model's own, fewer than --gates.min_lists"
    return None if checks.listed_N.sum() else "the lists are empty"


def _item_concentration_gate(
    name: str, listed_N: npt.NDArray[np.int64], context: GateContext, config: GatesConfig
) -> Gate:
    key = "max_item_concentration"
    if 2 * context.k > context.available:
        return _skipped(name, config, key, "k is more than half of the items")
    found, listed_share = concentration(listed_N, context.available_N, context.k)
    taken = concentration(context.takers_N, np.ones(len(listed_N)), context.k)[0]
    popular = concentration(context.popular_N, context.available_N, context.k)[0]
    note = (
        f"the {context.k} most listed items have {listed_share:.0%} of the entries; concentration "
        f"{found:.3f}, of the interactions {taken:.3f}, of the most popular items for everybody "
        f"{popular:.3f}"
    )
    return _at_most(name, _rescale(found, taken, popular), config, key, note)


def _artist_concentration_gate(
    name: str, listed_N: npt.NDArray[np.int64], context: GateContext, config: GatesConfig
) -> Gate:
    key = "max_artist_concentration"
    if context.artist_N is None:
        return _skipped(name, config, key, "no item has an artist")
    has_artist_N = context.artist_N >= 0
    artist_V = context.artist_N[has_artist_N]
    listed_A = np.bincount(artist_V, weights=listed_N[has_artist_N])
    size_A = np.bincount(artist_V, weights=context.available_N[has_artist_N])
    artists = np.count_nonzero(size_A)
    if artists < _MIN_ARTISTS or not listed_A.sum():
        return _skipped(name, config, key, f"{artists} artists have available items")
    few = math.ceil(artists / 20)
    found, listed_share = concentration(listed_A, size_A, few)
    taken_A = np.bincount(artist_V, weights=context.takers_N[has_artist_N])
    taken = concentration(taken_A, np.bincount(artist_V), few)[0]
    note = (
        f"the {few} most listed of {artists:,} artists have {listed_share:.0%} of the entries; "
        f"concentration {found:.3f}, of the interactions {taken:.3f}"
    )
    return _at_most(name, _rescale(found, taken, 1.0), config, key, note)


def concentration(
    listed_G: npt.NDArray[Any], size_G: npt.NDArray[Any], few: int
) -> tuple[float, float]:
    """How far the share of the `few` most listed groups exceeds their share of the items.

    Args:
        listed_G: (G,) entries of each group, of any number type.
        size_G: (G,) items of each group, of any number type.
        few: how many groups.

    Returns:
        (concentration, share). The share is that of the groups in the entries. The concentration is
        0 if the groups have the same share of the items, or if there are no entries; and 1 if they
        have all entries.
    """
    if not listed_G.sum():
        return 0.0, 0.0
    most_listed = np.argsort(-np.asarray(listed_G, np.float64), kind="stable")[:few]
    listed_share = float(listed_G[most_listed].sum() / listed_G.sum())
    fair_share = float(size_G[most_listed].sum() / size_G.sum())
    if fair_share >= 1:
        return 0.0, listed_share
    return (listed_share - fair_share) / (1 - fair_share), listed_share


def _rescale(found: float, at_0: float, at_1: float) -> float:
    """`found` on the scale on which `at_0` is 0 and `at_1` is 1."""
    return (found - at_0) / (at_1 - at_0) if at_1 > at_0 else float(found > at_0)


# The last publication: what has changed since then?


def _gates_since_last(checks: ListChecks, context: GateContext, config: GatesConfig) -> list[Gate]:
    noun = context.query_noun
    names = {
        "min_queries_of_last": f"{noun}, as a share of the last publication's",
        "min_available_of_last": "available items, as a share of the last publication's",
        "max_cold_rise": "rise of the share of users with the fallback list",
        "min_overlap": "overlap with the lists of the last publication, beyond chance",
        "max_score_drift": "drift of the best scores since the last publication",
    }
    if noun == "items":
        del names["max_cold_rise"]
    if context.last is None:
        return [_skipped(name, config, key, context.why_no_last) for key, name in names.items()]
    since_last = _SinceLast(checks, context, context.last, config.min_lists)
    found = {
        "min_queries_of_last": _ratio(checks.queries, context.last.queries),
        "min_available_of_last": _ratio(context.available, context.last.available),
        "max_cold_rise": since_last.cold_rise(),
        "min_overlap": since_last.overlap(),
        "max_score_drift": since_last.score_drift(),
    }
    return [_gate(name, found[key], config, key) for key, name in names.items()]


def _ratio(now: int, before: int) -> tuple[float, str]:
    return share(now, before), f"{now:,} now, {before:,} in it"


@dataclass(frozen=True)
class _SinceLast:
    """What has changed since the last publication.

    Each method returns what it found and a note, or why the gate is skipped.

    Attributes:
        checks: counts over the lists of all shards.
        context: facts about the run.
        last: the manifest of the last publication.
        min_lists: with fewer lists than this in both, lists and scores are not compared.
    """

    checks: ListChecks
    context: GateContext
    last: RunManifest
    min_lists: int

    def cold_rise(self) -> tuple[float, str]:
        now = share(self.checks.fallback_lists, self.checks.queries)
        before = share(self.last.cold_users, self.last.queries)
        return now - before, f"{now:.0%} now, {before:.0%} in the last publication"

    def overlap(self) -> tuple[float, str] | str:
        """The share of the last lists that is kept, from chance (0) to all (1)."""
        checks, context, last_name = self.checks, self.context, self.last.model_name
        chance = context.k / max(context.available, 1)
        if why := self._why_too_few():
            return why
        if 2 * chance > 1:
            return "k is more than half of the items"
        if not checks.overlap_possible:
            return "the lists are empty"
        if context.choice is not None and last_name != context.model_name:
            return f"it was of {last_name}, and the evaluation chose {context.model_name} now"
        kept = checks.overlap / checks.overlap_possible
        return (kept - chance) / (
            1 - chance
        ), f"{kept:.0%} of the items of {checks.compared:,} lists"

    def score_drift(self) -> tuple[float, str] | str:
        """The change of the best scores: of their mean or of their spread, the larger."""
        checks, lists = self.checks, self.checks.scores_compared
        if self.last.inputs["model"] != self.context.model_digest:
            return "it was of another model, whose scores have another scale"
        if why := self._why_too_few():
            return why
        if lists < self.min_lists:
            return f"{lists:,} lists have scores in both"
        now, spread = _mean_and_deviation(checks.score_sum, checks.score_squares, lists)
        before, last_spread = _mean_and_deviation(
            checks.last_score_sum, checks.last_score_squares, lists
        )
        if last_spread <= 1e-3 * abs(before):
            return "the scores were all alike"
        ratio = spread / last_spread
        moved, widened = abs(now - before) / last_spread, max(ratio, 1 / max(ratio, 1e-3)) - 1
        note = (
            f"mean {before:.4g} with deviation {last_spread:.4g}, now {now:.4g} with {spread:.4g}"
        )
        return max(moved, widened), note

    def _why_too_few(self) -> str | None:
        """Why the lists are not compared; None if there are enough."""
        compared = self.checks.compared
        if compared >= self.min_lists:
            return None
        noun = self.context.query_noun
        return f"{compared:,} {noun} have a list in both, fewer than --gates.min_lists"


def _mean_and_deviation(total: float, squares: float, count: int) -> tuple[float, float]:
    mean = total / count
    return mean, math.sqrt(max(squares / count - mean * mean, 0.0))


# One gate, with the threshold of a key.


def _gate(name: str, found: tuple[float, str] | str, config: GatesConfig, key: str) -> Gate:
    """The gate of a value and its note, or of the reason why it is skipped."""
    if isinstance(found, str):
        return _skipped(name, config, key, found)
    check = _at_least if key.startswith("min") else _at_most
    return check(name, found[0], config, key, found[1])


def _at_least(name: str, found: float, config: GatesConfig, key: str, note: str) -> Gate:
    return at_least(name, found, getattr(config, key), f"gates.{key}", note)


def _at_most(name: str, found: float, config: GatesConfig, key: str, note: str) -> Gate:
    return at_most(name, found, getattr(config, key), f"gates.{key}", note)


def _skipped(name: str, config: GatesConfig, key: str, why: str) -> Gate:
    side = "least" if key.startswith("min") else "most"
    expected = f"at {side} {format_threshold(getattr(config, key))}"
    return skipped(name, expected, why, f"gates.{key}")
