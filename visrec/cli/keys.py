"""The keys of a job: which there are, what a misspelt one was meant to be, what a value may be.

jsonargparse reads flags and YAML; what it would say of a mistake is said here in one sentence.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from visrec.errors import InputError, did_you_mean

_ALWAYS = ("config", "help", "print_config")
_ALL_KEYS = "(--help lists every key.)"
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
Keys = Mapping[str, Any]


def keys_of(config_type: Any, prefix: str = "") -> dict[str, Any]:
    """Every key of a configuration with dots between its parts, and the type of its value."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        name, kind = prefix + field.name, hints[field.name]
        found |= keys_of(kind, f"{name}.") if dataclasses.is_dataclass(kind) else {name: kind}
    return found


def check_flags(arguments: Sequence[str], keys: Keys) -> None:
    """Refuses flags that are no keys: shortened ones too, for a new key may change their meaning.

    Raises:
        InputError: with the key that was probably meant.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--") and flag[2:] not in _ALWAYS and not _is_known(flag[2:], keys):
            raise InputError(_unknown(flag, did_you_mean(flag[2:], keys, "--")))


def check_yaml(path: str, content: Mapping[Any, Any], keys: Keys) -> None:
    """The same for the keys of a YAML file.

    Raises:
        InputError: with the file and the key that was probably meant.
    """
    for key, value in _flat(content, keys):
        if not _is_known(key, keys):
            raise InputError(_unknown(f"the key {key} in {path}", did_you_mean(key, keys)))
        below = next((name for name in keys if name.startswith(f"{key}.")), None)
        if below and value is not None and not isinstance(value, Mapping):
            raise InputError(f"Found {key}: {value} in {path}; expected keys below it, as {below}.")
        if value is None and key in keys and not _is_optional(keys[key]):
            raise InputError(
                f"Found {key}: without a value in {path}; expected {_in_words(keys[key])}."
            )


def filled(content: Mapping[Any, Any], keys: Keys, prefix: str = "") -> dict[Any, Any]:
    """The content of a YAML file without groups of keys that have no key below them."""
    found = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key not in keys and isinstance(value, Mapping):
            value = filled(value, keys, f"{key}.")
        if key in keys or value:
            found[name] = value
    return found


def explained(error: Exception, keys: Keys) -> str:
    """What jsonargparse found, in one sentence with the key, the value and what it may be."""
    text = " ".join(str(error).split())
    stray = re.match(r"unrecognized arguments: (.*)", text)
    if stray:
        first = stray[1].split()[0]
        name = first.lstrip("-").partition("=")[0]
        return _unknown(repr(stray[1]), did_you_mean(name, keys, "--"))
    section = re.match(r'Parser key "([^"]+)": Unable to load config .([^"\']*)', text)
    below = next((name for name in keys if section and name.startswith(f"{section[1]}.")), None)
    if section and below:
        return (
            f"Found --{section[1]} {section[2]}; expected keys below it, as --{below}. {_ALL_KEYS}"
        )
    key = re.match(r'Parser key "([^"]+)": (?:Expected|Does not validate)', text)
    value = re.search(r"(?:Got value|Given value): ?(.*)$", text)
    if key and value and key[1] in keys:
        kind = keys[key[1]]
        hint = did_you_mean(value[1], typing.get_args(kind)) if _is_choice(kind) else ""
        found = f"Found --{key[1]} {value[1] or repr('')}; expected {_in_words(kind)}"
        return f"{found}{hint or '.'} {_ALL_KEYS}"
    return f"{text.rstrip('.')}. {_ALL_KEYS}"


def _unknown(found: str, hint: str) -> str:
    return f"Found {found}{hint or ', which is not a key of this job.'} {_ALL_KEYS}"


def _is_known(key: str, keys: Keys) -> bool:
    """Whether it is a key, a group of them, or an entry of a key that holds a mapping."""
    if key in keys or any(known.startswith(f"{key}.") for known in keys):
        return True
    return any(_is_mapping(kind) and key.startswith(f"{known}.") for known, kind in keys.items())


def _is_mapping(kind: Any) -> bool:
    return typing.get_origin(kind) is dict or kind is dict


def _is_choice(kind: Any) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _flat(content: Mapping[Any, Any], keys: Keys, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of nested mappings, down to those that have a value."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not _is_mapping(keys.get(key)):
            yield from _flat(value, keys, f"{key}.")
        else:
            yield key, value


def _in_words(kind: Any) -> str:
    if _is_choice(kind):
        return _either([str(choice) for choice in typing.get_args(kind)])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return _either([*map(_in_words, parts), "null"])
    return _WORDS.get(kind) or f"a value of the type {str(kind).removeprefix('typing.')}"


def _either(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
