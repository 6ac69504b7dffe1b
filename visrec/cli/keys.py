"""The keys of a job: which exist, which one a misspelt key meant, which values a key takes.

jsonargparse reads flags and YAML; this module states each mistake in one sentence instead.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from visrec.errors import InputError, did_you_mean
from visrec.storage.s3_settings import mask_secrets
from visrec.yaml_text import as_flag, load_yaml

KeyTypes = Mapping[str, object]  # every key of a job, and the annotation of its value
Yaml = dict[Any, Any]  # as PyYAML gives it: any key, any value

# Of these a message may show the path: it names a place, and is no token of a service.
_PLACES = ("file", "s3", "s3a", "s3n", "postgresql", "postgres", "redis", "rediss", "dynamodb")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")  # a slash may be missing
_HTTP_HOST = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?/", re.IGNORECASE)
_COMMON = ("config", "help", "print_config")  # keys of jsonargparse that every job has
_SEE_HELP = "(--help lists every key.)"
_TYPE_NAMES: dict[object, str] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def without_secrets(value: object) -> str:
    """A value of any type as messages show it: an address in it may contain a password or a
    token."""
    text = str(value)
    match = _ADDRESS.search(text)
    before = text[: match.start()] if match else text
    shown = mask_secrets(before) if "@" in before else before
    return shown + _shown_address(match) if match else shown


def _shown_address(match: re.Match[str]) -> str:
    """An address as messages show it, with all that follows it in the text."""
    text = match.string[match.start() :]
    if match[1].lower() in _PLACES and len(_ADDRESS.findall(text)) == 1:
        return mask_secrets(text)
    host = _HTTP_HOST.match(text)
    return f"{host[0] if host and '@' not in text else match[0]}..."


def config_keys(config_type: Any, prefix: str = "") -> dict[str, object]:
    """Every key of a configuration class, dotted where configurations nest, with its type."""
    keys: dict[str, object] = {}
    hints = typing.get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        key, kind = prefix + field.name, hints[field.name]
        keys |= config_keys(kind, f"{key}.") if dataclasses.is_dataclass(kind) else {key: kind}
    return keys


def check_flags(
    arguments: Sequence[str], keys: KeyTypes, explain_foreign: Callable[[str], str] = lambda _: ""
) -> None:
    """Refuses flags that are not keys, also abbreviations: a new key could change their meaning.

    Args:
        arguments: the words of the command line.
        keys: the keys of the job.
        explain_foreign: the end of a sentence about a key of another job; empty if it is unknown.

    Raises:
        InputError: names the flag, and the key that was probably meant.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.endswith("+") and typing.get_origin(keys.get(flag[2:-1])) is list:
            continue  # adds one entry to the list
        if flag.startswith("--") and flag[2:] not in _COMMON and not key_exists(flag[2:], keys):
            hint = explain_foreign(flag[2:]) or did_you_mean(flag[2:], keys, "--")
            raise InputError(_unknown_key(without_secrets(flag), hint))


def expand_groups(arguments: Sequence[str], keys: KeyTypes) -> Iterator[str]:
    """The arguments with a flag for each key of a group, such as --rules.cap=3 for
    --rules '{cap: 3}'.

    Raises:
        InputError: a group has a value that is not a mapping of keys.
    """
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        key = flag.removeprefix("--")
        nested = None if key in keys else _first_key_below(key, keys)
        if not flag.startswith("--") or not nested:
            yield word
            continue
        value = value if equals else next(words, "")
        if not value.lstrip().startswith("{"):
            raise InputError(
                f"Found {flag} {without_secrets(value)}; expected keys below it, such as "
                f"--{nested}. {_SEE_HELP}",
                key=key,
            )
        content = parse_yaml(value.encode(), flag)
        for name, given in flatten(content, keys, f"{key}."):
            yield as_flag(name, given)


def parse_yaml(data: bytes, path: str) -> Yaml:
    """The keys and values in the content of a configuration file.

    Raises:
        InputError: it is not a YAML mapping, or a key stands twice in it.
    """
    try:
        content = load_yaml(data)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {_yaml_problem(error)}", path=path) from None
    if not isinstance(content, dict | None):
        raise InputError(
            f"Found {without_secrets(repr(content))} in {path}; expected keys with values, such as "
            "workspace: shop.",
            path=path,
        )
    return content or {}


def _yaml_problem(error: yaml.YAMLError | ValueError) -> str:
    """What is wrong with a YAML file, without its lines, which PyYAML shows."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark = error.problem_mark
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})."


def check_yaml(
    path: str,
    content: Mapping[Any, object],
    keys: KeyTypes,
    explain_foreign: Callable[[str], str] = lambda _: "",
) -> None:
    """Refuses unknown keys and missing values in a YAML file.

    Args:
        path: the location of the file.
        content: the content of the file.
        keys: the keys of the job.
        explain_foreign: as in `check_flags`.

    Raises:
        InputError: names the file, the key, and the key that was probably meant.
    """
    for key, _ in flatten(content, keys):
        if not key_exists(key, keys):
            hint = explain_foreign(key) or did_you_mean(key, keys)
            found = f"the key {without_secrets(key)} in {path}"
            raise InputError(_unknown_key(found, hint), path=path, key=key)
    check_values(path, content, keys)


def check_values(path: str, content: Mapping[Any, object], keys: KeyTypes) -> None:
    """Refuses values that no key of their kind has: none at all, one for a group, a list for text.

    Args:
        path: the location of the file, or words for what the content is.
        content: the content of the file.
        keys: the keys of the job.

    Raises:
        InputError: names the file, the key and what was expected.
    """
    for key, value in flatten(content, keys):
        expected, found = None, f"{key}: {without_secrets(value)}"
        nested = None if key in keys else _first_key_below(key, keys)
        if nested and value is not None and not isinstance(value, Mapping):
            expected = f"keys below it, such as {nested}"
        elif value is None and key in keys and not _is_optional(keys[key]):
            found, expected = f"{key}: without a value", _describe(keys[key])
        elif isinstance(value, list | tuple) and key in keys and _is_text(keys[key]):
            expected = f"{_describe(keys[key])}, and no list"
        if expected:
            raise InputError(f"Found {found} in {path}; expected {expected}.", path=path, key=key)


def explain_parse_error(error: Exception, keys: KeyTypes) -> str:
    """An error of jsonargparse in one sentence: the key, the value found, what was expected."""
    text = " ".join(str(error).split())
    return (
        _explain_stray_arguments(text, keys)
        or _explain_value(text, keys)
        or f"{without_secrets(text).rstrip('.')}. {_SEE_HELP}"
    )


def _explain_stray_arguments(text: str, keys: KeyTypes) -> str | None:
    """Explains `epochs=3` without dashes; None for another error."""
    match = re.match(r"unrecognized arguments: (.*)", text)
    if not match:
        return None
    name = match[1].split()[0].lstrip("-").partition("=")[0]
    return _unknown_key(repr(without_secrets(match[1])), did_you_mean(name, keys, "--"))


def _explain_value(text: str, keys: KeyTypes) -> str | None:
    """Explains `--train.epochs many`; None for another error."""
    key = re.match(r'Parser key "([^"]+)": (?:Expected|Does not validate)', text)
    value = re.search(r"(?:Got value|Given value): ?(.*)$", text)
    if not key or not value or key[1] not in keys:
        return None
    kind = keys[key[1]]
    hint = did_you_mean(value[1], typing.get_args(kind)) if _is_literal(kind) else ""
    shown = without_secrets(value[1]) or repr("")
    found = f"Found --{key[1]} {shown}; expected {_describe(kind)}"
    return f"{found}{hint or '.'} {_SEE_HELP}"


def _unknown_key(found: str, hint: str) -> str:
    return f"Found {found}{hint or ', which is not a key of this job.'} {_SEE_HELP}"


def key_exists(key: str, keys: KeyTypes) -> bool:
    """Whether this is a key, a group of keys, or an entry of a key whose value is a mapping."""
    return has_value(key, keys) or _first_key_below(key, keys) is not None


def has_value(key: str, keys: KeyTypes) -> bool:
    """Whether this is a key, or an entry of a key whose value is a mapping."""
    return key in keys or any(
        _is_mapping(kind) and key.startswith(f"{name}.") for name, kind in keys.items()
    )


def _first_key_below(group: str, keys: KeyTypes) -> str | None:
    return next((key for key in keys if key.startswith(f"{group}.")), None)


def _is_mapping(kind: object) -> bool:
    return typing.get_origin(kind) is dict or kind is dict


def _is_literal(kind: object) -> bool:
    return typing.get_origin(kind) is typing.Literal


def _is_text(kind: object) -> bool:
    """Whether a key has text or nothing; jsonargparse would read a list as text in brackets."""
    return kind in (str, str | None)


def _is_optional(kind: object) -> bool:
    return type(None) in typing.get_args(kind)


def flatten(
    content: Mapping[Any, object], keys: KeyTypes, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested mappings."""
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not _is_mapping(keys.get(key)):
            yield from flatten(value, keys, f"{key}.")
        else:
            yield key, value


def _describe(kind: object) -> str:
    """The values of a type in words."""
    if _is_literal(kind):
        return _join_with_or([str(choice) for choice in typing.get_args(kind)])
    if typing.get_origin(kind) is list:
        return "a list, such as [first, second]"
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return _join_with_or([*map(_describe, parts), "null"])
    if _is_mapping(kind):
        return "a mapping such as '{a: b, c: d}'"
    return _TYPE_NAMES.get(kind) or f"a value of the type {str(kind).removeprefix('typing.')}"


def _join_with_or(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last
