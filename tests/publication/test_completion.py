"""A run is held back, or completed once, and never half, on either store."""

import hashlib
from dataclasses import replace

import pytest

from tests.publication.runs import (
    PASSED,
    draft_manifest,
    file_names,
    published_run_id,
    write_files,
)
from tests.storage.test_conditional_writes import in_threads
from visrec.errors import ConflictError, GateError
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.gate import Gate
from visrec.publication.manifest import (
    HELD_BACK,
    RUN_MANIFEST,
    ForcedPublication,
    RunManifest,
    ShardFile,
    parse_manifest,
    read_run_manifest,
)
from visrec.publication.pointer import LATEST
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store, to_json

TOO_FEW = Gate(name="items available", found=3, expected="at least 5", outcome="failed")
TOO_OLD = Gate(
    name="age of the features",
    found="9 days",
    expected="at most 2",
    outcome="failed",
    key="gates.max_age",
    note="since Monday",
)
GATES = [PASSED, TOO_FEW, TOO_OLD]


@pytest.fixture
def lists(store: Store) -> Store:
    """Where recommendations are published, empty."""
    return store / "recommendations"


@pytest.fixture
def run(lists: Store) -> Store:
    """An empty run."""
    return run_store(lists, "r1")


def written(run: Store, *contents: bytes) -> RunManifest:
    """Writes shards and describes them, as the scoring step does."""
    names = {f"part-{shard:05}.parquet": data for shard, data in enumerate(contents)}
    return draft_manifest(files=write_files(run, names))


# --------------------------------------------------------------------------------------- the gates


def test_failed_gate_holds_the_run_back(lists: Store, run: Store) -> None:
    draft = written(run, b"lists")
    before = file_names(lists)
    with pytest.raises(GateError):
        finish_run(run, draft, GATES)
    assert file_names(lists) == {*before, f"run=r1/{HELD_BACK}"}
    assert read_run_manifest(run) is None
    assert not publish_run(lists, "r1")
    assert not lists.exists(LATEST)


def test_message_of_a_held_back_run_has_what_failed_and_what_to_do(run: Store) -> None:
    with pytest.raises(GateError) as caught:
        finish_run(run, written(run, b"lists"), GATES)
    message = str(caught.value)
    assert "items available: found 3, expected at least 5." in message
    assert (
        "age of the features: found 9 days (since Monday), expected at most 2 (--gates.max_age)."
        in message
    )
    assert "run again with other thresholds" in message
    assert "--force_publish" in message
    assert f"run=r1/{HELD_BACK}" in message
    assert PASSED.name not in message


def test_message_names_no_threshold_where_no_failed_gate_has_one(run: Store) -> None:
    with pytest.raises(GateError) as caught:
        finish_run(run, written(run, b"lists"), [PASSED, TOO_FEW])
    assert "threshold" not in str(caught.value)
    assert "--force_publish" in str(caught.value)


def test_all_gates_of_a_held_back_run_stay_until_it_is_complete(run: Store) -> None:
    draft = written(run, b"lists")
    with pytest.raises(GateError):
        finish_run(run, draft, GATES)
    record = run.read_json(HELD_BACK)
    assert [gate["outcome"] for gate in record["gates"]] == ["passed", "failed", "failed"]
    finish_run(run, draft, [PASSED])
    assert not run.exists(HELD_BACK)


def test_run_before_stays_published_if_a_run_is_held_back(lists: Store, run: Store) -> None:
    finish_run(run, written(run, b"lists"), [PASSED])
    publish_run(lists, "r1")
    second = run_store(lists, "r2")
    with pytest.raises(GateError):
        finish_run(second, written(second, b"bad lists"), [TOO_FEW])
    assert not publish_run(lists, "r2")
    assert published_run_id(lists) == "r1"


def test_reason_publishes_what_the_gates_hold_back_and_is_recorded(
    lists: Store, run: Store
) -> None:
    manifest, _ = finish_run(run, written(run, b"lists"), GATES, "the shop is half closed")
    overridden = ("items available", "age of the features")
    assert manifest.forced == ForcedPublication("the shop is half closed", overridden)
    assert [gate.outcome for gate in manifest.gates] == ["passed", "forced", "forced"]
    assert read_run_manifest(run) == manifest
    assert publish_run(lists, "r1")
    assert published_run_id(lists) == "r1"


def test_reason_that_was_not_needed_overrides_no_gate(run: Store) -> None:
    manifest, _ = finish_run(run, written(run, b"lists"), [PASSED], "to be sure")
    assert manifest.forced == ForcedPublication("to be sure", ())


# ------------------------------------------------------------------------------------ the manifest


def test_manifest_has_the_files_and_the_gates(run: Store) -> None:
    assert read_run_manifest(run) is None
    manifest, completed_by_another = finish_run(run, written(run, b"lists"), [PASSED])
    assert not completed_by_another
    assert read_run_manifest(run) == manifest
    assert manifest.model_id == "m1"
    assert set(manifest.files) == {"part-00000.parquet"}
    assert manifest.gates == (PASSED,)
    assert manifest.forced is None
    assert manifest.completed_at
    assert run.read_json(RUN_MANIFEST)["gates"] == [
        {
            "name": "share of the users with a list",
            "found": 1.0,
            "expected": 1,
            "outcome": "passed",
            "key": "",
            "note": "",
        }
    ]


def test_manifest_is_the_same_after_it_was_written_and_read() -> None:
    manifest = draft_manifest(
        files={"part-0": ShardFile(1, 2, "3")},
        gates=(PASSED, TOO_OLD),
        forced=ForcedPublication("a reason", ("age of the features",)),
        cutoff_timestamp=10.5,
    )
    assert parse_manifest(to_json(manifest.to_dict()), "here") == manifest


def test_second_completion_with_the_same_files_gives_the_first_manifest(run: Store) -> None:
    first, _ = finish_run(run, written(run, b"lists"), [PASSED])
    draft = replace(written(run, b"lists"), model_id="given later")
    assert finish_run(run, draft, [PASSED]) == (first, True)
    assert read_run_manifest(run) == first


def test_completion_with_other_files_is_refused(run: Store) -> None:
    first, _ = finish_run(run, written(run, b"lists"), [PASSED])
    other = ShardFile(rows=1, bytes=len(b"LISTS"), sha256=hashlib.sha256(b"LISTS").hexdigest())
    draft = draft_manifest(files={"part-00000.parquet": other})
    with pytest.raises(ConflictError, match=r"completed the run at .* with other files"):
        finish_run(run, draft, [PASSED])
    assert read_run_manifest(run) == first
    assert run.read("part-00000.parquet") == b"lists"


def test_completion_is_refused_if_a_file_is_not_what_was_written(run: Store) -> None:
    draft = written(run, b"one", b"two")
    run.write("part-00001.parquet", b"another writer's")
    with pytest.raises(ConflictError, match=r"part-00001\.parquet has 16 bytes, not the 3"):
        finish_run(run, draft, [PASSED])
    run.delete(["part-00001.parquet"])
    with pytest.raises(ConflictError, match=r"part-00001\.parquet has 0 bytes, not the 3"):
        finish_run(run, draft, [PASSED])
    assert read_run_manifest(run) is None


def test_shards_of_an_earlier_attempt_are_removed(run: Store) -> None:
    written(run, b"cut", b"into", b"three")
    finish_run(run, written(run, b"now two", b"shards"), [PASSED])
    assert file_names(run) == {"part-00000.parquet", "part-00001.parquet", RUN_MANIFEST}


def test_run_with_a_missing_file_is_not_complete(run: Store) -> None:
    manifest, _ = finish_run(run, written(run, b"one", b"two"), [PASSED])
    assert read_complete_run(run) == manifest
    run.delete(["part-00001.parquet"])
    assert read_complete_run(run) is None


def make_again(run: Store, *contents: bytes) -> tuple[RunManifest, bool]:
    """What a start of the job does that finds these files, or has made them."""
    assert read_complete_run(run) is None
    return finish_run(run, written(run, *contents), [PASSED])


def test_lost_file_of_the_published_run_is_made_again_with_other_bytes(
    lists: Store, run: Store
) -> None:
    """As another version of a library writes them."""
    finish_run(run, written(run, b"one", b"two"), [PASSED])
    assert publish_run(lists, "r1")
    sequence = lists.read_json(LATEST)["sequence"]
    run.delete(["part-00001.parquet"])
    manifest, completed_by_another = make_again(run, b"one", b"TWO!")
    assert completed_by_another
    assert read_complete_run(run) == manifest
    # Here the job may be killed; the next start finds the run complete, and goes on.
    status = publication_status(lists, "r1", completed_by_another=True)
    assert status.reason == "the pointer has not moved to it"
    assert publish_run(lists, "r1", completed_by_another=True)
    assert published_run_id(lists) == "r1"
    pointer = lists.read_json(LATEST)
    assert (pointer["previous_run_id"], pointer["sequence"]) == (None, sequence + 1)
    assert not publish_run(lists, "r1", completed_by_another=True)  # and then it stays


def test_run_that_is_made_again_is_not_published_in_place_of_a_later_one(lists: Store) -> None:
    for run_id in ("r1", "r2"):
        finish_run(run_store(lists, run_id), written(run_store(lists, run_id), b"one"), [PASSED])
        publish_run(lists, run_id)
    run = run_store(lists, "r1")
    run.delete(["part-00000.parquet"])
    make_again(run, b"ONE!")
    assert not publish_run(lists, "r1", completed_by_another=True)
    assert published_run_id(lists) == "r2"


def test_manifest_that_another_writer_replaces_meanwhile_stays(
    run: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_run(run, written(run, b"one"), [PASSED])
    run.delete(["part-00000.parquet"])
    draft, replace_file = written(run, b"ONE!"), Store.replace

    def after_another(store: Store, name: str, data: bytes, version: str) -> bool:
        monkeypatch.setattr(Store, "replace", replace_file)
        finish_run(run, replace(draft, model_id="another"), [PASSED])
        return replace_file(store, name, data, version)

    monkeypatch.setattr(Store, "replace", after_another)
    manifest, completed_by_another = finish_run(run, draft, [PASSED])
    assert (manifest.model_id, completed_by_another) == ("another", True)
    assert read_run_manifest(run) == manifest


def test_racing_writers_of_one_run_all_get_one_manifest(run: Store) -> None:
    draft = written(run, b"lists")
    results = in_threads(
        8, lambda n: finish_run(run, replace(draft, model_id=f"writer {n}"), [PASSED])
    )
    assert [manifest for manifest, _ in results] == [read_run_manifest(run)] * 8
    assert [completed_by_another for _, completed_by_another in results].count(False) == 1
