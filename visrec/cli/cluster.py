"""The Ray session of a job: on this machine alone, or the cluster that the job is told to join."""

import logging
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
import ray.data
from ray._private import ray_constants

from visrec.cli.signals import listen_again
from visrec.errors import InputError, VisrecError
from visrec.storage.s3_settings import masked

_ANSWER_S = 5  # that a cluster has to answer
_SUBMIT = "`ray job submit --working-dir . -- python jobs/X.py`"


def start_ray(local: bool, debug: bool) -> None:
    """Starts Ray in this process, or joins the cluster that RAY_ADDRESS names.

    Raises:
        InputError: no cluster is named, or it does not answer; or the machine has no place for the
            files of a local one.
        VisrecError: a local one does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side writes warnings about its own pools straight to our standard error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if local:
        _start_here(quiet)
    else:
        _join(named_cluster(), quiet)
    listen_again()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Ray Data has no named parameter for a placement group, and warns of the one that it has.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    # An actor may be on its way up on a machine that goes away: by default the step would end.
    context.max_consecutive_actor_init_deaths = 3
    # Else Ray Data wraps what a step raises, and the wrapped error does not survive the way back.
    context.raise_original_map_exception = True
    # What Ray Data says of a failed step is a stack trace; the job's own paragraph follows.
    logging.getLogger("ray.data").setLevel(logging.ERROR if debug else logging.CRITICAL)


def _start_here(quiet: dict[str, Any]) -> None:
    # At least four logical CPUs: an actor pool, its readers and its writers each want one, and
    # with two of them a chain can wait for itself indefinitely.
    cpus = max(4, os.cpu_count() or 1)
    # Ray makes the machine's own address of 127.0.0.1 and listens everywhere, unless it takes
    # this for a machine that cannot be part of a cluster.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # Else Ray writes one into the home directory, which need not be there or be writable.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for last in (False, True):
        try:
            with _quiet_stderr():
                ray.init(
                    "local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    **quiet,
                )
            return
        except Exception as error:
            ray.shutdown()
            problem = _problem_of_place(error)
            if problem is not None:
                raise problem from error
            # A node has 30 s to come up (a constant of Ray), which a busy machine may not keep.
            if last:
                raise VisrecError(
                    f"Ray did not start on this machine, tried twice ({_in_a_line(error)}). The "
                    "machine may be too busy; nothing was begun, so start the job again."
                ) from error
            print("Ray did not start on this machine; trying once more.", flush=True)


def _problem_of_place(error: Exception) -> InputError | None:
    """What is wrong with the folder that Ray keeps its session in, if that is what is wrong."""
    if not isinstance(error, OSError):
        return None
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    folder = os.environ.get(variable, tempfile.gettempdir())
    if "AF_UNIX path length" in str(error):
        return InputError(
            f"Found {variable} {folder!r}, which is too long: the paths of Ray's sockets below it "
            f"may have 107 bytes. Expected a shorter one, such as {variable}=/tmp."
        )
    return InputError(
        f"Ray cannot keep its session below {folder!r} ({_in_a_line(error)}); expected a folder "
        f"that this user may write to. {variable} names another."
    )


def named_cluster() -> str:
    """The address of the cluster that this job is to join.

    A job that was submitted finds the cluster's address in RAY_ADDRESS. No cluster is looked for:
    one that happens to run on this machine may be another's.

    Raises:
        InputError: none is named, or what is named is no cluster.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise InputError(
            "Found no Ray cluster to join; expected RAY_ADDRESS=host:port, as under `ray job "
            f"submit`. Pass --local to run on this machine alone, or submit the job: {_SUBMIT}."
        )
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"Found RAY_ADDRESS {masked(address)!r}, a dashboard, to which jobs are submitted: "
            f"{_SUBMIT}. To join the cluster itself expected host:port, such as 10.0.0.3:6379."
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()) or "/" in host:
        raise InputError(
            f"Found RAY_ADDRESS {masked(address)!r}; expected host:port of a Ray cluster, such as "
            "10.0.0.3:6379, or --local to run on this machine alone."
        )
    return address


def _join(address: str, quiet: dict[str, Any]) -> None:
    _check_answer(address)
    try:
        with _quiet_stderr():
            ray.init(address=address, **quiet)
    except Exception as error:
        raise InputError(
            f"Could not join the Ray cluster at {address} (RAY_ADDRESS): {_in_a_line(error)} "
            "Expected one of the same versions of Ray and Python, and its token where it wants one."
        ) from error
    print(f"Joined the Ray cluster at {address}.", flush=True)


def _check_answer(address: str) -> None:
    """Asks whether anything there speaks Ray's protocol: Ray itself tries for 40 s, line by line.

    Raises:
        InputError: nothing does.
    """
    # A proxy of this machine is not on the way to a cluster; Ray leaves it out as well.
    channel = grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),))
    try:
        if not os.environ.get("RAY_USE_TLS"):
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
    except grpc.FutureTimeoutError as error:
        raise InputError(
            f"No Ray cluster answers at {address} within {_ANSWER_S} s. Check RAY_ADDRESS, or pass "
            "--local to run on this machine alone."
        ) from error
    finally:
        channel.close()


def _in_a_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what Ray's C++ side says while it starts: the error that it raises says enough."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
