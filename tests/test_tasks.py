"""The names that stand for Ray's, in a process without Ray."""

import threading

import pytest

from visrec import tasks


def add(*numbers: int) -> int:
    return sum(numbers)


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test of this process may have started Ray."""
    monkeypatch.setattr(tasks, "on_ray", lambda: False)


def test_task_is_a_call_and_its_reference_the_result() -> None:
    one = tasks.submit(add, 1, 2)
    assert tasks.get(tasks.submit(add, one, 4)) == 7
    assert tasks.call(add, 5) == 5
    assert tasks.map_calls(add, [(1,), (2, 3)]) == [1, 5]
    value = object()
    assert tasks.share(value) is value


def test_local_actor_answers_one_call_at_a_time() -> None:
    class Counter:
        def __init__(self) -> None:
            self.inside, self.most, self.calls = 0, 0, 0

        def enter(self) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.calls += 1
            self.inside -= 1

    counter = Counter()
    actor = tasks.LocalActor(counter)
    threads = [
        threading.Thread(target=lambda: [actor.enter.remote() for _ in range(200)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counter.calls, counter.most) == (800, 1)
