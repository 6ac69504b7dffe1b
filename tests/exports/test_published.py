"""The published run to a target: one process at a time, and never an outdated run."""

import json
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest

from tests.exports.lists import made_lists, publish, seen
from tests.stepping import Actor, MemoryStore
from visrec.errors import ConflictError, InputError
from visrec.exports import published
from visrec.exports.published import export_published
from visrec.exports.run_lists import open_published_run
from visrec.exports.targets import parse_target
from visrec.publication.forget import UsersToForget, forget_in_run
from visrec.publication.pointer import LATEST
from visrec.publication.prometheus import metrics_text
from visrec.publication.run_spec import run_store
from visrec.storage.lease import Lease
from visrec.storage.store import Store


@pytest.fixture
def lists(tmp_path: Path) -> Store:
    """Where a run is published."""
    found = Store.at(str(tmp_path / "recommendations"))
    publish(found, "r1", made_lists(10, 1))
    return found


def test_second_process_is_refused_while_the_first_one_exports(
    lists: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "Lease", partial(Lease, heartbeat_s=0.1))
    target, leases = parse_target(str(tmp_path / "lists.csv")), lists / "leases"
    refused: list[bool] = []

    def before_shard(_done: int, _shards: int) -> None:
        if not refused:
            refused.append(True)
            with pytest.raises(ConflictError, match="Another process is exporting to"):
                export_published(target, lists, leases, only_changed=True)

    export_published(target, lists, leases, only_changed=True, before_shard=before_shard)
    assert refused
    export_published(target, lists, leases, only_changed=True)


def test_run_that_is_published_during_an_export_is_exported_too(
    lists: Store, tmp_path: Path
) -> None:
    path = tmp_path / "lists.jsonl"

    def before_shard(_done: int, _shards: int) -> None:
        if not run_store(lists, "r2").exists("_manifest.json"):
            publish(lists, "r2", made_lists(10, 2))

    report = export_published(
        parse_target(str(path)), lists, lists / "leases", only_changed=True,
        before_shard=before_shard,
    )  # fmt: skip
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert report.run_id == "r2"
    assert {row["user_id"]: row["items"] for row in rows} == seen(made_lists(10, 2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("pointer", "Found no published run in"),
        ("manifest", "is not the manifest that was published"),
        ("file", "is not the file that the manifest names"),
        ("no file", "is not the file that the manifest names"),
        ("run", "_manifest.json is missing or"),
    ],
)
def test_run_that_is_not_what_was_published_is_refused(
    lists: Store, tmp_path: Path, damage: str, message: str
) -> None:
    run = run_store(lists, "r1")
    part = sorted(entry.name for entry in run.list("part-"))[1]
    if damage == "pointer":
        lists.delete([LATEST])
    elif damage == "manifest":
        run.write("_manifest.json", run.read("_manifest.json") + b"\n")
    elif damage == "file":
        data = run.read(part)
        run.write(part, data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "no file":
        run.delete([part])
    else:
        run.delete_all()
    path = tmp_path / "lists.csv"
    with pytest.raises(InputError, match=message):
        export_published(parse_target(str(path)), lists, lists / "leases", only_changed=True)
    assert not path.exists()


def test_published_run_is_read_at_every_moment_while_users_are_forgotten() -> None:
    """Also after a kill, which may come at any of these moments."""
    lists = MemoryStore("s3://shop/recommendations")
    publish(lists, "r1", made_lists(10, 1))
    gone = UsersToForget(user_ids=pa.array(["user 3"]))
    counts: set[int] = set()

    def check() -> None:
        run = open_published_run(lists)
        shards = [run.read_shard(n).query_ids.to_pylist() for n in range(len(run.parts))]
        users = [user for shard in shards for user in shard]
        assert len(users) == len(set(users)) == run.manifest.queries
        text = metrics_text(lists, job="nightly", exit_code=0, ended_at=0.0, seconds=0.0)
        assert f"\nvisrec_lists {len(users)!r}\n" in text
        counts.add(len(users))

    actor = Actor(lists, lambda store: forget_in_run(store, "r1", gone))
    assert actor.finish(check) == 1
    assert counts == {9, 10}
