"""Metrics of what is published, read back by the parser of Prometheus' own client."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.publication.runs import PASSED, draft_manifest, write_files
from visrec.publication.completion import finish_run
from visrec.publication.gate import Gate
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import read_pointer, replace_pointer
from visrec.publication.prometheus import metrics_text
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store, to_json

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def lists(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "recommendations"))


def samples(lists: Store, exit_code: int = 0) -> dict[tuple[str, Labels], float]:
    """The value of each metric, by its name and labels."""
    text = metrics_text(lists, job="nightly", exit_code=exit_code, ended_at=1.5e9, seconds=60.0)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_held_back_first_night_has_only_its_end(lists: Store) -> None:
    job = (("job", "nightly"),)
    assert samples(lists, exit_code=3) == {
        ("visrec_last_exit_code", job): 3.0,
        ("visrec_last_end_timestamp_seconds", job): 1.5e9,
        ("visrec_last_seconds", job): 60.0,
    }


def test_run_of_another_version_is_left_out_and_the_end_of_the_job_is_not(lists: Store) -> None:
    run = run_store(lists, "r1")
    files = write_files(run, {"part-00000.parquet": b"x"})
    manifest, _ = finish_run(run, draft_manifest(files=files), [PASSED])
    publish_run(lists, "r1")
    data = to_json({**manifest.to_dict(), "version": 99})
    run.write(RUN_MANIFEST, data)
    pointer, version = read_pointer(lists)
    pointer = replace(pointer, manifest_sha256=hashlib.sha256(data).hexdigest())
    assert replace_pointer(lists, pointer, version)
    assert {name for name, _ in samples(lists)} == {
        "visrec_last_exit_code",
        "visrec_last_end_timestamp_seconds",
        "visrec_last_seconds",
    }


def test_published_run_is_described_with_its_gates(lists: Store) -> None:
    run = run_store(lists, "r1")
    gates = [
        PASSED,
        Gate('name with "quotes"', 0.25, "at most 0.2", "failed", "gates.x"),
        Gate("last publication", None, 1, "skipped"),
    ]
    draft = draft_manifest(
        files=write_files(run, {"part-00000.parquet": b"x"}),
        seconds={"score": 2.5},
        cutoff_timestamp=1.4e9,
        queries=10,
    )
    finish_run(run, draft, gates, force_reason="a test")
    publish_run(lists, "r1")
    found = samples(lists)
    assert found["visrec_published_info", (("model_id", "m1"), ("run_id", "r1"))] == 1.0
    assert found["visrec_lists", ()] == 10.0
    assert found["visrec_cutoff_timestamp_seconds", ()] == 1.4e9
    assert found["visrec_published_timestamp_seconds", ()] > 1.7e9
    assert found["visrec_phase_seconds", (("phase", "score"),)] == 2.5
    values = {labels[0][1]: v for (name, labels), v in found.items() if name == "visrec_gate_value"}
    assert values == {PASSED.name: 1.0, 'name with "quotes"': 0.25}
    passed = {labels[0][1]: v for (name, labels), v in found.items() if name.endswith("_passed")}
    assert passed == {PASSED.name: 1.0, 'name with "quotes"': 0.0}
