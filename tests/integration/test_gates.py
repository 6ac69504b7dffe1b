"""The gates: a run with a wrong file is held back, and published with a reason."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.workspace import copy, run_recommend
from visrec.errors import GateError, InputError
from visrec.publication.list_tables import lists_file
from visrec.publication.manifest import RUN_MANIFEST, parse_manifest
from visrec.publication.pointer import LATEST
from visrec.publication.publish import publish_run
from visrec.publication.shards import with_sha256
from visrec.storage.store import Store

INPUTS = ("interactions.parquet", "items.parquet", "users.parquet")
REASON = "the shop asked for it"


def night(workspace: Path, **keys: Any) -> Any:
    return run_recommend(workspace, run_id="first", shards=8, **keys)


def put_twice(path: Path) -> str:
    """Gives one user of a shard an item twice, as a bug in scoring would; returns the user."""
    table = pq.read_table(path)
    metadata = dict(table.schema.metadata)
    rows = table.to_pylist()
    row = next(row for row in rows if not row["cold"])
    row["items"][1] = {**row["items"][0], "score": row["items"][1]["score"]}
    changed = pa.Table.from_pylist(rows, table.schema).replace_schema_metadata(metadata)
    Store(str(path.parent)).write(path.name, with_sha256(changed, {}, lists_file))
    return str(row["user_id"])


def test_wrong_run_is_held_back_until_it_is_forced_with_a_reason(
    recommended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published run is a copy of this one, which died before its last step."""
    copy(recommended, tmp_path, "features", "models", "recommendations", *INPUTS)
    lists = tmp_path / "recommendations"
    run, before = lists / "run=first", lists / "run=before"
    shutil.copytree(run, before)
    manifest = replace(parse_manifest((before / RUN_MANIFEST).read_bytes(), ""), run_id="before")
    Store(str(before)).write_json(RUN_MANIFEST, manifest.to_dict())
    assert publish_run(Store(str(lists)), "before")
    pointer = (lists / LATEST).read_text()
    (run / RUN_MANIFEST).unlink()
    put_twice(sorted(run.glob("part-*"))[3])

    with pytest.raises(GateError) as held:
        night(tmp_path)
    sentence = "lists with an item twice: found 1, expected 0."
    assert sentence in str(held.value)
    assert "lists that differ from rescoring: found 1 (of " in str(held.value)
    assert str(held.value).count("expected") == 2
    assert (lists / LATEST).read_text() == pointer
    assert not (run / RUN_MANIFEST).exists()

    files = {path.name: path.stat().st_mtime_ns for path in run.glob("part-*")}
    forced = night(tmp_path, force_publish=REASON)
    assert forced.rows["shards scored now"] == 0
    both = ["lists with an item twice", "lists that differ from rescoring"]
    assert forced.rows["forced gates"] == "; ".join(both)
    assert {path.name: path.stat().st_mtime_ns for path in run.glob("part-*")} == files
    record = json.loads((run / RUN_MANIFEST).read_text())
    assert record["forced"] == {"reason": REASON, "gates": both}
    gates = {gate["key"]: gate for gate in record["gates"]}
    past = [gate["name"] for gate in record["gates"] if gate["outcome"] == "forced"]
    assert past == both
    assert 0.99 < gates["gates.min_overlap"]["found"] < 1  # but for that one item
    assert gates["gates.max_score_drift"]["found"] == 0.0
    assert gates["gates.min_gain"]["note"] == "this model has not been evaluated"
    skipped = sum(gate["outcome"] == "skipped" for gate in record["gates"])
    passed = len(record["gates"]) - skipped - 2
    counts = f"{passed} passed, {skipped} skipped, 2 forced (the manifest says why)"
    assert forced.rows["gates"] == counts
    assert forced.rows["evaluation"] == "this model has not been evaluated"
    assert "this model has not been evaluated. Run" in capsys.readouterr().out
    assert json.loads((lists / LATEST).read_text())["run_id"] == "first"


def test_force_publish_without_a_reason_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--force_publish without a reason"):
        run_recommend(tmp_path, force_publish="  ")


def test_every_threshold_is_a_flag() -> None:
    command = [sys.executable, "jobs/recommend.py", "--gates.min_lists", "-1", "--local"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 2
    assert "Found --gates.min_lists -1; expected a whole number in [0, " in done.stderr
