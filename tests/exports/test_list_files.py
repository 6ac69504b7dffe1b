"""Files: their content, and that they are whole at any moment."""

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow.csv
import pytest

from tests.exports.lists import Listed, made_lists, publish, seen
from visrec.errors import InputError
from visrec.exports.run_lists import open_published_run
from visrec.exports.targets import parse_target
from visrec.publication.list_tables import Layout
from visrec.publication.run_spec import run_store
from visrec.retrieval.similar import Kind
from visrec.storage import s3_upload
from visrec.storage.store import Store

LISTS = {**made_lists(20), 'q"uo,te\n': Listed((("ä,b", 0.5, None),)), "none": Listed(())}


def export(store: Store, name: str) -> int:
    """Exports what is published in the store to a file in it."""
    run = open_published_run(store / "recommendations")
    target = parse_target(store.uri(name))
    report = target.export(run, store, only_changed=False, before_shard=lambda *_: None)
    return report.written


def read_jsonl(store: Store, name: str) -> list[dict[str, object]]:
    data = store.read(name)
    text = gzip.decompress(data) if name.endswith(".gz") else data
    return [json.loads(line) for line in text.decode().splitlines()]


@pytest.mark.parametrize("name", ["lists.jsonl", "to/lists.jsonl.gz"])
def test_jsonl_has_one_line_a_list(store: Store, name: str) -> None:
    publish(store / "recommendations", "r1", LISTS)
    assert export(store, name) == len(LISTS)
    rows = read_jsonl(store, name)
    assert {row["user_id"]: row["items"] for row in rows} == seen(LISTS)
    assert {row["user_id"]: row["cold"] for row in rows} == {u: v.cold for u, v in LISTS.items()}
    before = store.read(name)
    export(store, name)
    assert store.read(name) == before


@pytest.mark.parametrize("layout", ["nested", "long"])
def test_csv_has_one_line_an_entry(tmp_path: Path, layout: Layout) -> None:
    store = Store.at(str(tmp_path))
    publish(store / "recommendations", "r1", LISTS, layout=layout)
    export(store, "lists.csv.gz")
    text = gzip.decompress(store.read("lists.csv.gz")).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    expected = [
        (user, str(rank), entry["item_id"], entry["score"], entry["because_item_id"] or "")
        for user, entries in seen(LISTS).items()
        for rank, entry in enumerate(entries, 1)
    ]
    found = [
        (r["user_id"], r["rank"], r["item_id"], float(r["score"]), r["because_item_id"])
        for r in rows
    ]
    assert sorted(found) == sorted(expected)
    assert len(pyarrow.csv.read_csv(io.BytesIO(text.encode()))) > 0


def test_similar_items_have_their_own_columns(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    kind: Kind = "item_to_item"
    publish(store / "recommendations", "r1", LISTS, kind=kind)
    export(store, "lists.csv")
    export(store, "lists.jsonl")
    assert store.read("lists.csv").splitlines()[0] == b"item_id,rank,similar_item_id,score"
    rows = read_jsonl(store, "lists.jsonl")
    assert {row["item_id"]: row["items"] for row in rows} == seen(LISTS, kind)
    assert "cold" not in rows[0]


@pytest.mark.s3
def test_large_file_is_uploaded_in_parts(s3_env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_upload, "_PART_BYTES", 5 << 20)
    store = Store.at(s3_env)
    # A hundred users with long ids: 12 MB of JSON.
    wide = {
        f"u{n}": Listed(tuple((f"{r}" * 4000, 0.5, None) for r in range(10, 40)))
        for n in range(100)
    }
    publish(store / "recommendations", "r1", wide)
    export(store, "lists.jsonl")
    assert {row["user_id"]: row["items"] for row in read_jsonl(store, "lists.jsonl")} == seen(wide)


def test_export_that_fails_leaves_the_file_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store / "recommendations", "r1", LISTS)
    export(store, "lists.jsonl")
    monkeypatch.setattr(s3_upload, "_PART_BYTES", 100)  # a part is sent before the failure
    before = store.read("lists.jsonl")
    publish(store / "recommendations", "r2", made_lists(20, 1))
    run = run_store(store / "recommendations", "r2")
    name = sorted(entry.name for entry in run.list("part-"))[-1]
    run.write(name, run.read(name)[:-1])
    with pytest.raises(InputError, match="is not the file that the manifest names"):
        export(store, "lists.jsonl")
    assert store.read("lists.jsonl") == before


def test_draft_of_a_killed_export_is_removed_by_the_next(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    publish(store / "recommendations", "r1", LISTS)
    draft, other = tmp_path / f".lists.csv.{'ab' * 16}", tmp_path / ".lists.csv.swp"
    draft.write_text("half a list")
    other.write_text("somebody else's")
    export(store, "lists.csv")
    assert not draft.exists()
    assert other.exists()


@pytest.mark.s3
def test_parts_of_a_killed_export_are_discarded_by_the_next(s3_env: str) -> None:
    store = Store.at(s3_env)
    publish(store / "recommendations", "r1", LISTS)
    client = store._backend._client()  # type: ignore[attr-defined]
    bucket = s3_env.removeprefix("s3://")
    for key in ("lists.csv", "lists.csv.gz"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    export(store, "lists.csv")
    left = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    assert [upload["Key"] for upload in left] == ["lists.csv.gz"]
