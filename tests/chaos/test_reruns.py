"""A run of which some shards are gone makes those again and no others, to the same bytes."""

import hashlib
import json
import random
from pathlib import Path

import pytest

from tests.chaos.harness import amount, measured, on_ray_at_full_length
from tests.integration.workspace import copy, run_recommend
from visrec.publication.manifest import RUN_MANIFEST

pytestmark = [pytest.mark.chaos, *on_ray_at_full_length()]
SHARDS, NIGHT = 20, "night"
INPUTS = ("features", "models", "interactions.parquet", "items.parquet", "users.parquet")


@pytest.mark.parametrize("share", [10, 25, 50, 75, 90])
def test_missing_shards_are_made_again_and_no_others(
    trained: Path, tmp_path: Path, share: int
) -> None:
    if share not in (10, 25, 50, 75, 90)[: amount(1, 5)]:
        pytest.skip("a part of the full form, `make chaos`")
    copy(trained, tmp_path, *INPUTS)
    run = tmp_path / "recommendations" / f"run={NIGHT}"
    run_recommend(tmp_path, run_id=NIGHT, shards=SHARDS)
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("part-*")}
    truth = {name: hashlib.sha256((run / name).read_bytes()).hexdigest() for name in before}
    gone = random.Random(share).sample(sorted(before), SHARDS * share // 100)
    for name in gone:
        (run / name).unlink()
    (run / RUN_MANIFEST).unlink()
    again = run_recommend(tmp_path, run_id=NIGHT, shards=SHARDS)
    assert again.rows["shards scored now"] == len(gone)
    files = json.loads((run / RUN_MANIFEST).read_text())["files"]
    assert {name: facts["sha256"] for name, facts in files.items()} == truth
    now = {path.name: path.stat().st_mtime_ns for path in run.glob("part-*")}
    assert {name for name in now if now[name] != before[name]} == set(gone)
    measured(5, shards_removed=len(gone), shards_made_again=again.rows["shards scored now"])
