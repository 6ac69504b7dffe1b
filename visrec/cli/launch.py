"""Runs a job: parses its configuration, starts Ray, prints the summary, sets the exit code.

A job is a config dataclass and a `main(config, summary)`; `launch(main, Config)` does the rest.

The exit codes are those of `ExitCode` in `visrec.errors`.
"""

import gc
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from visrec.cli.cluster import closing_own_ray, ensure_ray
from visrec.cli.job import Job, JobConfig
from visrec.cli.keys import without_secrets
from visrec.cli.output import choose_output, say, say_end
from visrec.cli.parse import flag_values, parse_in_workspace
from visrec.cli.signals import ignore_signals
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import WorkspaceValues, values_used_by
from visrec.errors import (
    BusyError,
    ExitCode,
    GateError,
    InputError,
    StorageError,
    VisrecError,
)
from visrec.storage.store import Store

_RAY_NOTE = "\nFailed to apply UDF"  # Ray Data appends how often it retried to an error's message


@dataclass(frozen=True)
class JobEnd:
    """How a job ended.

    Attributes:
        job: its name.
        exit_code: its exit code.
        message: why the code is not 0; empty if it is.
        is_busy: whether another process was doing this work, so that this start did nothing.
        seconds: wall time.
    """

    job: str
    exit_code: ExitCode
    message: str
    is_busy: bool
    seconds: float


def launch(
    main: Callable[[Job, Summary], None],
    job_type: type[Job],
    *,
    check: Callable[[Job], None] | None = None,
    after: Callable[[Job, JobEnd], None] | None = None,
    needs_ray: Literal["always", "on a cluster", "never"] = "always",
    only_reads: bool = False,
) -> NoReturn:
    """Runs a job from the command line and exits with its exit code.

    Args:
        main: the job.
        job_type: its configuration; every field is a flag.
        check: checks the job's inputs before Ray starts and before anything is written.
        after: reports how the job ended; not called if the configuration is not valid.
        needs_ray: when Ray is started before `main`: always, for every job but a local one (`on a
            cluster`), or never. A local job starts it itself if it has work for several processes.
        only_reads: the job succeeds even if its summary cannot be written.
    """
    arguments = sys.argv[1:]
    summary = Summary(main.__module__.rpartition(".")[2])
    debug = _is_set("debug", arguments)
    _prepare_process(summary.job, arguments)
    config: Job | None = None
    cause: VisrecError | None = None
    remembered = WorkspaceValues()
    start = time.perf_counter()
    try:
        config = parse_in_workspace(job_type, arguments)
        choose_output(summary.job, quiet=config.quiet, log_json=config.log_json)
        debug, remembered = config.debug, values_used_by(config)
        _require_durable_workspace(config)
        if check is not None:
            check(config)
        starts_ray = needs_ray == "always" or (needs_ray == "on a cluster" and not config.local)
        _run(main, config, summary, remembered, starts_ray=starts_ray, only_reads=only_reads)
        message = summary.not_published or ""
        code = ExitCode.NOT_PUBLISHED if message else ExitCode.DONE
    except Exception as error:
        cause = visrec_cause(error)
        code, message = _code_and_message(error, cause, summary, remembered)
        if config is not None and isinstance(cause, InputError):
            message = _tell_missing_workspace(config, cause) + message
        if debug:
            traceback.print_exc()
    say_end(code, message)
    if config is not None and after is not None:
        is_busy = summary.is_busy or isinstance(cause, BusyError)
        end = JobEnd(summary.job, code, message, is_busy, seconds=time.perf_counter() - start)
        _report_end(after, config, end)
    sys.exit(code)


def _prepare_process(job: str, arguments: Sequence[str]) -> None:
    """Sets garbage collection and output, before the configuration is parsed."""
    gc.freeze()  # what was imported stays, and need not be looked at again
    gc.enable()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack characters of a table
        sys.stdout.reconfigure(errors="backslashreplace")
    choose_output(  # again once the files of --config are read
        job, quiet=_is_set("quiet", arguments), log_json=_is_set("log_json", arguments)
    )


def _is_set(switch: str, arguments: Sequence[str]) -> bool:
    """Whether a switch is among the arguments, which may not be valid."""
    found = {name.replace("-", "_"): value for name, value in flag_values(arguments)}
    return found.get(f"__{switch}", "false").lower() != "false"


def _report_end(after: Callable[[Job, JobEnd], None], config: Job, end: JobEnd) -> None:
    """Reports how the job ended; a failure of that is printed and changes no exit code."""
    try:
        after(config, end)
    except Exception as error:
        reason = str(error)
        if not isinstance(error, VisrecError):
            reason = f"{type(error).__name__}: {without_secrets(error)}"
        say(f"{end.job}: its end could not be reported: {reason}", "error")


def _run(
    main: Callable[[Job, Summary], None],
    config: Job,
    summary: Summary,
    remembered: WorkspaceValues,
    *,
    starts_ray: bool,
    only_reads: bool,
) -> None:
    """Runs `main`, on Ray if it needs it, prints the summary, and then writes it.

    It is printed first, so that people can read it even if the workspace cannot be written. A start
    that did nothing writes no summary, because that would replace the summary of the work.
    """
    with closing_own_ray():
        if starts_ray:
            ensure_ray(config, summary)
        main(config, summary)
    summary.rows |= remembered.summary_row
    summary.print()
    if not summary.is_busy:
        write = summary.write_if_possible if only_reads else summary.write
        write(Store.at(config.workspace))
    ignore_signals()


def _require_durable_workspace(config: JobConfig) -> None:
    """Refuses a relative workspace in a submitted job, whose working directory Ray deletes.

    Raises:
        InputError: the workspace would be lost, or is not a valid location.
    """
    Store.at(config.workspace)
    is_submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if is_submitted and "://" not in config.workspace and not os.path.isabs(config.workspace):
        raise InputError(
            f"Found --workspace {config.workspace} in a job submitted to a cluster, where a "
            "relative path means a temporary copy of the code; expected s3://bucket/prefix or an "
            "absolute path that every node shares."
        )


def _code_and_message(
    error: BaseException, cause: VisrecError | None, summary: Summary, remembered: WorkspaceValues
) -> tuple[ExitCode, str]:
    """The exit code for an error, and one paragraph that explains the error.

    Args:
        error: what ended the job.
        cause: visrec's error below it; None if there is none.
        summary: the job's summary.
        remembered: what the workspace's `visrec.yaml` gave the job.
    """
    if cause is None:
        if lost := next((each for each in _causes(error) if _is_loss(each)), None):
            return ExitCode.FAILED, (
                "a Ray process or its machine was lost, and again whenever its work was repeated "
                f"({type(lost).__name__}). Most often a machine has run out of memory, or its "
                "provider has taken it away. `visrec doctor` estimates the memory that a job "
                "needs. What is complete is kept: the same command continues from there."
            )
        last_line = (str(error).strip().splitlines() or [""])[-1]
        return ExitCode.FAILED, (
            f"unexpected error: {type(error).__name__}: {last_line} (--debug shows a stack trace.)"
        )
    message = " ".join(str(cause).partition(_RAY_NOTE)[0].split())
    return _exit_code(cause, summary), message + remembered.explain(cause)


def _tell_missing_workspace(config: JobConfig, error: InputError) -> str:
    """A sentence before the message of an error about a file below a local workspace that does not
    exist; empty otherwise, as if the file is elsewhere."""
    try:
        root = Store.at(config.workspace).root
    except InputError:  # the address of the workspace is itself what is wrong
        return ""
    path = os.path.abspath(error.path or "/")
    if os.path.exists(root) or not path.startswith(f"{root}/"):
        return ""
    return f"There is no folder {config.workspace} (--workspace). "


def _exit_code(error: VisrecError, summary: Summary) -> ExitCode:
    if isinstance(error, StorageError):
        return ExitCode.FAILED if summary.has_written else ExitCode.REFUSED
    if isinstance(error, InputError):
        return ExitCode.REFUSED
    return ExitCode.HELD_BACK if isinstance(error, GateError | BusyError) else ExitCode.FAILED


def _is_task_error(error: BaseException) -> bool:
    """Whether Ray raised it for an error of a task."""
    if "ray" not in sys.modules:
        return False
    from ray.exceptions import RayTaskError

    return isinstance(error, RayTaskError)


def _is_loss(error: BaseException) -> bool:
    """Whether Ray raised it for a process, a node or an object that was lost."""
    if "ray" not in sys.modules:
        return False
    from ray import exceptions

    return isinstance(
        error,
        exceptions.WorkerCrashedError
        | exceptions.NodeDiedError
        | exceptions.OutOfMemoryError
        | exceptions.RayActorError
        | exceptions.ObjectLostError
        | exceptions.LocalRayletDiedError,
    )


def visrec_cause(error: BaseException) -> VisrecError | None:
    """The `VisrecError` below the errors that Ray wrapped around it; None if there is none."""
    return next((each for each in _causes(error) if isinstance(each, VisrecError)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those below it."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        candidate = queue.pop(0)
        if candidate is None or id(candidate) in seen:
            continue
        seen.add(id(candidate))
        # Ray raises a task's error as an instance of both types, whose text is the remote stack.
        if _is_task_error(candidate):
            queue.append(candidate.cause)  # type: ignore[attr-defined]
        else:
            yield candidate
        queue += [candidate.__cause__, candidate.__context__]
        queue += getattr(candidate, "worker_failures", {}).values()
