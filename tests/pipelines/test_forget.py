"""What `visrec forget` reads of others: the ids, files of the user's own, targets that are down."""

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.exports.lists import made_lists, publish
from tests.publication.runs import PASSED, draft_manifest, file_names, require_intact_run
from tests.publication.test_forget import damage, part_of, write_run
from visrec.cli.summary import Summary
from visrec.errors import InputError, VisrecError
from visrec.evaluation.results import PER_USER
from visrec.features.table import FEATURES_MANIFEST, Identity, Manifest
from visrec.models.artifact import LATEST, MODEL_MANIFEST
from visrec.pipelines.forget import ForgetJob, check, main
from visrec.pipelines.forget_ids import read_user_ids
from visrec.publication.completion import finish_run
from visrec.storage.store import Store

IDS = ["jürgen", "12"]


def run_forget(workspace: Path, summary: Summary, **keys: Any) -> None:
    (workspace / "gone.txt").write_text("\n".join(IDS))
    main(ForgetJob(workspace=str(workspace), users=str(workspace / "gone.txt"), **keys), summary)


@pytest.mark.parametrize("is_there", [False, True])
def test_workspace_that_is_not_there_or_empty_is_refused(is_there: bool, tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text("12")
    workspace = tmp_path / "shp"
    if is_there:
        workspace.mkdir()
    job = ForgetJob(workspace=str(workspace), users=str(tmp_path / "gone.txt"))
    with pytest.raises(InputError, match=r"no folder .*/shp, or nothing in it; .*--workspace"):
        check(job)
    assert workspace.exists() == is_there
    # Runs that are elsewhere need nothing in the workspace.
    check(dataclasses.replace(job, recommendations=str(tmp_path / "runs")))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ids_are_read_in_the_encodings_of_tables(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "gone.txt"
    file.write_bytes("\r\n".join(IDS).encode(encoding))
    assert read_user_ids(str(file)).to_pylist() == IDS


def test_lines_are_split_at_line_breaks_alone(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_bytes("a\u2028b\rc\x0bd\n\r\n  \ne\x85f".encode())
    ids = ["a\u2028b", "c\x0bd", "e\x85f"]
    assert read_user_ids(str(tmp_path / "gone.txt")).to_pylist() == ids


@pytest.mark.parametrize("line", [" 12", "12\t", "12\u2028"])
def test_line_with_white_space_around_its_id_is_refused(line: str, tmp_path: Path) -> None:
    (tmp_path / "gone.txt").write_text(f"13\n{line}\n")
    with pytest.raises(
        InputError, match=r"in line 2 of .*gone\.txt \(--users\); expected an id wi"
    ):
        read_user_ids(str(tmp_path / "gone.txt"))


@pytest.mark.parametrize("data", ["jürgen".encode("cp1252"), "12".encode("utf-16-le"), b"\x1f\x8b"])
def test_ids_in_another_encoding_are_refused_by_the_name_of_the_key(
    data: bytes, tmp_path: Path
) -> None:
    (tmp_path / "gone.txt").write_bytes(data)
    with pytest.raises(InputError, match=r"gone\.txt \(--users\) .*; expected .*UTF-16 with a"):
        read_user_ids(str(tmp_path / "gone.txt"))


def test_files_of_the_user_that_cannot_be_searched_are_named(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n12,a,1\n13,a\n")
    (tmp_path / "orders.parquet").write_bytes(b"PAR1")
    (tmp_path / "old.csv").write_text("user_id;note\n12;x\n")
    summary = Summary("forget")
    run_forget(tmp_path, summary)
    assert summary.rows["found in files of yours"] == str(tmp_path / "old.csv")
    assert summary.rows["files of yours that could not be searched"] == ", ".join(
        str(tmp_path / name) for name in ("interactions.csv", "orders.parquet")
    )
    assert str(summary.rows["interactions still there"]).startswith("unknown: ")


def test_file_that_visrec_wrote_and_that_cannot_be_searched_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "cut.parquet").write_bytes(b"PAR1")
    with pytest.raises(
        VisrecError, match=r"1 files that visrec wrote could not be searched: .*cut"
    ):
        run_forget(tmp_path, Summary("forget"))


def test_target_that_is_down_is_told_after_everything_else_is_done(tmp_path: Path) -> None:
    lists = Store(str(tmp_path / "recommendations"))
    publish(lists, "r1", made_lists(5))
    checkpoint = tmp_path / "training" / "one" / "state.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    summary, targets = Summary("forget"), ["/dev/null/x.csv", str(tmp_path / "lists.jsonl")]
    with pytest.raises(
        VisrecError, match=r"exported to /dev/null/x\.csv; .*Everything else is"
    ) as e:
        run_forget(tmp_path, summary, export_to=targets)
    assert "night" not in str(e.value)
    assert not checkpoint.exists()
    assert (tmp_path / "lists.jsonl").exists()
    assert summary.rows["files searched"] > 0


def test_targets_of_earlier_exports_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(Store(str(tmp_path / "recommendations")), "r1", made_lists(5))
    targets = [str(tmp_path.parent / f"{tmp_path.name}-{name}.csv") for name in "ab"]
    run_forget(tmp_path, Summary("forget"), export_to=targets)
    assert "were exported" not in capsys.readouterr().out
    summary = Summary("forget")
    run_forget(tmp_path, summary, export_to=targets[:1])
    assert summary.rows["exported before, and not now"] == targets[1]
    assert f"Lists were exported to {targets[1]}, which may" in capsys.readouterr().out


def test_damaged_file_keeps_users_in_its_own_place_alone(tmp_path: Path) -> None:
    """The run that it belongs to is named at the end; all others are done, and the checkpoints."""
    lists = Store(str(tmp_path / "recommendations"))
    runs = {run_id: write_run(lists, "user_to_item", run_id=run_id) for run_id in ("r1", "r2")}
    for run, fields in runs.values():
        finish_run(run, draft_manifest(**fields), [PASSED])
    damage(runs["r1"][0], part_of(runs["r1"][0], "12"), "cut")
    model = Store(str(tmp_path / "models" / "m1"))
    model.write(MODEL_MANIFEST, b'{"files": {"weights": "1"}, "digest": "2"}')
    evaluation = Store(str(tmp_path / "evaluation" / "interrupted"))
    evaluation.write_table(PER_USER, pa.table({"user_id": ["12", "13"], "auc": [0.5, 0.5]}))
    checkpoint = Store(str(tmp_path / "training"))
    checkpoint.write("one/state.safetensors", b"weights")
    summary = Summary("forget")
    with pytest.raises(VisrecError, match=r"/run=r1 and start .*Everything else is") as error:
        run_forget(tmp_path, summary)
    assert "models/m1" in str(error.value)
    assert require_intact_run(runs["r2"][0]).queries == 2
    assert evaluation.read_table(PER_USER)["user_id"].to_pylist() == ["13"]
    assert not checkpoint.exists("one/state.safetensors")
    assert summary.rows["runs examined"] == 2


@pytest.mark.parametrize("latest", [b"{", b"[]", b'{"model_id": "one"}'])
def test_damaged_name_of_the_last_model_is_told_when_the_rest_is_done(
    latest: bytes, tmp_path: Path
) -> None:
    lists = Store(str(tmp_path / "recommendations"))
    run, fields = write_run(lists, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    Store(str(tmp_path / "models")).write(LATEST, latest)
    with pytest.raises(VisrecError, match=rf"models/{LATEST} .*Everything else is done"):
        run_forget(tmp_path, Summary("forget"))
    assert require_intact_run(run).queries == 2


def test_summaries_that_name_users_are_removed(tmp_path: Path) -> None:
    summaries = Store(str(tmp_path / "summaries"))
    for name in ("explain", "check", "train"):
        summaries.write_json(f"{name}.json", {"user": "13", "users": {"such as": ["12"]}})
    run_forget(tmp_path, Summary("forget"))
    assert file_names(summaries) == {"train.json"}


@pytest.mark.parametrize("name", ["features", "text_features"])
def test_ids_of_items_with_a_picture_or_a_text_are_ambiguous(name: str, tmp_path: Path) -> None:
    store, item = Store(str(tmp_path / name)), "item-000123"
    identity = Identity(
        backbone="planted", weights_digest="w", preprocessing={}, precision="float32", dim=1
    )
    manifest = Manifest(
        identity=identity, files={"part-0.parquet": 1}, rejected={}, settings={}, digest="a"
    )
    store.write_table("part-0.parquet", pa.table({"item_id": [item]}))
    store.write_json(FEATURES_MANIFEST, manifest.to_dict())
    (tmp_path / "recommendations").mkdir()
    (tmp_path / "recommendations" / "notes.txt").write_text(item)
    (tmp_path / "users.txt").write_text(f"{item}\n")
    summary = Summary("forget")
    main(ForgetJob(workspace=str(tmp_path), users=str(tmp_path / "users.txt")), summary)
    assert str(summary.rows["searched in columns of users only"]).startswith("1 ids")


PLACES = ("evaluation/per_user", "models/m1/held_out", "recommendations/run=r1/part-x")


def test_ids_that_occur_nowhere_are_counted_and_printed_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of five users, each of the first four is in one place, the last in none."""
    for number, place in enumerate(PLACES):
        file = tmp_path / f"{place}.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table({"user_id": [str(number)]}), file)
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n3,a,1\n")
    (tmp_path / "gone.txt").write_text("0\n1\n2\n3\ntypo-0001\n")
    job, summary = ForgetJob(workspace=str(tmp_path), users=str(tmp_path / "gone.txt")), Summary("")
    with pytest.raises(VisrecError, match="still name"):  # a file of no run stays
        main(job, summary)
    assert summary.rows["users found nowhere"] == 1
    assert "1 of 5 users are in no interactions, model, list or evaluation: typo-0001." in (
        capsys.readouterr().out
    )
    assert "typo-0001" not in str(summary.to_dict())
