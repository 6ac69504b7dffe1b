"""How `visrec submit` ends where the cluster refuses or does not answer."""

from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from visrec.errors import InputError, VisrecError
from visrec.pipelines import submit as module
from visrec.pipelines.submit import submit


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


Connect = Callable[..., None]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    def to(*answers: Any, refusal: Exception | None = None) -> None:
        monkeypatch.setattr(module, "_connect", lambda: Cluster(refusal, iter(answers)))
        monkeypatch.setattr(module, "_PAUSE_S", 0.0)

    return to


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
    connect: Connect, refusal: Exception, kind: type[VisrecError], message: str
) -> None:
    connect(refusal=refusal)
    with pytest.raises(VisrecError, match=message) as caught:
        submit(["nightly"])
    assert type(caught.value) is kind


def test_exit_code_is_asked_for_until_the_dashboard_answers(connect: Connect) -> None:
    ended = SimpleNamespace(status=JobStatus.FAILED, driver_exit_code=3, message="")
    connect(RuntimeError("restarting"), ended)
    assert submit(["nightly"]) == 3


def test_password_of_an_address_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:s3cr3t@head:10001")
    with pytest.raises(InputError, match="Found RAY_ADDRESS") as caught:
        submit(["nightly"])
    assert "s3cr3t" not in str(caught.value)
