"""Nights filled in in any order, some of them again, are the same nights."""

import random
import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.harness import amount, measured
from tests.integration.workspace import copy, run_night
from visrec.publication.pointer import LATEST

pytestmark = [pytest.mark.ray, pytest.mark.chaos]
INPUTS = ("features", "images", "interactions.parquet", "items.parquet", "users.parquet")
FIRST = date(2022, 10, 31)  # a Monday of the gallery's second year; Thursdays are training days


def lists_of(workspace: Path, night: str) -> list[object]:
    files = sorted((workspace / "recommendations" / f"run={night}").glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def test_nights_filled_in_in_any_order_are_the_same(featured: Path, tmp_path: Path) -> None:
    """Each is run three times: once for all, again as it is, and again from nothing."""
    count, orders = amount(2, 7), amount(2, 5)
    model = ("visrank", "curatornet")[amount(0, 1)]  # which needs no training, for the short form
    # Every second day: on some days nobody took anything.
    nights = [(FIRST + timedelta(days=2 + 2 * n)).isoformat() for n in range(count)]
    truth: dict[str, list[object]] = {}
    made = 0
    for order in range(orders):
        workspace = tmp_path / f"order-{order}"
        copy(featured, workspace, *INPUTS)
        shuffled = random.Random(order).sample(nights, count) if order else nights
        for night in shuffled:
            for again in ("the first time", "as it is", "from nothing"):
                if again == "from nothing":
                    shutil.rmtree(workspace / "recommendations" / f"run={night}")
                    (workspace / "recommendations" / LATEST).unlink(missing_ok=True)
                run_night(workspace, night, model=model, keep=count + 2, evaluate=False)
                made += 1
                found = lists_of(workspace, night)
                assert found == truth.setdefault(night, found), (order, night, again)
        shutil.rmtree(workspace)
    different = {str(rows) for rows in truth.values()}
    assert len(different) == count  # else it would be no wonder
    measured(16, nights=count, orders=orders, runs=made, different_lists=len(different) - count)
