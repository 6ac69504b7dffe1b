"""How `visrec submit` ends where the cluster refuses or does not answer."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.job_submission import JobStatus, JobSubmissionClient

from tests.conftest import CHECKOUT
from visrec.errors import InputError, VisrecError
from visrec.pipelines import submit as module
from visrec.pipelines.submit import _follow, submit

RUNNING = SimpleNamespace(status=JobStatus.RUNNING, driver_exit_code=None, message="")
HELD_BACK = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=3, message="")
GONE = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


class Cluster:
    """A client of a cluster that runs one job.

    Args:
        refusal: what the submission raises.
        answers: what each request for the state of the job returns or raises.
    """

    def __init__(self, refusal: Exception | None, answers: Iterator[Any]) -> None:
        self._refusal, self._answers = refusal, answers

    def submit_job(self, **_: Any) -> str:
        if self._refusal:
            raise self._refusal
        return "job-1"

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield f"output of {job}\n"

    def get_job_info(self, _: str) -> Any:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Silent(Cluster):
    """A cluster whose job prints nothing, until each connection is lost after so many seconds.

    Args:
        answers: as above; an error for a request that gets none.
        lasts: seconds that each connection lasts; the last one ends with the job.
    """

    def __init__(self, answers: list[Any], lasts: list[float]) -> None:
        super().__init__(None, iter(answers))
        self.now = 0.0
        self._lasts = iter(lasts)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        seconds = next(self._lasts, None)
        if seconds is not None:
            self.now += seconds
            raise GONE
        yield f"output of {job}\n"


def follow(cluster: Cluster, clock: Callable[[], float] = lambda: 0.0) -> int | None:
    """The exit code that following a job ends with."""
    client = cast(JobSubmissionClient, cluster)
    return asyncio.run(_follow(client, "job-1", pause_s=0.0, clock=clock)).driver_exit_code


@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [
        (
            ValueError("Package size (1GiB) exceeds.\nmore"),
            InputError,
            r"\(Package .*\).*\.rayign",
        ),
        (RuntimeError("Request failed with status code 500."), VisrecError, "500.*submit it again"),
        (ConnectionError("no answer"), VisrecError, "did not take the command"),
    ],
)
def test_refused_submission_is_explained(
    monkeypatch: pytest.MonkeyPatch, refusal: Exception, kind: type[VisrecError], message: str
) -> None:
    monkeypatch.setattr(module, "_connect", lambda: Cluster(refusal, iter([])))
    with pytest.raises(VisrecError, match=message) as caught:
        submit(["nightly"])
    assert type(caught.value) is kind


def test_exit_code_is_asked_for_until_the_dashboard_answers() -> None:
    assert follow(Cluster(None, iter([RuntimeError("restarting"), HELD_BACK]))) == 3


@pytest.mark.parametrize(
    ("answers", "lasts"),
    [
        ([GONE, HELD_BACK], [3600.0]),  # an hour of silence, then the head restarts
        ([RUNNING, RUNNING, RUNNING, HELD_BACK], [70.0, 70.0, 70.0]),  # a proxy's idle timeout
    ],
)
def test_silent_job_is_followed_across_lost_connections(
    answers: list[Any], lasts: list[float]
) -> None:
    cluster = Silent(answers, lasts)
    assert follow(cluster, lambda: cluster.now) == 3


def test_cluster_that_is_gone_for_two_minutes_ends_the_command() -> None:
    cluster = Silent([GONE] * 9, [70.0] * 9)
    with pytest.raises(VisrecError, match=r"has not answered for 120 s .*ray job status job-1"):
        follow(cluster, lambda: cluster.now)


def test_exit_code_is_known_if_the_rest_of_the_output_is_lost() -> None:
    cluster = Silent([HELD_BACK] * 9, [70.0] * 9)
    assert follow(cluster, lambda: cluster.now) == 3


def test_signal_says_that_the_job_still_runs() -> None:
    program = """
import os, signal, time
from visrec.cli.signals import exit_on_signals
exit_on_signals()
from tests.pipelines.test_submit import Cluster
from visrec.pipelines import submit

class Stopped(Cluster):
    async def tail_job_logs(self, job):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
        yield ""

submit._connect = lambda: Stopped(None, iter([]))
submit.submit(["nightly"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 130
    assert "job-1 still runs in the cluster: `ray job status job-1` shows" in ended.stderr
    assert "Nothing half done was published" not in ended.stderr


def test_password_of_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:s3cr3t@head:10001")
    with pytest.raises(InputError, match="Found RAY_ADDRESS") as caught:
        submit(["nightly"])
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize("is_empty", [True, False])
def test_address_that_is_not_set_is_named_as_such(
    monkeypatch: pytest.MonkeyPatch, is_empty: bool
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if is_empty:
        monkeypatch.setenv("RAY_ADDRESS", "")
    with pytest.raises(InputError, match=r"^RAY_ADDRESS is not set; expected the address of a"):
        submit(["nightly"])
