"""Flags and YAML files to a job's configuration.

Flags override YAML files, and YAML files override defaults. jsonargparse does the parsing;
`visrec.cli.keys` checks the keys first, so that a typo is answered with the key that was meant.
"""

import dataclasses
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from visrec.cli.job import Job, JobConfig, ModelChoice
from visrec.cli.keys import (
    Keys,
    check_flags,
    check_yaml,
    config_keys,
    drop_empty_groups,
    explain_parse_error,
)
from visrec.errors import InputError, did_you_mean
from visrec.models import MODELS

Yaml = dict[Any, Any]  # as PyYAML gives it: any key, any value


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps each example of a job's docstring on its own line."""


def parse(job_type: type[Job], arguments: Sequence[str]) -> Job:
    """A job's configuration from its command line and the YAML files named there.

    Args:
        job_type: the configuration class of the job.
        arguments: of the command line, without the program's name.

    Raises:
        InputError: a key is unknown or a value is invalid.
    """
    arguments = _normalize(arguments, job_type)
    files = [(path, _read_yaml(path)) for flag, path in flags(arguments) if flag == "--config"]
    has_model = any(field.type is ModelChoice for field in dataclasses.fields(job_type))
    model = _model_name(arguments, files) if has_model else None
    keys = _job_keys(job_type, model)
    for path, content in files:
        check_yaml(path, content, keys)
    check_flags(arguments, keys)
    arguments = list(_inline_yaml(arguments, [content for _, content in files], keys))
    parser = _parser(job_type, model)
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise InputError(explain_parse_error(error, keys)) from error
    if model:
        values["model"].pop("name")
    # A namespace hides keys that share the name of one of its methods, such as items; a dict does
    # not.
    fields = parser.instantiate(values).as_dict()
    if model:
        fields["model"] = ModelChoice(model, fields["model"])
    fields.pop("config")
    return job_type(**fields)


def flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument that may be a flag with its value: after `=`, or the next argument."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        yield flag, value if equals else following


def _job_keys(job_type: type[JobConfig], model: str | None) -> Keys:
    """The keys of a job, with those of the model's own configuration under `model.`."""
    keys = config_keys(job_type)
    if not model:
        return keys
    keys = {key: kind for key, kind in keys.items() if not key.startswith("model.")}
    return keys | {"model.name": str, **config_keys(MODELS[model].Config, "model.")}


def _parser(job_type: type[JobConfig], model: str | None) -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        usage="%(prog)s [--config FILE] [--key value ...]",
        formatter_class=_HelpFormatter,
        description=sys.modules[job_type.__module__].__doc__,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these keys")
    parser.add_class_arguments(job_type, skip={"model"} if model else None)
    if model:
        parser.add_argument(
            "--model.name", default=model, help=f"one of {', '.join(sorted(MODELS))}"
        )
        parser.add_class_arguments(MODELS[model].Config, "model")
        overrides = MODELS[model].default_overrides.to_dict()
        parser.set_defaults({f"train.{name}": value for name, value in overrides.items()})
    return parser


def _normalize(arguments: Sequence[str], job_type: type[JobConfig]) -> list[str]:
    """The arguments with `true` after a bare switch such as --local, and --as-of as --as_of."""
    arguments = [_underscore(argument) for argument in arguments]
    switches = {f"--{key}" for key, kind in config_keys(job_type).items() if kind is bool}
    normalized = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        is_bare = argument in switches and following.startswith("-")
        normalized += [argument, "true"] if is_bare else [argument]
    return normalized


def _underscore(argument: str) -> str:
    """A flag with underscores in its name; values, and values after `=`, stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.removeprefix("--").partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _inline_yaml(arguments: Sequence[str], contents: Sequence[Yaml], keys: Keys) -> Iterator[str]:
    """The arguments with the content of each --config file in place of its path.

    A file without any key, as when everything is commented out, is dropped: jsonargparse would
    refuse it.
    """
    files, is_path = iter(contents), False
    for argument in arguments:
        if is_path:
            is_path = False
        elif argument.partition("=")[0] == "--config":
            is_path = argument == "--config"
            if content := drop_empty_groups(next(files), keys):
                yield f"--config={yaml.safe_dump(content)}"
        else:
            yield argument


def _read_yaml(path: str) -> Yaml:
    """The keys and values of a configuration file.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        with open(path) as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise InputError(
            f"Found --config {path!r}, which cannot be read ({error.strerror}); expected a YAML "
            "file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise InputError(
            f"Found {content!r} in {path}; expected keys with values, such as workspace: shop."
        )
    return content or {}


def _model_name(arguments: Sequence[str], files: Sequence[tuple[str, Yaml]]) -> str:
    """The model named by flags or YAML, which decides the keys below `model.`.

    Raises:
        InputError: there is no such model.
    """
    name = ModelChoice().name
    for _, content in files:
        model = content.get("model")
        given = model.get("name") if isinstance(model, dict) else content.get("model.name")
        name = given or name
    name = str(dict(flags(arguments)).get("--model.name", name))
    if name not in MODELS:
        raise InputError(
            f"Found --model.name {name!r}; expected one of {', '.join(sorted(MODELS))}"
            f"{did_you_mean(name, MODELS) or '.'}"
        )
    return name
