"""The table of DDP groups, without Ray: it grants epochs one at a time, and ends groups."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from ray.exceptions import RayError

from tests.training import checkerboard
from visrec.models.curatornet import CuratorNetConfig
from visrec.sampling.triples import SamplingConfig
from visrec.training.fit import TrainingRecipe, build_trainer
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainResources
from visrec.tuning.groups import GroupTable, GroupTask, history_with_outcome

RECIPE = TrainingRecipe(
    "curatornet",
    CuratorNetConfig(item_width=8, user_width=8),
    TrainConfig(epochs=2, triples_per_epoch=128, batch_size=64),
    SamplingConfig(),
)


class FakeTable(GroupTable):
    """A table whose runs are coroutines in this process: two workers, which train nothing.

    Args:
        epochs: number of epochs until a run is at its end.
        fails_after: epochs after which a run fails; None never fails.
        error: how it fails.
    """

    def __init__(
        self, epochs: int = 3, fails_after: int | None = None, error: Exception | None = None
    ) -> None:
        no_store: Any = None
        super().__init__(TrainResources(workers=2), no_store)
        self._epochs, self._fails_after = epochs, fails_after
        self._error = error or RayError("a worker died")
        self.trained: list[tuple[int, int, int]] = []  # trial, worker, epoch
        self.running: set[int] = set()

    async def _run(self, task: GroupTask) -> None:
        assert task.number not in self.running
        self.running.add(task.number)
        try:
            await asyncio.gather(self._work(task.number, 0), self._work(task.number, 1))
        finally:
            self.running.remove(task.number)

    async def _work(self, number: int, rank: int) -> None:
        history: list[dict[str, float]] = []
        while len(history) < self._epochs and await self.may_train(number, len(history)):
            if len(history) == self._fails_after:
                raise self._error
            self.trained.append((number, rank, len(history) + 1))
            history.append({"val_auc": 0.1 * (len(history) + 1)})
            if rank == 0:
                await self.record_history(number, list(history))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(scenario(), timeout=10)

    asyncio.run(limited())


async def start(table: GroupTable, number: int) -> None:
    data: Any = object()
    await table.start(number, RECIPE, [data], table)


async def settle() -> None:
    """Lets all coroutines run until each of them waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_group_trains_no_epoch_before_it_is_granted() -> None:
    table = FakeTable()

    async def scenario() -> None:
        await start(table, 1)
        await settle()
        assert table.trained == []
        assert await table.next_epoch(1) == {"val_auc": 0.1}
        await settle()
        assert sorted(table.trained) == [(1, 0, 1), (1, 1, 1)]
        await table.stop_all()

    run(scenario)


def test_stopped_group_ends_and_trains_no_more() -> None:
    table = FakeTable()

    async def scenario() -> None:
        await start(table, 1)
        await table.next_epoch(1)
        await table.stop(1)
        assert table.running == set()
        assert {epoch for *_, epoch in table.trained} == {1}

    run(scenario)


def test_group_that_reaches_its_end_frees_its_resources_by_itself() -> None:
    table = FakeTable(epochs=2)

    async def scenario() -> None:
        await start(table, 1)
        epochs = [await table.next_epoch(1) for _ in range(2)]
        assert epochs == [{"val_auc": 0.1}, {"val_auc": 0.2}]
        await settle()
        assert table.running == set()
        await table.stop(1)

    run(scenario)


def test_granted_epoch_is_trained_by_all_workers_even_after_a_stop() -> None:
    # Otherwise one worker would wait for the other in a collective that never comes.
    table = FakeTable()

    async def scenario() -> None:
        await start(table, 1)
        epoch = asyncio.create_task(table.next_epoch(1))
        await asyncio.sleep(0)
        await table.stop(1)
        assert await epoch == {"val_auc": 0.1}
        assert sorted(table.trained) == [(1, 0, 1), (1, 1, 1)]

    run(scenario)


def test_stop_of_a_trial_without_a_group_does_nothing() -> None:
    async def scenario() -> None:
        await FakeTable().stop(7)

    run(scenario)


def test_error_of_a_run_reaches_the_trial() -> None:
    async def scenario() -> None:
        table = FakeTable(fails_after=1)
        await start(table, 1)
        await table.next_epoch(1)
        with pytest.raises(RayError, match="a worker died"):
            await table.next_epoch(1)
        await table.stop_all()

    run(scenario)


def test_error_of_any_kind_reaches_the_trial() -> None:
    async def scenario() -> None:
        table = FakeTable(fails_after=0, error=RuntimeError("no room"))
        await start(table, 1)
        with pytest.raises(RuntimeError, match="no room"):
            await asyncio.wait_for(table.next_epoch(1), 10)

    run(scenario)


def test_restarted_trial_waits_for_the_end_of_its_earlier_group() -> None:
    table = FakeTable()

    async def scenario() -> None:
        await start(table, 1)
        await table.next_epoch(1)
        await start(table, 1)  # `_run` asserts that the first is over
        assert await table.next_epoch(1) == {"val_auc": 0.1}
        await table.stop_all()

    run(scenario)


def test_groups_of_different_trials_do_not_wait_for_each_other() -> None:
    table = FakeTable()

    async def scenario() -> None:
        await start(table, 1)
        await start(table, 2)
        await table.next_epoch(2)
        await table.next_epoch(2)
        await table.stop(2)
        assert table.running == {1}
        assert await table.next_epoch(1) == {"val_auc": 0.1}
        await table.stop_all()
        assert table.running == set()

    run(scenario)


def test_only_the_last_epoch_tells_the_outcome() -> None:
    trainer = build_trainer(RECIPE, checkerboard())
    assert history_with_outcome(trainer) == []
    trainer.run_epoch()
    (first,) = history_with_outcome(trainer)
    assert (first["is_last"], first["is_finite"]) == (False, True)
    trainer.run_epoch()
    first, last = history_with_outcome(trainer)
    assert "is_last" not in first
    assert (last["is_last"], last["is_finite"]) == (True, True)
