"""Search spaces as data: dotted keys of the training configuration, each with a domain of values.

    train.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
    model.feature_dropout: {uniform: [0.0, 0.7]}
    train.batch_size: {choice: [256, 512, 1024]}

Values are sampled from the seed and the trial's number alone, so that a sweep that is resumed after
a kill samples the same values again.
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
from visrec.yaml_text import load_yaml

Values = Mapping[str, Any]  # whatever YAML can hold, by key

# The field of a recipe for each section, the first part of a key.
_SECTIONS = {"model": "model_config", "sampling": "sampling", "train": "train"}
_BUDGET = "train.epochs"  # not searched: the scheduler decides how many epochs a trial gets


@dataclass(frozen=True)
class Range:
    """A float between two bounds, sampled uniformly, or uniformly in its logarithm."""

    low: float
    high: float
    log: bool

    def sample(self, random: np.random.Generator) -> float:
        if not self.log:
            return float(random.uniform(self.low, self.high))
        value = math.exp(random.uniform(math.log(self.low), math.log(self.high)))
        return min(max(value, self.low), self.high)  # exp(log(x)) may differ from x by rounding

    def contains(self, value: object) -> bool:
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def checked_values(self) -> tuple[object, ...]:
        """The values to check: if a configuration accepts these, it accepts all of the domain."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of several values, all equally likely."""

    values: tuple[object, ...]

    def sample(self, random: np.random.Generator) -> object:
        return self.values[int(random.integers(len(self.values)))]

    def contains(self, value: object) -> bool:
        return value in self.values

    @property
    def checked_values(self) -> tuple[object, ...]:
        return self.values


Space = Mapping[str, Range | Choice]


def load_space(uri: str) -> Space:
    """A space from a YAML file.

    Raises:
        InputError: the file is missing or is not YAML, or a key stands twice or is malformed.
    """
    try:
        domains = load_yaml(read_uri(uri))
    except StorageError as error:
        raise _error(f"{error} --space names the search space.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _error(f"{uri} is not YAML: {error} (--space names the file.)") from error
    if not isinstance(domains, dict) or not domains:
        raise _error(
            f"{uri} holds no search space; expected keys such as train.learning_rate, each with "
            "log_uniform, uniform or choice. --space names the file."
        )
    named = {str(key): given for key, given in domains.items()}  # YAML may mix types of keys
    return {key: _domain(uri, key, given) for key, given in sorted(named.items())}


def _error(message: str) -> InputError:
    """An error in the file that --space names."""
    return InputError(message, key="space")


def _domain(uri: str, key: str, given: object) -> Range | Choice:
    domains = list(given.items()) if isinstance(given, dict) else []
    kind, listed = domains[0] if len(domains) == 1 else (None, None)
    if kind not in ("log_uniform", "uniform", "choice"):
        raise _error(
            f"{uri}: found {key}: {given}; expected one of log_uniform: [low, high], "
            "uniform: [low, high], choice: [values]."
        )
    if not isinstance(listed, list):
        raise _error(f"{uri}: found {key}: {kind}: {listed}; expected a list.")
    if kind == "choice":
        if not listed:
            raise _error(f"{uri}: found {key}: choice: []; expected at least one value.")
        return Choice(tuple(listed))
    return _range(uri, key, kind, listed)


def _range(uri: str, key: str, kind: str, listed: Sequence[Any]) -> Range:
    prefix = f"{uri}: found {key}: {kind}: {listed}; expected"
    if len(listed) != 2 or not all(_has_type(bound, float) for bound in listed):
        raise _error(f"{prefix} two numbers. YAML reads 1e-4 as text; write 1.0e-4.")
    low, high = (float(bound) for bound in listed)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise _error(f"{prefix} a finite lower bound below a finite upper bound.")
    if kind == "log_uniform" and low <= 0:
        raise _error(f"{prefix} bounds above 0.")
    return Range(low, high, log=kind == "log_uniform")


def check_space(space: Space, recipe: TrainingRecipe) -> None:
    """Checks a space against the configuration that it varies.

    Raises:
        InputError: a key is not one of this model's configuration, or cannot have one of its
            values.
    """
    type_of_key = _key_types(recipe)
    for key, domain in space.items():
        if key not in type_of_key:
            raise _error(
                f"Found {key!r} in the search space; expected keys of {recipe.model_name} among "
                f"{', '.join(sorted(type_of_key))}. --space names the file."
            )
        for value in domain.checked_values:
            if not _has_type(value, type_of_key[key]):
                kind = getattr(type_of_key[key], "__name__", str(type_of_key[key]))
                raise _error(
                    f"Found {value!r} for {key} in the search space; expected {kind}. "
                    "(A range gives floats; for whole numbers use a choice. "
                    "YAML reads 1e-4 as text; write 1.0e-4.)"
                )
            try:
                with_values(recipe, {key: value})
            except InputError as error:
                raise _error(f"The search space gives {key} {value!r}: {error}") from error


def _key_types(recipe: TrainingRecipe) -> dict[str, Any]:
    """The type of each key that can be searched."""
    type_of_key = {
        f"{section}.{name}": hint
        for section, attribute in _SECTIONS.items()
        for name, hint in get_type_hints(type(getattr(recipe, attribute))).items()
    }
    del type_of_key[_BUDGET]
    return type_of_key


def _has_type(value: object, hint: Any) -> bool:
    """Whether a value from YAML is of the type that a configuration declares."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts
    if origin in (Union, types.UnionType):
        return any(_has_type(value, part) for part in parts)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else origin or hint)


def sample_values(space: Space, seed: int, number: int) -> Values:
    """The values of one trial, independent of all others."""
    random = np.random.default_rng((seed, number))
    return {key: domain.sample(random) for key, domain in sorted(space.items())}


def values_in(space: Space, recipe: TrainingRecipe) -> Values:
    """The values that a recipe has for the keys of a space."""
    values = {}
    for key in sorted(space):
        section, _, name = key.partition(".")
        values[key] = getattr(getattr(recipe, _SECTIONS[section]), name)
    return values


def with_values(recipe: TrainingRecipe, values: Values) -> TrainingRecipe:
    """The recipe with some values replaced.

    Raises:
        InputError: the configuration refuses a value.
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
