"""Runs a command on a Ray cluster, shows its output here, and ends with its exit code.

visrec submit nightly --config configs/nightly.yaml
visrec submit train --workspace s3://shop/visrec

RAY_ADDRESS names the cluster's dashboard, such as http://127.0.0.1:8265. The code and the YAML
files of this folder go with the command. `ray job submit` ends with 1 whatever the command's exit
code was; `visrec submit` ends with the command's own code, so that a schedule can tell a night that
a gate held back (3) from one that failed (1).
"""

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobDetails, JobSubmissionClient

from visrec.cli.signals import advise_when_stopped
from visrec.errors import InputError, VisrecError
from visrec.storage.s3_settings import mask_secrets

_SILENCE_S = 120.0  # a head node that restarts is back within two minutes
_PAUSE_S = 2.0
_ERRORS = (RayError, RuntimeError, OSError)  # of a request to the dashboard
_LOST = (*_ERRORS, aiohttp.ClientError)  # of a connection that follows the output
# In a folder that is no checkout of visrec, only YAML files go along, and no pictures.
_ONLY_YAML = ["/[!.]*", "/.?*", "!/*.yaml"]


def submit(arguments: Sequence[str]) -> int:
    """Submits a command and follows it to its end.

    Args:
        arguments: the command and its flags.

    Returns:
        The exit code of the command; 1 if a signal ended it, or if it could not start.

    Raises:
        InputError: there is no command, RAY_ADDRESS does not name a dashboard that answers, or this
            folder is too large to go with the command.
        VisrecError: the cluster did not take the command, or stopped answering while it ran.
    """
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            "Found no command to submit; expected one, such as `visrec submit nightly --config "
            "nightly.yaml`."
        )
    logging.getLogger("ray").setLevel(logging.ERROR)  # else it names every file that it packs
    client = _connect()
    advise_when_stopped("The command may run in the cluster: `ray job list` shows whether it does.")
    job = _submit(client, shlex.join(["python", "-m", "visrec", *arguments]))
    advise_when_stopped(
        f"{job} still runs in the cluster: `ray job status {job}` shows how it is, and "
        f"`ray job stop {job}` stops it."
    )
    print(f"Submitted as {job}. Ctrl-C only stops following it: ray job stop {job}", flush=True)
    details = asyncio.run(_follow(client, job))
    code = details.driver_exit_code
    if code is None:  # the command did not start, or somebody stopped it
        print(f"{job} is {details.status}: {details.message}", flush=True)
    return code if code is not None and 0 <= code < 256 else 1


def _connect() -> JobSubmissionClient:
    """A client of the cluster that RAY_ADDRESS names."""
    address = os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        named = f"Found RAY_ADDRESS {mask_secrets(address)!r}"
        found = named if address else "RAY_ADDRESS is not set"
        raise InputError(
            f"{found}; expected the address of a cluster's dashboard, such as "
            "http://127.0.0.1:8265 (`ray dashboard cluster.yaml` forwards it)."
        )
    try:
        return JobSubmissionClient(address)
    except _ERRORS as error:
        raise InputError(
            f"The cluster at RAY_ADDRESS {mask_secrets(address)} does not take jobs "
            f"({_first_line(error)}); expected a dashboard that answers. A cluster with tokens "
            "also needs RAY_AUTH_MODE=token."
        ) from error


def _submit(client: JobSubmissionClient, entrypoint: str) -> str:
    """Sends this folder and a command; returns the name of the job."""
    try:
        return client.submit_job(entrypoint=entrypoint, runtime_env=_runtime_env())
    except ValueError as error:
        raise InputError(
            f"This folder cannot go with the command ({_first_line(error)}). Name in .rayignore "
            "what the command does not need, or submit it from another folder."
        ) from error
    except _ERRORS as error:
        raise VisrecError(
            f"The cluster did not take the command ({_first_line(error)}). `ray job list` shows "
            "whether it runs; if it does not, submit it again."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _runtime_env() -> dict[str, Any]:
    """This folder as Ray packs it, with what visrec needs of the environment."""
    env: dict[str, Any] = {"working_dir": "."}
    if not Path(".rayignore").exists():
        env["excludes"] = _ONLY_YAML
    return env


class _Output:
    """The output of a job, which is shown once, although each connection begins at its start."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self._client, self._job = client, job
        self._shown = 0

    async def show(self) -> Exception | None:
        """Prints what is new until the output ends; returns an error if the connection did."""
        position = 0
        try:
            async for text in self._client.tail_job_logs(self._job):
                unseen = text[max(0, self._shown - position) :]
                position += len(text)
                self._shown = max(self._shown, position)
                print(unseen, end="", flush=True)
        except _LOST as error:
            return error
        return None


async def _follow(
    client: JobSubmissionClient,
    job: str,
    *,
    pause_s: float = _PAUSE_S,
    clock: Callable[[], float] = time.monotonic,
) -> JobDetails:
    """Prints the output of a job until the job has ended, also across lost connections.

    A job may print nothing for hours. So what counts is for how long requests have failed, and not
    when the last output came.

    Args:
        client: of the cluster.
        job: the name of the job.
        pause_s: seconds between two rounds of requests.
        clock: seconds from any moment on.

    Returns:
        How it ended.

    Raises:
        VisrecError: the cluster does not answer any more.
    """
    output = _Output(client, job)
    failing_since: float | None = None
    while True:
        details: JobDetails | None = None
        lost = await output.show()
        try:
            details = client.get_job_info(job)
        except _LOST as error:
            lost = error
        if details is not None and not details.status.is_terminal():
            failing_since = None
        elif details is not None and lost is None:
            return details
        else:  # no answer; or the job has ended, and the rest of its output is missing
            failing_since = clock() if failing_since is None else failing_since
            if clock() - failing_since > _SILENCE_S:
                if details is not None:
                    return details
                raise VisrecError(
                    f"The cluster has not answered for {_SILENCE_S:.0f} s ({lost}). {job} may "
                    f"still run: `ray job status {job}` shows whether it does."
                ) from lost
        await asyncio.sleep(pause_s)
