"""YAML as visrec reads and writes it: no key stands twice, and text stays text."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import yaml

_PLAIN_KEY = re.compile(r"[\w.-]{1,80}")


def load_yaml(data: bytes) -> Any:
    """The content of a YAML file, of any type that YAML has.

    Raises:
        ValueError: it is not UTF-8, or it has an impossible date.
        yaml.YAMLError: it is not YAML, or a key stands twice in it.
    """
    text = data.decode()
    if node := yaml.compose(text, yaml.SafeLoader):
        _refuse_repeated_keys(node)
    return yaml.safe_load(text)


def _refuse_repeated_keys(node: yaml.Node) -> None:
    """PyYAML keeps only the last one, and the keys below the first one would be lost."""
    first: dict[str, yaml.Mark] = {}
    for key, mark in _dotted_keys(node):
        if key in first:
            # A key may be anything, such as an address with a password.
            shown = key if _PLAIN_KEY.fullmatch(key) else "a key"
            raise yaml.MarkedYAMLError(
                problem=f"found {shown} for the second time, after line {first[key].line + 1}; "
                "expected it once, with all that belongs below it",
                problem_mark=mark,
            )
        first[key] = mark


def _dotted_keys(node: yaml.Node, prefix: str = "") -> Iterator[tuple[str, yaml.Mark]]:
    """All keys and where they stand: `train.epochs` is also `epochs` below `train`."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark
            yield from _dotted_keys(value, f"{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _dotted_keys(value, f"{prefix}{number}.")


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e5, which is text in YAML 1.1, but a number for jsonargparse; writes
    numbers and text of numpy, as they come from a DataFrame."""

    def represent_data(self, data: Any) -> yaml.Node:
        node: yaml.Node = super().represent_data(
            data.item() if isinstance(data, np.generic) else data
        )
        return node


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9][0-9_]*)?\.?[0-9_]*[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def dump_yaml(content: Any) -> str:
    """A value of any type that YAML has as the content of a file."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def flow_yaml(value: Any) -> str:
    """A value of any type as YAML on one line."""
    text = yaml.dump(
        [value],
        Dumper=_Dumper,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=1_000_000,
    )
    return text.strip().removeprefix("[").removesuffix("]")


def as_flag(key: str, value: Any) -> str:
    """A dotted key with a value of any type as one argument of the command line."""
    is_yaml = value is None or isinstance(value, bool | dict | list | tuple)
    return f"--{key}={flow_yaml(value) if is_yaml else value}"
