"""Users leave a workspace with a model, an evaluation, and two kept runs of lists."""

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.workspace import copy, published_rows, run_recommend
from tests.publication.runs import require_intact_run
from visrec.cli.summary import Summary
from visrec.errors import InputError, VisrecError
from visrec.pipelines import forget
from visrec.pipelines.forget import ForgetJob
from visrec.pipelines.forget_ids import read_user_ids
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST
from visrec.storage.store import Store

INPUTS = ("interactions.parquet", "items.parquet", "users.parquet", "truth")


def run_forget(workspace: Path, **keys: Any) -> Summary:
    summary = Summary("forget")
    forget.main(ForgetJob(workspace=str(workspace), **keys), summary)
    return summary


def remove_rows(path: Path, users: list[str]) -> None:
    table = pd.read_parquet(path)
    table[~table["user_id"].isin(users)].to_parquet(path, index=False)


def test_users_leave_everything_and_the_next_run_carries_the_other_lists_over(
    recommended: Path, evaluated: Path, tmp_path: Path
) -> None:
    assert recommended == evaluated
    copy(recommended, tmp_path, "features", "models", "evaluation", "recommendations", *INPUTS)
    lists = tmp_path / "recommendations"
    held_out = pq.read_table(tmp_path / "models" / "one" / "held_out.parquet")["user_id"]
    gone = sorted(set(held_out.to_pylist()))[:2]
    (tmp_path / "gone.txt").write_text("\ufeff" + "\r\n".join([*gone, "", gone[0]]) + "\n")
    (tmp_path / "training" / "one-123").mkdir(parents=True)
    (tmp_path / "training" / "one-123" / "state.safetensors").write_bytes(b"weights")
    before = {row["user_id"]: row for row in published_rows(lists)}

    exported = tmp_path / "shown" / "lists.jsonl.gz"
    summary = run_forget(tmp_path, users=str(tmp_path / "gone.txt"), export_to=[str(exported)])
    with gzip.open(exported, "rt") as lines:
        assert {json.loads(line)["user_id"] for line in lines} == before.keys() - set(gone)
    assert summary.rows["users"] == 2
    assert summary.rows["users found nowhere"] == 0
    assert summary.rows["lists removed"] == 2
    assert summary.rows["rows of models removed"] > 0
    assert summary.rows["rows of metrics removed"] == 2 * 9  # nine rows of the table
    assert summary.rows["checkpoints and unfinished files removed"] == 1
    assert "of 2 users in" in str(summary.rows["interactions still there"])
    assert "interactions.parquet" in str(summary.rows["found in files of yours"])
    after = {row["user_id"]: row for row in published_rows(lists)}
    assert after == {user: row for user, row in before.items() if user not in gone}
    require_intact_run(Store(str(lists / "run=first")))
    report = (tmp_path / "evaluation" / "report.html").read_text()
    assert not any(f"<bdi>{user}</bdi>" in report for user in gone)
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    manifest = json.loads((lists / "run=first" / RUN_MANIFEST).read_text())
    latest = json.loads((tmp_path / "models" / LATEST).read_text())
    assert [*metrics["digests"].values()] == [manifest["inputs"]["model"]] == [latest["digest"]]

    # The next run, without their interactions, takes all other lists over and passes its gates.
    for name in ("interactions.parquet", "users.parquet"):
        remove_rows(tmp_path / name, gone)
    night = run_recommend(tmp_path, run_id="next", shards=8)
    assert night.rows["published"] == "now"
    assert night.rows["lists carried over"] == night.rows["users"] - night.rows["cold users"]
    gates = json.loads((lists / "run=next" / RUN_MANIFEST).read_text())["gates"]
    assert {gate["outcome"] for gate in gates if gate["key"] == "gates.min_gain"} == {"passed"}
    again = run_forget(tmp_path, users=str(tmp_path / "gone.txt"))
    assert again.rows["users found nowhere"] == 2
    assert again.rows["lists removed"] == again.rows["rows of metrics removed"] == 0
    assert str(again.rows["interactions still there"]).startswith("none in ")


def test_file_that_still_names_a_user_is_reported(tmp_path: Path) -> None:
    (tmp_path / "nights").mkdir()
    (tmp_path / "nights" / "2026-11-20.json").write_text('{"user_id": "u1"}')
    pq.write_table(pa.table({"user_id": ["u1", "u2"]}), tmp_path / "gone.parquet")
    with pytest.raises(VisrecError, match=r"1 files still name .*nights/2026-11-20\.json"):
        run_forget(tmp_path, users=str(tmp_path / "gone.parquet"))


def test_ids_are_read_from_lines_or_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("b\na\nb\n")
    (tmp_path / "ids.csv").write_text("name,user_id\nx,b\ny,a\n")
    for name in ("ids", "ids.csv"):
        assert read_user_ids(str(tmp_path / name)).to_pylist() == ["b", "a"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(InputError, match=r"Found no id in .*Change --users"):
        read_user_ids(str(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match=r"There is no file .*missing\.txt .*Change --users"):
        read_user_ids(str(tmp_path / "missing.txt"))
