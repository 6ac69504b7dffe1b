"""What all jobs share: flags, the Ray session, the summary, errors as exit codes.

A job is a config dataclass and a `main(config, summary)`; `launch(main, Config)` does the rest.
Exit codes: 0 done and published; 2 bad configuration or input, nothing written; 3 held back by a
gate; 4 done, but an older or a later run stays published; 1 else.
"""

import dataclasses
import io
import os
import shutil
import sys
import time
import traceback
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import ray
import ray.data
import ray.exceptions
import yaml
from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter

from visrec.cli.cluster import start_ray
from visrec.cli.keys import Keys, check_flags, check_yaml, explained, filled, keys_of
from visrec.cli.signals import work_is_done
from visrec.errors import GateError, InputError, StorageError, VisrecError, did_you_mean
from visrec.models import MODELS
from visrec.storage.store import Store
from visrec.text import padded, printable, width, wrapped


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job has.

    Attributes:
        workspace: directory or s3:// prefix under which inputs and outputs lie by default.
        local: start Ray in this process, on this machine alone; otherwise the job joins the cluster
            that it was submitted to.
        debug: show stack traces.
    """

    workspace: str = "runs/demo"
    local: bool = False
    debug: bool = False

    def resolve(self, given: str | None, name: str) -> str:
        """A path that was given, or the one of that name in the workspace."""
        return given or f"{self.workspace.rstrip('/')}/{name}"

    def resolve_if_exists(self, given: str | None, name: str) -> str | None:
        """The same for a table that need not be: None where none was given and none is there."""
        if given is None:
            store = Store.at(self.workspace)
            # A table may be a folder of files.
            if not store.exists(name) and not any(store.list(f"{name}/")):
                return None
        return self.resolve(given, name)


@dataclass(frozen=True)
class ModelChoice:
    """A model by name, and its own configuration."""

    name: str = "curatornet"
    config: Any = field(default_factory=MODELS["curatornet"].Config)


Config = TypeVar("Config", bound=JobConfig)


@dataclass
class Summary:
    """What a job did, shown at its end and written as JSON.

    Args:
        job: its name.
        rows: label and value of each line.
        phases: seconds of wall time, in order.
        worker_seconds: seconds of work by phase, all workers together.
        has_written: whether anything may have been written.
        not_published: one sentence on which run stays published instead of this job's, and why;
            None where that is not so.
    """

    job: str
    rows: dict[str, Any] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    worker_seconds: dict[str, float] = field(default_factory=dict)
    has_written: bool = False
    not_published: str | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Books the wall time spent inside under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def worked(self, amounts: dict[str, float]) -> None:
        """Takes the seconds by phase out of what a tally has counted."""
        for name, amount in sorted(amounts.items()):
            if name.endswith("_s"):
                self.worker_seconds[name.removesuffix("_s")] = amount

    def show(self) -> str:
        """The lines of the terminal; a row that says nothing is left out."""
        rows = [(label, _shown(value)) for label, value in self.rows.items()]
        for label, seconds in (("wall time", self.phases), ("in the workers", self.worker_seconds)):
            if seconds:
                parts = ", ".join(f"{name} {s:.1f}" for name, s in seconds.items() if s >= 0.05)
                rows.append((label, f"{sum(seconds.values()):.1f} s" + (parts and f": {parts}")))
        rows = [(printable(label), printable(text)) for label, text in rows if text]
        wide, columns = max([22, *(width(label) for label, _ in rows)]), terminal_columns()
        # Where little would be left beside the labels, the terminal breaks the lines itself.
        beside = max(columns - wide - 4, 20) if columns else None
        lines = [f"\n{self.job}"]
        for label, text in rows:
            first, *more = wrapped(text, beside) if beside else [text]
            lines.append(f"  {padded(label, wide)} {first}")
            lines += [f"  {' ' * wide} {line}" for line in more]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            **self.rows,
            "wall_s": {name: round(s, 3) for name, s in self.phases.items()},
            "worker_s": {name: round(s, 3) for name, s in self.worker_seconds.items()},
        }


def _shown(value: Any) -> str:
    """A value in words; no text where there is nothing to say."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(_entry(what, amount) for what, amount in value.items() if amount)
    if isinstance(value, Set):
        value = sorted(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.1f}" if 1e5 <= abs(value) < 1e15 else f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _entry(what: Any, amount: Any) -> str:
    """An entry of a mapping: `12 corrupt` of a count by reason, `reason: text` of anything else."""
    name = str(what).replace("_", " ")
    counts = isinstance(amount, int | float) and not isinstance(amount, bool)
    return f"{_shown(amount)} {name}" if counts else f"{name}: {_shown(amount)}"


def terminal_columns() -> int | None:
    """Columns of the terminal; None where the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def launch(
    main: Callable[[Config, Summary], None],
    config_type: type[Config],
    *,
    check: Callable[[Config], None] | None = None,
    needs_ray: bool = True,
) -> NoReturn:
    """Runs a job from the command line and exits with its code.

    Args:
        main: the job.
        config_type: its configuration; every field is a flag.
        check: looks at the job's inputs, before Ray starts and anything is written.
        needs_ray: whether the job runs on Ray at all.
    """
    arguments = sys.argv[1:]
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack signs that a table has
        sys.stdout.reconfigure(errors="backslashreplace")
    summary = Summary(os.path.basename(sys.argv[0]).removesuffix(".py"))
    debug = dict(_flags(arguments)).get("--debug", "false").lower() != "false"
    try:
        config = parse(config_type, arguments)
        debug = config.debug
        _check_workspace(config)
        if check is not None:
            check(config)
        if needs_ray:
            with summary.phase("start"):
                start_ray(config.local, config.debug)
        try:
            main(config, summary)
        finally:
            ray.shutdown()
        Store.at(config.workspace).write_json(f"summaries/{summary.job}.json", summary.as_json())
        print(summary.show(), flush=True)
        work_is_done()
    except Exception as error:
        code, text = _verdict(error, summary)
        if debug:
            traceback.print_exc()
        print(f"\n{summary.job}: {text}", file=sys.stderr)
        sys.exit(code)
    if summary.not_published:
        print(f"\n{summary.job}: {summary.not_published}", file=sys.stderr)
        sys.exit(4)
    sys.exit(0)


# Flags.


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """A job's examples each on its own line, as they stand in its docstring."""


def parse(config_type: type[Config], arguments: Sequence[str]) -> Config:
    """The configuration from flags and YAML.

    Raises:
        InputError: a key or a value is not known.
    """
    arguments = _with_values(arguments)
    files = [(path, _yaml(path)) for flag, path in _flags(arguments) if flag == "--config"]
    chooses = any(f.type is ModelChoice for f in dataclasses.fields(config_type))
    name = _model_name(arguments, files) if chooses else ""
    keys = keys_of(config_type)
    if chooses:
        keys = {key: kind for key, kind in keys.items() if not key.startswith("model.")}
        keys |= {"model.name": str, **keys_of(MODELS[name].Config, "model.")}
    for path, content in files:
        check_yaml(path, content, keys)
    check_flags(arguments, keys)
    parser = ArgumentParser(
        exit_on_error=False,
        usage="%(prog)s [--config FILE] [--key value ...]",
        formatter_class=_HelpFormatter,
        description=sys.modules[config_type.__module__].__doc__,
        default_env=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these keys")
    parser.add_class_arguments(config_type, skip={"model"} if chooses else None)
    if chooses:
        parser.add_argument(
            "--model.name", default=name, help=f"one of {', '.join(sorted(MODELS))}"
        )
        parser.add_class_arguments(MODELS[name].Config, "model")
        parser.set_defaults(dict(MODELS[name].default_overrides))
    arguments = list(_read_in(arguments, [content for _, content in files], keys))
    try:
        values = parser.parse_args(arguments)
    except ArgumentError as error:
        raise InputError(explained(error, keys)) from error
    if chooses:
        values["model"].pop("name")
    # A namespace hides keys that are its own methods' names, such as items; a dict does not.
    taken = parser.instantiate(values).as_dict()
    if chooses:
        taken["model"] = ModelChoice(name, taken["model"])
    taken.pop("config")
    return config_type(**taken)


def _with_values(arguments: Sequence[str]) -> list[str]:
    """The arguments with `true` behind a bare --local or --debug, and --as-of as --as_of."""
    arguments = [_underscored(argument) for argument in arguments]
    switches = {f"--{f.name}" for f in dataclasses.fields(JobConfig) if f.type is bool}
    complete = []
    for this, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        bare = this in switches and following.startswith("-")
        complete += [this, "true"] if bare else [this]
    return complete


def _underscored(argument: str) -> str:
    name, equals, value = argument.removeprefix("--").partition("=")
    return "--" + name.replace("-", "_") + equals + value if argument[:2] == "--" else argument


def _read_in(
    arguments: Sequence[str], files: Sequence[dict[Any, Any]], keys: Keys
) -> Iterator[str]:
    """The arguments with what stands in each --config file in place of its name, and without files
    in which nothing stands, as where all is commented out."""
    contents, skip = iter(files), False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.partition("=")[0] == "--config":
            skip = argument == "--config"
            if content := filled(next(contents), keys):
                yield f"--config={yaml.safe_dump(content)}"
        else:
            yield argument


def _yaml(path: str) -> dict[Any, Any]:
    """A configuration file's keys.

    Raises:
        InputError: it cannot be read, or has no keys.
    """
    try:
        with open(path) as file:
            found = yaml.safe_load(file)
    except OSError as error:
        raise InputError(
            f"Found --config {path!r}, which cannot be read ({error.strerror}); expected a YAML "
            "file."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no YAML that can be read: {error}") from error
    if not isinstance(found, dict | None):
        raise InputError(
            f"Found {found!r} in {path}; expected keys with values, as workspace: shop."
        )
    return found or {}


def _model_name(arguments: Sequence[str], files: Sequence[tuple[str, dict[Any, Any]]]) -> str:
    """The model that flags or YAML ask for: it decides which keys there are."""
    name = ModelChoice().name
    for _, content in files:
        model = content.get("model")
        given = model.get("name") if isinstance(model, dict) else content.get("model.name")
        name = given or name
    name = str(dict(_flags(arguments)).get("--model.name", name))
    if name not in MODELS:
        raise InputError(
            f"Found --model.name {name!r}; expected one of {', '.join(sorted(MODELS))}"
            f"{did_you_mean(name, MODELS) or '.'}"
        )
    return name


def _flags(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    for this, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, equals, value = this.partition("=")
        yield flag, value if equals else following


def _check_workspace(config: JobConfig) -> None:
    """A submitted job runs in a copy of the code that goes away with it, results and all."""
    Store.at(config.workspace)  # an address that is none, or a setting of its store
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if submitted and "://" not in config.workspace and not os.path.isabs(config.workspace):
        raise InputError(
            f"Found --workspace {config.workspace} in a job submitted to a cluster, where a "
            "relative path means a temporary copy of the code; expected s3://bucket/prefix or an "
            "absolute path that every node shares."
        )


# Ray.


def cluster_has(resource: str) -> int:
    """How much of a resource the cluster has now, in whole units."""
    return int(ray.cluster_resources().get(resource, 0))  # type: ignore[no-untyped-call]


def cpu_actors(cpus_each: int, most: int) -> int:
    """Actors for half of the cluster's CPUs: the tasks that feed them want the rest."""
    return max(1, min(most, cluster_has("CPU") // (2 * cpus_each)))


def require_resources(wanted: dict[str, float], config: JobConfig, key: str) -> None:
    """Refuses what this machine can never give, instead of waiting for it.

    A cluster may grow, so there it is only said.

    Args:
        wanted: CPUs and GPUs at once.
        config: whether the job is local.
        key: the configuration key that asks for them.

    Raises:
        InputError: the local machine has less.
    """
    short = {name: n for name, n in wanted.items() if n > cluster_has(name)}
    if not short:
        return
    asked = ", ".join(f"{n:g} {name}" for name, n in short.items())
    found = ", ".join(f"{cluster_has(name)} {name}" for name in short)
    text = f"--{key} asks for {asked} at once; found {found}"
    if config.local:
        raise InputError(f"{text} on this machine. Ask for less, or run on a cluster.")
    print(f"{text} in the cluster now. Waiting for it to grow.", flush=True)


# Errors.

_RAY_NOTE = "\nFailed to apply UDF"  # Ray Data adds to an error how often it tried


def _verdict(error: BaseException, summary: Summary) -> tuple[int, str]:
    """An exit code and one paragraph."""
    cause = own_cause(error)
    text = " ".join(str(cause).partition(_RAY_NOTE)[0].split())
    if isinstance(cause, StorageError):
        return (1 if summary.has_written else 2), text
    if isinstance(cause, InputError):
        return 2, text
    if isinstance(cause, VisrecError):
        return (3 if isinstance(cause, GateError) else 1), text
    last = str(error).strip().splitlines() or [""]
    return 1, (
        f"an error that visrec did not foresee: {type(error).__name__}: {last[-1]} "
        "(--debug shows where.)"
    )


def own_cause(error: BaseException) -> BaseException | None:
    """The error that visrec raised on purpose below those of Ray, if that is what it was."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        found = queue.pop(0)
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        # Ray raises a task's error as one that is of both types and prints the remote stack.
        if isinstance(found, ray.exceptions.RayTaskError):
            queue.append(found.cause)
        elif isinstance(found, VisrecError):
            return found
        queue += [found.__cause__, found.__context__]
        queue += getattr(found, "worker_failures", {}).values()
    return None
