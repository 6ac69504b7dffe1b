"""Missed nights give the same lists in any order, and when they are run again."""

import random
import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured, on_ray_at_full_length
from tests.integration.workspace import copy, run_night
from visrec.publication.pointer import LATEST

pytestmark = [pytest.mark.chaos, *on_ray_at_full_length()]
INPUTS = ("features", "images", "interactions.parquet", "items.parquet", "users.parquet")
FIRST = date(2022, 10, 31)  # a Monday in the gallery's second year; Thursdays are training days
# How a night is run again: on what it left, or without its lists and the pointer.
RERUNS = ("first run", "rerun", "rerun from nothing")


def read_lists(workspace: Path, night: str) -> list[object]:
    files = sorted((workspace / "recommendations" / f"run={night}").glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_nights_have_the_same_lists_in_any_order_and_when_run_again(
    featured: Path, tmp_path: Path
) -> None:
    count, orders = amount(2, 7), amount(2, 5)
    model = ("visrank", "curatornet")[amount(0, 1)]  # the short form needs no training
    # Every second day, because on some days there are no interactions.
    nights = [(FIRST + timedelta(days=2 + 2 * n)).isoformat() for n in range(count)]
    expected: dict[str, list[object]] = {}
    runs = 0
    for order in range(orders):
        workspace = tmp_path / f"order-{order}"
        copy(featured, workspace, *INPUTS)
        shuffled = random.Random(order).sample(nights, count) if order else nights
        for night in shuffled:
            # The short form repeats nights in the first order only.
            for rerun in RERUNS[: amount(1 if order else 3, 3)]:
                if rerun == "rerun from nothing":
                    shutil.rmtree(workspace / "recommendations" / f"run={night}")
                    (workspace / "recommendations" / LATEST).unlink(missing_ok=True)
                run_night(workspace, night, model=model, keep=count + 2, evaluate=False)
                runs += 1
                found = read_lists(workspace, night)
                assert found == expected.setdefault(night, found), (order, night, rerun)
        shutil.rmtree(workspace)
    different = {str(rows) for rows in expected.values()}
    assert len(different) == count  # otherwise equal lists would prove nothing
    measured(16, nights=count, orders=orders, runs=runs, different_lists=len(different) - count)
