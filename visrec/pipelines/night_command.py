"""Commands as a user would type them."""

import shlex
from collections.abc import Mapping
from typing import Any

from visrec.cli.keys import config_keys
from visrec.cli.workspace_keys import WorkspaceKeys, value_of
from visrec.yaml_text import flow_yaml

_POSITIONAL = ("check", "init", "doctor")  # shown with the workspace as their first word


def visrec_command(command: str, workspace: str, *switches: str, **keys: Any) -> str:
    """A command on a workspace.

    Args:
        command: its name.
        workspace: its location.
        switches: flags without a value.
        keys: dotted keys with values of any type that YAML has.
    """
    words = [] if command in _POSITIONAL else ["--workspace"]
    flags = [flag(key, value) for key, value in keys.items()]
    return " ".join([shlex.join(["visrec", command, *words, workspace, *switches]), *flags])


def flag(key: str, value: Any) -> str:
    """A key and its value, which may be any of YAML, as a shell takes them."""
    return f"--{key} {shlex.quote(value if isinstance(value, str) else flow_yaml(value))}"


def changed_keys(keys: WorkspaceKeys, defaults: WorkspaceKeys) -> Mapping[str, Any]:
    """The dotted keys whose values differ from those of `defaults`."""
    values = {key: value_of(keys, key) for key in config_keys(WorkspaceKeys)}
    return {key: value for key, value in values.items() if value != value_of(defaults, key)}
