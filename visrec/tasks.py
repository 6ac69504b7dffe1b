"""Functions as Ray tasks where Ray runs, and calls in this process where it does not.

A local job starts Ray only for work that several processes do faster than one, after the seconds
that they take to start. All else is written once, with these names in place of Ray's.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")
Item = TypeVar("Item")
# A reference to a result in Ray's object store, or without Ray the result itself.
Ref: TypeAlias = Any


def on_ray() -> bool:
    """Whether this process has started Ray or joined it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def cluster_cpus() -> int:
    """How many CPUs Ray has for tasks; without Ray 1, since calls run one after another."""
    if not on_ray():
        return 1
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def submit(function: Callable[..., Any], *arguments: Any, results: int = 1) -> Ref:
    """Calls a function in a Ray task; without Ray, here and now.

    Args:
        function: a function of a module, so that a worker can import it.
        arguments: references are given to the function as what they refer to.
        results: how many results it has; of several, each gets a reference of its own.
    """
    if not on_ray():
        return function(*arguments)
    import ray

    task: Any = ray.remote(function)
    return task.options(num_returns=results).remote(*arguments)


def get(ref: Ref) -> Any:
    """What a reference, or each of a list of references, refers to."""
    if isinstance(ref, list):
        return [get(each) for each in ref]
    ray = sys.modules.get("ray")
    return ray.get(ref) if ray is not None and isinstance(ref, ray.ObjectRef) else ref


def call(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a function, called as `submit` does."""
    result: Result = get(submit(function, *arguments))
    return result


def share(value: Ref) -> Ref:
    """A reference to a value that may have been computed before Ray was started."""
    if not on_ray():
        return value
    import ray

    return value if isinstance(value, ray.ObjectRef) else ray.put(value)


def map_calls(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The results of a function for several lists of arguments, in as many tasks."""
    return list(get([submit(function, *arguments) for arguments in calls]))


def split_among_tasks(items: Sequence[Item], most: int | None = None) -> list[Sequence[Item]]:
    """The items in as many shares as there are CPUs, or as `most` says, and none of them empty."""
    tasks = min(len(items), most or cluster_cpus())
    return [items[task::tasks] for task in range(tasks)]


class LocalActor:
    """An object of this process that is called as a Ray actor is, one call at a time."""

    def __init__(self, instance: object) -> None:
        self._instance = instance
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> "_Method":
        return _Method(getattr(self._instance, name), self._lock)


class _Method:
    def __init__(self, method: Callable[..., Any], lock: threading.Lock) -> None:
        self._method, self._lock = method, lock

    def remote(self, *arguments: Any) -> Any:
        with self._lock:
            return self._method(*arguments)
