"""Flags and YAML files to a job's configuration.

Flags override YAML files, which override the workspace's own `visrec.yaml`
(`visrec.cli.workspace_keys`), which overrides defaults. jsonargparse does the parsing;
`visrec.cli.keys` checks the keys first, so that a typo is answered with the key that was meant.
"""

import dataclasses
import sys
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from visrec.cli.job import Job, JobConfig, ModelChoice
from visrec.cli.keys import (
    KeyTypes,
    Yaml,
    check_flags,
    check_yaml,
    config_keys,
    expand_groups,
    explain_parse_error,
    flatten,
    has_value,
    key_exists,
    parse_yaml,
    without_secrets,
)
from visrec.cli.workspace_keys import WorkspaceValues, read_workspace_values
from visrec.errors import InputError, did_you_mean, extended_errors
from visrec.models import MODELS
from visrec.models.base import TrainOverrides
from visrec.training.fit import default_train_config
from visrec.yaml_text import as_flag, dump_yaml

_HELP = {"--help", "-h"}  # needs no workspace, which may be out of reach


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps each example of a job's docstring on its own line."""


def parse(job_type: type[Job], arguments: Sequence[str]) -> Job:
    """A job's configuration from its command line and the YAML files named there.

    Args:
        job_type: the configuration class of the job.
        arguments: the words of the command line, without the program's name.

    Raises:
        InputError: a key is unknown or a value is invalid.
    """
    return _parse(job_type, arguments, lambda *_: WorkspaceValues())


def parse_in_workspace(job_type: type[Job], arguments: Sequence[str]) -> Job:
    """Like `parse`, with what the workspace's `visrec.yaml` says where neither flags nor files do.

    Raises:
        InputError: as `parse`; or that file has a key that no workspace keeps.
        StorageError: the workspace cannot be read.
    """
    return _parse(job_type, arguments, read_workspace_values)


def keys_of(job_type: type[JobConfig], arguments: Sequence[str]) -> KeyTypes:
    """The keys of a job, which depend on the model that flags and files name.

    Raises:
        InputError: a file cannot be read, or there is no such model.
    """
    arguments = _normalize(arguments, job_type)
    return _job_keys(job_type, _model_of(job_type, arguments, _read_files(arguments)))


def _parse(
    job_type: type[Job],
    arguments: Sequence[str],
    remember: Callable[[str, KeyTypes], WorkspaceValues],
) -> Job:
    arguments = _normalize(arguments, job_type)
    files = _read_files(arguments)
    model = _model_of(job_type, arguments, files)
    keys = _job_keys(job_type, model)
    for path, content in files:
        check_yaml(path, content, keys, job_type.explain_foreign_key)
    check_flags(arguments, keys, job_type.explain_foreign_key)
    contents = [content for _, content in files]
    if _HELP & {*arguments}:
        return _build(job_type, model, _merge(contents, arguments, keys), keys)
    remembered = remember(_workspace(job_type, arguments, contents), keys)
    with extended_errors(remembered.explain):
        merged = _merge([remembered.values, *contents], arguments, keys)
        job = _build(job_type, model, merged, keys)
    # Not a field: whether a value was given or is a default does not make it another configuration.
    object.__setattr__(job, "given_keys", frozenset(_given_keys(arguments, contents, keys)))
    return job


def _build(job_type: type[Job], model: str | None, arguments: Sequence[str], keys: KeyTypes) -> Job:
    """The configuration from flags, in which files are inlined."""
    parser = _parser(job_type, model, keys)
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


def flag_values(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument that may be a flag with its value: after `=`, or the next argument."""
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, equals, value = argument.partition("=")
        yield flag, value if equals else following


def _given_keys(
    arguments: Sequence[str], contents: Sequence[Yaml], keys: KeyTypes
) -> Iterator[str]:
    """The dotted keys that files and flags set."""
    for content in contents:
        yield from (key for key, _ in flatten(content, keys))
    for flag, _ in flag_values(arguments):
        if flag.startswith("--"):
            yield flag.removeprefix("--").removesuffix("+")


def _job_keys(job_type: type[JobConfig], model: str | None) -> KeyTypes:
    """The keys of a job, with those of the model's own configuration under `model.`."""
    keys = config_keys(job_type)
    if not model:
        return keys
    keys = {key: kind for key, kind in keys.items() if not key.startswith("model.")}
    return keys | {"model.name": str, **config_keys(MODELS[model].Config, "model.")}


def _parser(job_type: type[JobConfig], model: str | None, keys: KeyTypes) -> ArgumentParser:
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
        train = default_train_config(model)
        names = [each.name for each in dataclasses.fields(TrainOverrides)]
        parser.set_defaults({f"train.{name}": getattr(train, name) for name in names})
    for action in parser._actions:
        if action.dest not in keys and key_exists(action.dest, keys):
            action.help = SUPPRESS  # of a group, whose keys are listed one by one
    return parser


def _normalize(arguments: Sequence[str], job_type: type[JobConfig]) -> list[str]:
    """The arguments with `true` after a bare switch such as --local, --as-of as --as_of, a flag for
    each key of a group, and the flag of the workspace before a first word that is no flag."""
    keys = config_keys(job_type)
    if arguments and _may_be_workspace(arguments[0]):
        arguments = ["--workspace", *arguments]
    arguments = list(expand_groups([_underscore(argument) for argument in arguments], keys))
    switches = {f"--{key}" for key, kind in keys.items() if kind is bool}
    normalized = []
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        is_bare = argument in switches and following.startswith("-")
        normalized += [argument, "true"] if is_bare else [argument]
    return normalized


def _may_be_workspace(word: str) -> bool:
    """Not a flag, with or without its dashes (`epochs=3`), nor the URL of something else."""
    is_other_url = "://" in word and not word.lower().startswith(("s3", "file:"))
    return not (word.startswith("-") or "=" in word or is_other_url)


def _underscore(argument: str) -> str:
    """A flag with underscores in its name; values, and values after `=`, stay as they are."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.removeprefix("--").partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _workspace(
    job_type: type[JobConfig], arguments: Sequence[str], contents: Sequence[Yaml]
) -> str:
    """The workspace: of the flags, otherwise of the YAML files, otherwise the default."""
    named = [job_type.workspace, *(content.get("workspace") for content in contents)]
    named.append(dict(flag_values(arguments)).get("--workspace"))
    return str([name for name in named if name][-1])


def _merge(contents: Sequence[Yaml], arguments: Sequence[str], keys: KeyTypes) -> list[str]:
    """The contents of YAML files, then the flags: jsonargparse lets the last one win.

    A file without any key, as when everything is commented out, is dropped: jsonargparse would
    refuse it, and it would refuse entries such as `items_columns.item_id`, except as flags.
    """
    merged = []
    for content in contents:
        values = dict(flatten(content, keys))
        whole = {key: value for key, value in values.items() if key in keys}
        merged += [f"--config={dump_yaml(whole)}"] if whole else []
        merged += [
            as_flag(key, value)
            for key, value in values.items()
            if key not in keys and has_value(key, keys)
        ]
    is_path = False
    for argument in arguments:
        if is_path or argument.partition("=")[0] == "--config":
            is_path = argument == "--config"
        else:
            merged.append(argument)
    return merged


def _read_files(arguments: Sequence[str]) -> list[tuple[str, Yaml]]:
    """The files of --config with their contents."""
    values = flag_values(arguments)
    return [(path, _read_yaml(path)) for flag, path in values if flag == "--config"]


def _read_yaml(path: str) -> Yaml:
    """The keys and values of a configuration file.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
    """
    try:
        return parse_yaml(Path(path).read_bytes(), path)
    except OSError as error:
        raise InputError(
            f"Found --config {without_secrets(path)!r}, which cannot be read ({error.strerror}); "
            "expected a YAML file.",
            path=path,
        ) from error


def _model_of(
    job_type: type[JobConfig], arguments: Sequence[str], files: Sequence[tuple[str, Yaml]]
) -> str | None:
    """The model named by flags or YAML, which decides the keys below `model.`; None for a job that
    trains none.

    Raises:
        InputError: there is no such model.
    """
    if not any(field.type is ModelChoice for field in dataclasses.fields(job_type)):
        return None
    name: object = ModelChoice().name
    for _, content in files:
        name = dict(flatten(content, {})).get("model.name") or name
    name = str(dict(flag_values(arguments)).get("--model.name", name))
    if name not in MODELS:
        raise InputError(
            f"Found --model.name {without_secrets(name)!r}; expected one of "
            f"{', '.join(sorted(MODELS))}{did_you_mean(name, MODELS) or '.'}"
        )
    return name
