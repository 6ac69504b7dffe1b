"""Tables for SQL readers show the published run alone, read as users read them, on either store."""

import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.publication.list_runs import (
    FORMATS,
    complete_lists,
    duckdb_by_pointer,
    in_order,
    open_delta,
    open_iceberg,
    rows_of_run,
    rows_of_table,
    runs_seen,
)
from tests.publication.runs import published_run_id, require_intact_run
from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, InputError
from visrec.publication import delta_checkpoint, delta_table, iceberg_table
from visrec.publication.delta_table import DELTA_LOG
from visrec.publication.iceberg_table import HINT, ICEBERG
from visrec.publication.list_tables import Layout
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import TableFormat, read_pointer, replace_pointer
from visrec.publication.publish import next_pointer, publication_status, publish_run
from visrec.publication.retention import remove_old_runs
from visrec.publication.rollback import roll_back
from visrec.publication.run_spec import run_store
from visrec.publication.symlink_manifest import SYMLINK_MANIFEST
from visrec.publication.tables import PublishConfig, require_tables
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """The same, on a disk, below a folder with a space in its name."""
    return Store.at(str(tmp_path / "my shop" / "recommendations"))


def publish(lists: Store, *run_ids: str, tables: tuple[TableFormat, ...] = FORMATS) -> None:
    for run_id in run_ids:
        complete_lists(lists, run_id)
        assert publish_run(lists, run_id, tables=tables)


def seen(lists: Store, tables: tuple[TableFormat, ...] = FORMATS) -> list[set[str]]:
    return [runs_seen(lists, table) for table in tables]


def move_pointer_alone(lists: Store, run_id: str) -> None:
    """What a process leaves that is killed right after it moved the pointer."""
    pointer, version = read_pointer(lists)
    run = run_store(lists, run_id)
    moved = next_pointer(run_id, run.read(RUN_MANIFEST), require_intact_run(run), pointer)
    assert replace_pointer(lists, moved, version)


# ------------------------------------------------------------------------------- the published run


def test_tables_show_the_published_run_alone_and_follow_every_move(lists: Store) -> None:
    publish(lists, "r1")
    complete_lists(lists, "r2")
    assert seen(lists) == 3 * [{"r1"}]  # not the run that is complete and not published
    assert publish_run(lists, "r2")  # the key is not needed again
    assert seen(lists) == 3 * [{"r2"}]
    assert roll_back(lists) == ("r2", "r1")
    assert seen(lists) == 3 * [{"r1"}]
    assert publish_run(lists, "r1") is False
    before = {entry.name: entry.fingerprint for entry in lists.list()}
    publish_run(lists, "r1", completed_by_another=True, tables=FORMATS)
    assert {entry.name: entry.fingerprint for entry in lists.list()} == before


def test_rows_are_those_of_the_files_whatever_the_kind_and_the_layout(local: Store) -> None:
    """Also after the columns changed; and older publications as long as their runs are there."""
    runs: list[tuple[Kind, Layout]] = [
        *(("user_to_item", "nested"), ("user_to_item", "long"), ("user_to_item", "nested")),
        *(("item_to_item", "nested"), ("item_to_item", "long")),
    ]
    for number, (kind, layout) in enumerate(runs):
        complete_lists(local, f"r{number}", kind, layout)
        publish_run(local, f"r{number}", tables=FORMATS)
        expected = rows_of_run(local, f"r{number}")
        assert [rows_of_table(local, table) for table in FORMATS] == 3 * [expected]
    snapshots = open_iceberg(local).metadata.snapshots
    for number, snapshot in enumerate(sorted(snapshots, key=lambda each: each.sequence_number)):
        expected = rows_of_run(local, f"r{number}")
        assert in_order(open_delta(local, number).to_pyarrow_table()) == expected
        scan = open_iceberg(local).scan(snapshot_id=snapshot.snapshot_id)
        assert in_order(scan.to_arrow()) == expected
    assert {snapshot.summary["visrec.run_id"] for snapshot in snapshots} == {
        f"r{number}" for number in range(len(runs))
    }


def test_no_file_of_a_run_is_copied_or_changed(local: Store) -> None:
    publish(local, "2026-11-22T03:00")  # a name with what URIs would encode
    run = run_store(local, "2026-11-22T03:00")
    named = {entry.name for entry in run.list()}
    require_intact_run(run)
    assert named == {*require_intact_run(run).files, RUN_MANIFEST}
    assert not [entry.name for entry in local.list("_") if entry.name.endswith("parquet")]
    assert seen(local) == 3 * [{"2026-11-22T03:00"}]


def test_run_that_is_made_again_under_its_name_is_shown_once(local: Store) -> None:
    """Its files have the names of those before."""
    publish(local, "r1")
    run_store(local, "r1").delete([RUN_MANIFEST])
    complete_lists(local, "r1", cutoff=1)
    assert publish_run(local, "r1")
    assert seen(local) == 3 * [{"r1"}]
    assert open_delta(local).version() == 1
    assert (local / ICEBERG).read(HINT) == b"2"


def test_table_that_is_named_later_shows_what_is_published_already(local: Store) -> None:
    publish(local, "r1", tables=())
    assert not (local / DELTA_LOG).exists("00000000000000000000.json")
    assert publish_run(local, "r1", completed_by_another=True, tables=("delta",)) is False
    publish(local, "r2", tables=("manifest",))
    assert seen(local, ("delta", "manifest")) == 2 * [{"r2"}]
    assert read_pointer(local)[0].tables == ("delta", "manifest")


def test_table_asked_for_by_a_run_that_is_not_published_is_said_to_be_left_out(
    local: Store,
) -> None:
    publish(local, "r1", "r2", tables=("delta",))
    assert not publish_run(local, "r1", completed_by_another=True, tables=("delta", "iceberg"))
    status = publication_status(local, "r1", completed_by_another=True)
    assert status.tables_row(("delta", "iceberg")) == {
        "tables": "delta; not iceberg, until a run is published with it"
    }
    assert publication_status(local, "r2").tables_row(()) == {"tables": "delta"}


# ---------------------------------------------------------------- killed between pointer and table


@pytest.mark.parametrize("repair", ["publish", "rerun", "rollback", "prune"])
def test_next_start_of_any_job_brings_the_tables_to_the_pointer(local: Store, repair: str) -> None:
    publish(local, "2026-11-21", "2026-11-22")
    for run_id in ("2026-11-23", "2026-11-24"):
        complete_lists(local, run_id)
    move_pointer_alone(local, "2026-11-23")
    assert seen(local) == 3 * [{"2026-11-22"}]
    steps: dict[str, tuple[Callable[[], Any], str]] = {
        "publish": (lambda: publish_run(local, "2026-11-24"), "2026-11-24"),
        "rerun": (
            lambda: publish_run(local, "2026-11-23", completed_by_another=True),
            "2026-11-23",
        ),
        "rollback": (lambda: roll_back(local), "2026-11-22"),
        "prune": (lambda: remove_old_runs(local, 2), "2026-11-23"),
    }
    step, published = steps[repair]
    step()
    assert published_run_id(local) == published
    assert seen(local) == 3 * [{published}]


def test_retention_first_moves_the_tables_away_from_a_run_that_it_removes(local: Store) -> None:
    """After a rollback forward the run that the tables show is not the previous run any more."""
    publish(local, "2026-11-20", "2026-11-21", "2026-11-22")
    roll_back(local, "2026-11-20")
    pointer, version = read_pointer(local)
    run = run_store(local, "2026-11-22")
    moved = next_pointer("2026-11-22", run.read(RUN_MANIFEST), require_intact_run(run), pointer)
    replace_pointer(local, dataclasses.replace(moved, previous_run_id=None), version)
    assert seen(local) == 3 * [{"2026-11-20"}]
    assert remove_old_runs(local, 2) == ["2026-11-20"]
    assert seen(local) == 3 * [{"2026-11-22"}]


def test_iceberg_version_whose_hint_did_not_move_is_taken_up(local: Store) -> None:
    publish(local, "r1", "r2", tables=("iceberg",))
    (local / ICEBERG).write(HINT, b"1")
    assert seen(local, ("iceberg",)) == [{"r1"}]
    publish_run(local, "r2", completed_by_another=True)
    assert (local / ICEBERG).read(HINT) == b"2"
    publish(local, "r3", tables=())
    assert (local / ICEBERG).read(HINT) == b"3"
    assert seen(local, ("iceberg",)) == [{"r3"}]


def test_race_of_publications_ends_with_every_table_at_the_pointer(lists: Store) -> None:
    publish(lists, "before")
    runs = [f"r{n}" for n in range(4)]
    for run_id in runs:
        complete_lists(lists, run_id)

    def until_moved(n: int) -> None:
        while True:
            try:
                publish_run(lists, runs[n])
                return
            except ConflictError:
                continue

    in_threads(4, until_moved)
    assert seen(lists) == 3 * [{published_run_id(lists)}]
    assert open_delta(lists).version() == 4  # one commit for each move, whoever made it
    assert (lists / ICEBERG).read(HINT) == b"5"


# ------------------------------------------------------------------------------------- long lives


def test_old_versions_are_removed_and_readers_start_from_a_checkpoint(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (delta_table, delta_checkpoint):
        monkeypatch.setattr(module, "CHECKPOINT_EVERY", 2)
    for module in (delta_checkpoint, iceberg_table):
        monkeypatch.setattr(module, "_KEPT", 3)
    for number in range(8):
        publish(local, f"r{number}", tables=("delta", "iceberg"))
    log = {entry.name for entry in (local / DELTA_LOG).list()}
    commits = {f"{version:020}.json" for version in range(3, 8)}
    checkpoints = {f"{version:020}.checkpoint.parquet" for version in (4, 6)}
    assert log == {*commits, *checkpoints, "_last_checkpoint"}
    assert open_delta(local).version() == 7
    assert in_order(open_delta(local, 6).to_pyarrow_table()) == rows_of_run(local, "r6")
    names = {entry.name for entry in (local / ICEBERG).list() if entry.name.endswith("json")}
    assert names == {f"metadata/v{version}.metadata.json" for version in range(6, 9)}
    assert len(open_iceberg(local).metadata.snapshots) == 3
    assert seen(local, ("delta", "iceberg")) == 2 * [{"r7"}]


# ---------------------------------------------------------------------------------- other writers


def test_rows_that_somebody_else_adds_to_the_delta_table_leave_with_the_next_commit(
    local: Store,
) -> None:
    publish(local, "r1", tables=("delta",))
    theirs = open_delta(local).to_pyarrow_table().slice(0, 1)
    write_deltalake(local.root, theirs, mode="append")
    assert len(rows_of_table(local, "delta")) == 7
    publish_run(local, "r1", completed_by_another=True)
    assert seen(local, ("delta",)) == [{"r1"}]
    write_deltalake(local.root, theirs, mode="append")
    publish(local, "r2", tables=())
    assert seen(local, ("delta",)) == [{"r2"}]


def test_vacuum_of_others_removes_no_run(local: Store) -> None:
    publish(local, "r1", "r2")
    for entry in local.list():
        os.utime(local.uri(entry.name), (0, 0))
    assert open_delta(local).vacuum(dry_run=False) == []
    assert roll_back(local) == ("r2", "r1")
    assert seen(local) == 3 * [{"r1"}]
    assert open_iceberg(local).properties["gc.enabled"] == "false"


def their_delta_table(local: Store) -> None:
    write_deltalake(local.root, pa.table({"a": [1]}))


def changed_metadata(local: Store) -> None:
    publish(local, "r1", tables=("delta",))
    open_delta(local).alter.set_table_properties({"delta.checkpointInterval": "5"})


def damaged_commit(local: Store) -> None:
    publish(local, "r1", tables=("delta",))
    (local / DELTA_LOG).write("00000000000000000000.json", b'{"commitInfo"')


def damaged_hint(local: Store) -> None:
    publish(local, "r1", tables=("iceberg",))
    (local / ICEBERG).write(HINT, b"v1")


def metadata_without_a_schema(local: Store) -> None:
    publish(local, "r1", tables=("iceberg",))
    name = "metadata/v1.metadata.json"
    metadata = (local / ICEBERG).read_json(name)
    (local / ICEBERG).write_json(name, {**metadata, "schemas": 3})


def lost_metadata(local: Store) -> None:
    publish(local, "r1", tables=("iceberg",))
    (local / ICEBERG).write(HINT, b"7")


def damaged_metadata(local: Store) -> None:
    publish(local, "r1", tables=("iceberg",))
    (local / ICEBERG).write("metadata/v1.metadata.json", b"{}")


@pytest.mark.parametrize(
    ("damage", "table", "message"),
    [
        (their_delta_table, "delta", "_delta_log has the log of a Delta table that visrec did not"),
        (changed_metadata, "delta", "that another writer has altered"),
        (damaged_commit, "delta", "0.json is damaged"),
        (damaged_hint, "iceberg", "version-hint.text is missing or damaged"),
        (lost_metadata, "iceberg", "v7.metadata.json is missing or damaged"),
        (damaged_metadata, "iceberg", "v1.metadata.json is missing or damaged"),
        (metadata_without_a_schema, "iceberg", ".metadata.json is missing or damaged"),
    ],
)
def test_log_that_visrec_did_not_write_is_refused_by_name_and_the_pointer_stays(
    local: Store, damage: Callable[[Store], None], table: TableFormat, message: str
) -> None:
    damage(local)
    before = local.read_if_exists("_latest.json")
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        require_tables(local, (table,))
    assert "emove" in str(caught.value)
    if before is None:
        return
    complete_lists(local, "next")
    with pytest.raises(InputError, match=re.escape(message)):
        publish_run(local, "next")
    assert local.read_if_exists("_latest.json") == before
    folder = local / (DELTA_LOG if table == "delta" else ICEBERG)
    folder.delete_all()
    assert publish_run(local, "next")
    assert seen(local, (table,)) == [{"next"}]


# -------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        *((None, ()), ("", ()), ("delta", ("delta",)), ("manifest, delta", ("delta", "manifest"))),
        ("delta,iceberg,manifest", FORMATS),
    ],
)
def test_formats_are_named_one_by_one_or_together(
    text: str | None, tables: tuple[TableFormat, ...]
) -> None:
    assert PublishConfig(table=text).tables == tables


def test_unknown_format_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"--publish.table iceburg; .*did you mean iceberg\?"):
        PublishConfig(table="delta,iceburg")


def test_missing_package_is_named_before_anything_moves(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(local, "r1", tables=("iceberg",))
    complete_lists(local, "r2")
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pyiceberg" else found(name)
    )
    jobs: list[Callable[[], Any]] = [
        lambda: require_tables(local, ()),  # the table follows the pointer already
        lambda: publish_run(local, "r2"),
        lambda: roll_back(local, "r2"),
        lambda: remove_old_runs(local, 2),
    ]
    for job in jobs:
        with pytest.raises(InputError, match=r"pip install 'visrec\[iceberg\]'"):
            job()
    assert published_run_id(local) == "r1"
    require_tables(local / "other", ("delta", "manifest"))


# ------------------------------------------------------------------------------ by hand, in DuckDB


def test_duckdb_follows_the_pointer_by_itself(local: Store) -> None:
    publish(local, "r1", "r2", tables=())
    complete_lists(local, "r3")
    assert in_order(duckdb_by_pointer(local)) == rows_of_run(local, "r2")


def test_duckdb_reads_both_logs_with_its_own_extensions(local: Store) -> None:
    complete_lists(local, "r1")
    publish_run(local, "r1", tables=FORMATS)
    complete_lists(local, "r2", layout="long")
    publish_run(local, "r2")
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        for extension in ("delta", "avro", "iceberg"):
            try:
                connection.sql(f"LOAD {extension}")
            except duckdb.Error as error:
                pytest.skip(f"DuckDB's extension {extension} is not installed: {error}")
        for scan in (f"delta_scan('{local.root}')", f"iceberg_scan('{local.root}/{ICEBERG}')"):
            found = connection.sql(f"FROM {scan}").to_arrow_table()
            assert in_order(found) == rows_of_run(local, "r2")


def test_symlink_manifest_is_alone_in_its_folder(local: Store) -> None:
    """Hive takes each file of the folder for a list of files, and each line for a file."""
    publish(local, "r1", "r2")
    folder = SYMLINK_MANIFEST.rpartition("/")[0]
    assert [entry.name for entry in local.list(f"{folder}/")] == [SYMLINK_MANIFEST]
    uris = local.read(SYMLINK_MANIFEST).decode().splitlines()
    files = require_intact_run(run_store(local, "r2")).files
    assert sorted(uris) == sorted(f"file://{local.root}/run=r2/{name}" for name in files)
    rows = [json.loads(line) for line in (local / DELTA_LOG).read(f"{1:020}.json").splitlines()]
    stats = [json.loads(row["add"]["stats"]) for row in rows if "add" in row]
    assert stats == [{"numRecords": file.rows} for _, file in sorted(files.items())]
