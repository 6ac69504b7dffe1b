"""What all configurations share: conversion to plain values, digests, and checks of values."""

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from visrec.errors import InputError

SEEDS = "[0, 2147483647]"  # what numpy, torch, scikit-learn and Optuna all accept
WIDTHS = "[1, 65536]"  # of a layer or a vector
COUNTS = "[1, 2147483647]"


def plain(config: Any, non_finite: Callable[[float], Any] = lambda _: None) -> Any:
    """A dataclass as dicts, lists and scalars, for JSON and YAML.

    Args:
        config: a dataclass, or a value of its fields; Any, because this function takes it apart.
        non_finite: maps NaN and infinities, which JSON does not have; to None by default.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return plain(values, non_finite)
    if isinstance(config, dict):
        return {key: plain(value, non_finite) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value, non_finite) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        return non_finite(config)
    return config


def nan_if_null(number: float | None) -> float:
    """A number that `plain` wrote and JSON gave back: NaN and infinities were stored as null."""
    return math.nan if number is None else number


def digest(*values: Any) -> str:
    """16 hexadecimal digits that depend on all of the values."""
    # `json` writes NaN and infinities as unquoted words, so they differ from any string.
    text = json.dumps(plain(values, non_finite=lambda number: number), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_fields(config: Any, section: str, **intervals: str) -> None:
    """Checks the values of a configuration.

    A number must be in the interval of its field, which NaN never is. A field of type Literal must
    have one of its values.

    Args:
        config: a dataclass.
        section: the prefix of its fields on the command line, such as `train` for --train.epochs;
            empty for the fields of a job itself.
        intervals: for each numeric field, or for each dict of numbers, the interval of its
            values in the usual notation: "[0, 1)" includes 0 and excludes 1.

    Raises:
        InputError: names the key, the value and what was expected.
    """
    for name, choices in _literals(config.__class__).items():
        if (value := getattr(config, name)) not in choices:
            raise _refused(section, name, value, f"one of {', '.join(map(str, choices))}")
    for field, interval in intervals.items():
        kinds = _kinds(config.__class__)[field]
        for name, value in _values(field, getattr(config, field)):
            if value is None and type(None) in kinds:
                continue
            if not _is_number(value, float in kinds) or not _lies_in(value, interval):
                kind = "number" if float in kinds else "whole number"
                raise _refused(section, name, value, f"a {kind} in {interval}")


def _values(field: str, value: Any) -> list[tuple[str, Any]]:
    """A field's key and value, or the keys and values of a field that is a dict."""
    if not isinstance(value, dict):
        return [(field, value)]
    return [(f"{field}.{key}", entry) for key, entry in value.items()]


def _refused(section: str, name: str, value: Any, expected: str) -> InputError:
    key = f"{section}.{name}" if section else name
    return InputError(f"Found --{key} {value}; expected {expected}.")


def _is_number(value: Any, allow_float: bool) -> bool:
    kinds = int | float if allow_float else int
    return isinstance(value, kinds) and not isinstance(value, bool)


def _lies_in(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


@cache
def _kinds(config: type) -> dict[str, tuple[Any, ...]]:
    """The type of each field as a tuple, or the types in a union or a dict."""
    return {
        name: get_args(hint) if get_origin(hint) in (Union, types.UnionType, dict) else (hint,)
        for name, hint in get_type_hints(config).items()
    }


@cache
def _literals(config: type) -> dict[str, tuple[Any, ...]]:
    """The allowed values of each field of type Literal."""
    hints = get_type_hints(config).items()
    return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}
