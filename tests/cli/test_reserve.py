"""Workers of several jobs on one cluster of four CPUs: some wait, none waits indefinitely."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from visrec.cli import reserve
from visrec.cli.reserve import reserve_workers

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ONE = {"CPU": 1.0}


@ray.remote(num_cpus=1)
class Network:
    def run(self, value: int) -> int:
        return value + 1


@ray.remote(num_cpus=1)
def fetch(value: int) -> int:
    time.sleep(0.05)
    return value


def job(_: int) -> list[int]:
    """Does what an extraction does: long-lived actors, and tasks that feed them."""
    with reserve_workers(2, ONE) as group:
        there = PlacementGroupSchedulingStrategy(group)
        networks: list[Any] = [
            Network.options(scheduling_strategy=there).remote() for _ in range(2)
        ]
        results = [networks[n % 2].run.remote(fetch.remote(n)) for n in range(6)]
        found = ray.get(results, timeout=60)
        for network in networks:
            ray.kill(network)
        return list(found)


def test_jobs_that_start_at_once_all_finish() -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(job, range(2), timeout=120))
    assert found == [[1, 2, 3, 4, 5, 6]] * 2


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_job_waits_while_no_cpu_would_be_left_for_tasks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reserve, "FIRST_MESSAGE_S", 0.2)
    entered, leave, printed = threading.Event(), threading.Event(), ""

    def second() -> None:
        with reserve_workers(2, ONE):
            entered.set()
            leave.wait(60)

    with reserve_workers(2, ONE):
        waiting = threading.Thread(target=second, daemon=True)
        waiting.start()  # two CPUs are free, and it needs a third for tasks
        assert not entered.wait(2)
        assert ray.get([fetch.remote(n) for n in range(3)], timeout=20) == [0, 1, 2]
        printed = capsys.readouterr().out
    assert "waiting for 2 CPU at once, and 1 CPU for the tasks that feed them" in printed
    assert "2 of 4 CPUs of the cluster are free now" in printed
    assert entered.wait(20)
    leave.set()
    waiting.join(20)
    assert eventually(lambda: ray.available_resources().get("CPU") == 4)


def test_reserved_resources_are_released_after_an_error() -> None:
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError), reserve_workers(3, ONE):  # noqa: PT011
        fail()
    assert eventually(lambda: ray.available_resources().get("CPU") == 4)
    with reserve_workers(3, ONE) as group:
        assert group.bundle_count == 3
