"""What `visrec forget` reads of others: the ids, files of the user's own, targets that are down."""

from pathlib import Path
from typing import Any

import pytest

from tests.exports.lists import made_lists, publish
from visrec.cli.summary import Summary
from visrec.errors import InputError, VisrecError
from visrec.pipelines.forget import ForgetJob, main, read_user_ids
from visrec.storage.store import Store

IDS = ["jürgen", "12"]


def run_forget(workspace: Path, summary: Summary, **keys: Any) -> None:
    (workspace / "gone.txt").write_text("\n".join(IDS))
    main(ForgetJob(workspace=str(workspace), users=str(workspace / "gone.txt"), **keys), summary)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_ids_are_read_in_the_encodings_of_tables(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "gone.txt"
    file.write_bytes("\r\n".join(IDS).encode(encoding))
    assert read_user_ids(str(file)).to_pylist() == IDS


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
