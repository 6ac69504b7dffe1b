"""The Ray session of a job: local to this process, or the cluster that the job joins."""

import logging
import os
import secrets
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.signals import restore_signal_handlers
from visrec.cli.summary import Summary
from visrec.cores import usable_cores
from visrec.errors import InputError, VisrecError
from visrec.storage.s3_settings import mask_secrets
from visrec.tasks import on_ray

_ANSWER_TIMEOUT_S = 5
_MIN_LOCAL_CPUS = 4
_SUBMIT = "`visrec submit nightly ...`, or `ray job submit --working-dir . -- python jobs/X.py`"


def ensure_ray(config: JobConfig, summary: Summary) -> None:
    """Starts Ray, or joins the cluster, unless this process has done so.

    Local jobs call it only when they need Ray.

    Raises:
        InputError: as `start_ray`.
        VisrecError: likewise.
    """
    if not on_ray():
        with summary.phase("start"):
            start_ray(config.local, config.debug)


@contextmanager
def closing_own_ray() -> Iterator[None]:
    """Shuts Ray down afterwards if it was started inside; leaves an earlier session running."""
    was_there = on_ray()
    try:
        yield
    finally:
        if on_ray() and not was_there:
            import ray

            ray.shutdown()


def start_ray(local: bool, debug: bool) -> None:
    """Starts Ray in this process, or joins the cluster that RAY_ADDRESS names.

    Raises:
        InputError: RAY_ADDRESS names no cluster, the cluster does not answer, or a local session
            cannot create its files.
        VisrecError: a local session does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's C++ side writes warnings about its own thread pools straight to standard error.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if local:
        _start_local()
    else:
        _join(cluster_address())
    restore_signal_handlers()
    _configure_ray_data(debug)


def _configure_ray_data(debug: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # A placement group can only be named in `ray_remote_args`, about which Ray Data warns.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    # By default a step fails if one actor dies while it starts, as when its node goes away.
    context.max_consecutive_actor_init_deaths = 3
    # By default Ray Data wraps the exception of a step, and the wrapper cannot be unpickled.
    context.raise_original_map_exception = True
    # Ray Data logs a stack trace for a failed step; the job prints a paragraph of its own.
    logging.getLogger("ray.data").setLevel(logging.ERROR if debug else logging.CRITICAL)


def _start_local() -> None:
    """Starts Ray for this process alone; tries once more if the first start times out."""
    import ray
    from ray._private import ray_constants

    # An actor pool, the tasks that feed it and the tasks that write its output need a CPU each:
    # with two logical CPUs a chain can wait for itself indefinitely.
    cpus = max(_MIN_LOCAL_CPUS, usable_cores())
    # Without this, Ray replaces 127.0.0.1 by the machine's own address, on every interface.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        # With no token set, Ray writes one into the home directory, which may be read-only.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for is_last_try in (False, True):
        try:
            with _without_stderr():
                ray.init(
                    "local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
            return
        except Exception as error:
            ray.shutdown()
            folder_error = _session_folder_error(error)
            if folder_error is not None:
                raise folder_error from error
            # A node must start within 30 s (a constant of Ray), which a busy machine may miss.
            if is_last_try:
                raise VisrecError(
                    f"Ray did not start on this machine in two tries ({_first_line(error)}). The "
                    "machine may be too busy. The job has not begun and can be started again."
                ) from error
            say("Ray did not start on this machine; trying once more.")


def _session_folder_error(error: Exception) -> InputError | None:
    """Explains an error about the folder of Ray's session; None if the error is another one."""
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
        f"Ray cannot keep its session below {folder!r} ({_first_line(error)}); expected a folder "
        f"that this user may write to. Set {variable} to another folder."
    )


def cluster_address() -> str:
    """The address of the Ray cluster to join, from RAY_ADDRESS.

    Ray sets the variable in submitted jobs. The job never searches for a cluster: one that happens
    to run on this machine may belong to somebody else.

    Raises:
        InputError: the variable is unset, or is not the address of a cluster.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if not address:
        raise InputError(
            "Found no Ray cluster to join; expected RAY_ADDRESS=host:port, as under `ray job "
            f"submit`. Pass --local to run on this machine alone, or submit the job: {_SUBMIT}."
        )
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"Found RAY_ADDRESS {mask_secrets(address)!r}, the address of a dashboard, which "
            f"takes submitted jobs: {_SUBMIT}. To join the cluster itself, set RAY_ADDRESS to "
            "host:port, such as 10.0.0.3:6379."
        )
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit()) or "/" in host:
        raise InputError(
            f"Found RAY_ADDRESS {mask_secrets(address)!r}; expected host:port of a Ray "
            "cluster, such as 10.0.0.3:6379, or --local to run on this machine alone."
        )
    return address


def _join(address: str) -> None:
    import ray

    _require_answer(address)
    try:
        with _without_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise InputError(
            f"Could not join the Ray cluster at {address} (RAY_ADDRESS): {_first_line(error)}. "
            "Expected a cluster with the same versions of Ray and Python, and its token if it "
            "requires one."
        ) from error
    say(f"Joined the Ray cluster at {address}.")


def _require_answer(address: str) -> None:
    """Checks that a gRPC server answers (not checked with TLS).

    Ray itself would try for 40 s, and print every try.

    Raises:
        InputError: no server answers in time.
    """
    import grpc  # type: ignore[import-untyped]

    # Ray does not use this machine's HTTP proxy to reach a cluster either.
    channel = grpc.insecure_channel(address, options=(("grpc.enable_http_proxy", 0),))
    try:
        if not os.environ.get("RAY_USE_TLS"):
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_TIMEOUT_S)
    except grpc.FutureTimeoutError as error:
        raise InputError(
            f"No Ray cluster answers at {address} within {_ANSWER_TIMEOUT_S} s. Check RAY_ADDRESS, "
            "or pass --local to run on this machine alone."
        ) from error
    finally:
        channel.close()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(".: ")


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drops what Ray's C++ side prints while it starts; the exception that follows says enough."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as devnull:
            os.dup2(devnull.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
