"""What every configuration shares: its plain form, its digest, and the check of its values."""

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from visrec.errors import InputError

SEEDS = "[0, 2147483647]"  # what numpy, torch, scikit-learn and Optuna all take
WIDTHS = "[1, 65536]"  # of a layer or a vector
COUNTS = "[1, 2147483647]"


def plain(config: Any, unspeakable: Callable[[float], Any] = lambda _: None) -> Any:
    """A dataclass as dicts, lists and scalars, for JSON and YAML.

    Args:
        config: the dataclass, or a value of one.
        unspeakable: what stands for a number that JSON cannot say; None by default.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return plain(values, unspeakable)
    if isinstance(config, dict):
        return {key: plain(value, unspeakable) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value, unspeakable) for value in config]
    if isinstance(config, float) and not math.isfinite(config):
        return unspeakable(config)
    return config


def digest(*values: Any) -> str:
    """16 hexadecimal digits that change with any of the values."""
    # `json` writes infinity and NaN as words without quotes, which no text becomes.
    text = json.dumps(plain(values, unspeakable=lambda number: number), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_fields(config: Any, section: str, **intervals: str) -> None:
    """Refuses values that a configuration can never have.

    A number must lie in the interval of its field, which no NaN does; a field of type Literal must
    be one of its values.

    Args:
        config: a dataclass.
        section: before the fields' names on the command line, `train` for --train.epochs; empty for
            the fields of a job itself.
        intervals: of each numeric field, or of the values of a dict, in the usual notation:
            "[0, 1)" has 0 in it and not 1.

    Raises:
        InputError: names the key, the value found, and what was expected.
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
    """A field's value with its key, or each value of a dict with its own."""
    if not isinstance(value, dict):
        return [(field, value)]
    return [(f"{field}.{key}", entry) for key, entry in value.items()]


def _refused(section: str, name: str, value: Any, expected: str) -> InputError:
    key = f"{section}.{name}" if section else name
    return InputError(f"Found --{key} {value}; expected {expected}.")


def _is_number(value: Any, fractions: bool) -> bool:
    kinds = int | float if fractions else int
    return isinstance(value, kinds) and not isinstance(value, bool)


def _lies_in(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


@cache
def _kinds(config: type) -> dict[str, tuple[Any, ...]]:
    """The type of each field, or the types in a union or a dict."""
    return {
        name: get_args(hint) if get_origin(hint) in (Union, types.UnionType, dict) else (hint,)
        for name, hint in get_type_hints(config).items()
    }


@cache
def _literals(config: type) -> dict[str, tuple[Any, ...]]:
    """The values of each field of type Literal."""
    hints = get_type_hints(config).items()
    return {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}
