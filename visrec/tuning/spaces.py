"""Search spaces as data: dotted keys of the training configuration, and what each may be.

    train.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
    model.feature_dropout: {uniform: [0.0, 0.7]}
    train.batch_size: {choice: [256, 512, 1024]}

A value is drawn from the seed and the trial's number alone, so a sweep that goes on after a kill
draws again what it drew.
"""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import yaml

from visrec.errors import InputError, StorageError
from visrec.storage.store import read_uri
from visrec.training.fit import TrainingRecipe

Values = Mapping[str, Any]

# Of the first part of a key: where a recipe keeps it.
_SECTIONS = {"model": "model_config", "sampling": "sampling", "train": "train"}
_BUDGET = "train.epochs"  # what the scheduler hands out: trials differ in it anyway


@dataclass(frozen=True)
class Range:
    """A float between two bounds, drawn uniformly, or so that its logarithm is."""

    low: float
    high: float
    log: bool

    def draw(self, random: np.random.Generator) -> float:
        if not self.log:
            return float(random.uniform(self.low, self.high))
        drawn = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        return min(max(drawn, self.low), self.high)  # exp(log(x)) may miss x by a rounding

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all others when they are checked."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        return self.values[int(random.integers(len(self.values)))]

    def holds(self, value: Any) -> bool:
        return value in self.values

    @property
    def ends(self) -> tuple[Any, ...]:
        return self.values


Space = Mapping[str, Range | Choice]


def load_space(uri: str) -> Space:
    """A space from YAML.

    Raises:
        InputError: the file is missing, no YAML, or a key's values are not given as they should be.
    """
    try:
        found = yaml.safe_load(read_uri(uri))
    except StorageError as error:
        raise InputError(f"{error} --space names the search space.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{uri} is not YAML: {error} (--space names the file.)") from error
    if not isinstance(found, dict) or not found:
        raise InputError(
            f"{uri} holds no search space; expected keys such as train.learning_rate, each with "
            "log_uniform, uniform or choice. --space names the file."
        )
    return {str(key): _domain(uri, str(key), given) for key, given in sorted(found.items())}


def _domain(uri: str, key: str, given: Any) -> Range | Choice:
    kind, listed = next(iter(given.items())) if isinstance(given, dict) and given else (None, None)
    if kind not in ("log_uniform", "uniform", "choice") or len(given) > 1:
        raise InputError(
            f"{uri}: found {key}: {given}; expected one of log_uniform: [low, high], "
            "uniform: [low, high], choice: [values]."
        )
    if not isinstance(listed, list):
        raise InputError(f"{uri}: found {key}: {kind}: {listed}; expected a list.")
    if kind == "choice":
        if not listed:
            raise InputError(f"{uri}: found {key}: choice: []; expected at least one value.")
        return Choice(tuple(listed))
    return _range(uri, key, kind, listed)


def _range(uri: str, key: str, kind: str, listed: Sequence[Any]) -> Range:
    shown = f"{uri}: found {key}: {kind}: {listed}; expected"
    if len(listed) != 2 or not all(_fits(bound, float) for bound in listed):
        raise InputError(f"{shown} two numbers. YAML reads 1e-4 as a word: write 1.0e-4.")
    low, high = (float(bound) for bound in listed)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{shown} a finite low bound below a finite high one.")
    if kind == "log_uniform" and low <= 0:
        raise InputError(f"{shown} bounds above 0.")
    return Range(low, high, log=kind == "log_uniform")


def check_space(space: Space, recipe: TrainingRecipe) -> None:
    """Holds the space against the configuration that it varies.

    Raises:
        InputError: a key is not of this model's configuration, or a value cannot be its value.
    """
    known = _hints(recipe)
    for key, domain in space.items():
        if key not in known:
            raise InputError(
                f"Found {key!r} in the search space; expected keys of {recipe.model_name} among "
                f"{', '.join(sorted(known))}. --space names the file."
            )
        for value in domain.ends:
            if not _fits(value, known[key]):
                kind = getattr(known[key], "__name__", str(known[key]))
                raise InputError(
                    f"Found {value!r} for {key} in the search space; expected {kind}. "
                    "(A range gives floats: whole numbers are listed by choice. "
                    "YAML reads 1e-4 as a word: write 1.0e-4.)"
                )
            try:
                with_values(recipe, {key: value})
            except InputError as error:
                raise InputError(f"The search space gives {key} {value!r}: {error}") from error


def _hints(recipe: TrainingRecipe) -> dict[str, Any]:
    """The type of each key that can be searched."""
    found = {
        f"{section}.{name}": hint
        for section, attribute in _SECTIONS.items()
        for name, hint in get_type_hints(type(getattr(recipe, attribute))).items()
    }
    del found[_BUDGET]
    return found


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value that YAML gave is of a configuration's type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def draw(space: Space, seed: int, number: int) -> Values:
    """The values of one trial, whatever the others are."""
    random = np.random.default_rng((seed, number))
    return {key: domain.draw(random) for key, domain in sorted(space.items())}


def values_of(space: Space, recipe: TrainingRecipe) -> Values:
    """What a recipe has where the space has a choice."""
    found = {}
    for key in sorted(space):
        section, _, name = key.partition(".")
        found[key] = getattr(getattr(recipe, _SECTIONS[section]), name)
    return found


def with_values(recipe: TrainingRecipe, values: Values) -> TrainingRecipe:
    """A recipe with these values in place of its own.

    Raises:
        InputError: the configuration refuses them.
    """
    changes: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        changes.setdefault(_SECTIONS[section], {})[name] = value
    replaced = {
        attribute: dataclasses.replace(getattr(recipe, attribute), **named)
        for attribute, named in changes.items()
    }
    return dataclasses.replace(recipe, **replaced)
