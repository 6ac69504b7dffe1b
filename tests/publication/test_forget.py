"""Users leave runs of lists; runs of similar items and files of others stay as they are."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.exports.lists import Listed, as_table
from tests.publication.list_runs import duckdb_by_pointer
from tests.publication.runs import PASSED, draft_manifest, file_names, require_intact_run
from tests.stepping import Actor, MemoryStore
from visrec.errors import ConflictError, InputError
from visrec.exports.run_lists import open_published_run
from visrec.interactions.log import assign_shards
from visrec.publication.claims import CLAIM, claim_run, read_claim
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.forget import UsersToForget, forget_in_run
from visrec.publication.list_tables import COLD, COLD_USERS_KEY, Layout, lists_file
from visrec.publication.manifest import ShardFile
from visrec.publication.pointer import open_published
from visrec.publication.prometheus import metrics_text
from visrec.publication.publish import publish_run
from visrec.publication.run_spec import RunSpec, run_store
from visrec.publication.shards import parquet_file, with_sha256
from visrec.retrieval.similar import Kind
from visrec.storage.id_search import IdSearch, search_files
from visrec.storage.store import Store

IDS, SHARDS = ["12", "13", "14"], 2  # of users and of items
GONE = UsersToForget(user_ids=pa.array(["12"]))
DIGEST = "0123456789abcdef"


@pytest.fixture
def lists(store: Store) -> Store:
    return store / "lists"


def write_run(
    lists: Store,
    kind: Kind,
    layout: Layout = "nested",
    run_id: str = "r1",
    cold: frozenset[str] = frozenset(),
) -> tuple[Store, dict[str, Any]]:
    """A run that has all its files; returns it, and the fields of its manifest."""
    run = run_store(lists, run_id)
    claim_run(run, DIGEST)
    spec = RunSpec(run, SHARDS, 1, layout, kind, {"visrec.inputs": DIGEST})
    shard_of = assign_shards(pa.array(IDS), SHARDS)
    files: dict[str, ShardFile] = {}
    fingerprints: dict[str, str] = {}
    for shard in range(SHARDS):
        ids = [user for user, own in zip(IDS, shard_of, strict=True) if own == shard]
        listed = {id: Listed((("a", 0.5, None),), cold=id in cold) for id in ids}
        cold_users = str(len(cold.intersection(ids)))
        data = with_sha256(
            as_table(listed, kind=kind, layout=layout), {COLD_USERS_KEY: cold_users}, lists_file
        )
        columns = {
            "fingerprint": pa.array(range(len(ids)), pa.uint64()),
            COLD: [*map(cold.__contains__, ids)],
        }
        prints = with_sha256(pa.table({spec.id_column: pa.array(ids), **columns}), {}, parquet_file)
        run.write(spec.part(shard), data)
        run.write(spec.query_fingerprints(shard), prints)
        files[spec.part(shard)] = ShardFile(len(ids), len(data), hashlib.sha256(data).hexdigest())
        fingerprints[spec.query_fingerprints(shard)] = hashlib.sha256(prints).hexdigest()
    counts = {"queries": len(IDS), "rows": len(IDS), "cold_users": len(cold)}
    return run, {
        "run_id": run_id,
        "kind": kind,
        "layout": layout,
        "files": files,
        "fingerprints": fingerprints,
        **counts,
    }


def part_of(run: Store, user_id: str) -> str:
    """The file with the lists of a user."""
    shard = assign_shards(pa.array([user_id]), SHARDS)[0]
    return min(name for name in file_names(run) if name.startswith(f"part-{shard:05d}-of-"))


def names_with_users(run: Store) -> list[str]:
    files = [(run, name) for name in sorted(file_names(run))]
    return search_files(IdSearch(["12"], ["12"]), files).with_ids


def test_user_leaves_a_complete_run(lists: Store) -> None:
    run, fields = write_run(lists, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    assert len(names_with_users(run)) == 2  # lists and fingerprints
    assert forget_in_run(lists, "r1", GONE) == 1
    assert require_intact_run(run).queries == len(IDS) - 1
    assert names_with_users(run) == []


def test_lost_file_of_a_run_that_users_left_is_told_before_anything_is_made(lists: Store) -> None:
    run, fields = write_run(lists, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    forget_in_run(lists, "r1", GONE)
    manifest = read_complete_run(run)
    assert manifest is not None
    run.delete([min(manifest.files)])
    with pytest.raises(InputError, match=r"is missing or damaged, and `visrec forget` .*_manifest"):
        read_complete_run(run)


@pytest.mark.parametrize("is_complete", [True, False])
def test_similar_items_stay_whose_ids_users_have_too(lists: Store, is_complete: bool) -> None:
    run, fields = write_run(lists, "item_to_item")
    if is_complete:
        finish_run(run, draft_manifest(**fields), [PASSED])
    before = file_names(run)
    assert forget_in_run(lists, "r1", GONE) == 0
    assert file_names(run) == before
    assert names_with_users(run) == []


def test_user_leaves_an_unfinished_run_and_a_file_of_others_stays(lists: Store) -> None:
    run, _ = write_run(lists, "user_to_item")
    run.write("part-x.parquet", b"not a file of the run")
    before = file_names(run)
    assert forget_in_run(lists, "r1", GONE) == 1
    removed = before - file_names(run)
    assert len(removed) == 2
    assert "part-x.parquet" not in removed
    assert names_with_users(run) == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda data: bytes([*data[:9], data[9] ^ 1, *data[10:]]),
    "cut": lambda data: data[: len(data) // 2],
}


def damage(run: Store, name: str, how: str) -> None:
    run.write(name, DAMAGES[how](run.read(name)))


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_lists_of_a_complete_run_are_named_and_nothing_is_changed(how: str) -> None:
    lists = MemoryStore("s3://shop")
    run, fields = write_run(lists, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    damage(run, part_of(run, "12"), how)
    before = dict(lists.objects)
    with pytest.raises(InputError, match=r"part-.* is not the file .* Then remove .*/run=r1 and"):
        forget_in_run(lists, "r1", GONE)
    assert lists.objects == before


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_fingerprints_are_left_out_of_a_complete_run(how: str) -> None:
    """They only save work, and may have the users."""
    lists = MemoryStore("s3://shop")
    run, fields = write_run(lists, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    damage(run, f"_fingerprints/{part_of(run, '12')}", how)
    assert forget_in_run(lists, "r1", GONE) == 1
    manifest = require_intact_run(run)
    assert len(manifest.fingerprints) == SHARDS - 1
    assert len(file_names(run)) == 2 + 2 * SHARDS - 1  # with claim and manifest


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("prefix", ["", "_fingerprints/"])
def test_damaged_file_of_an_unfinished_run_is_removed(prefix: str, how: str) -> None:
    """Its job makes it again, and it may have the users."""
    lists = MemoryStore("s3://shop")
    run, _ = write_run(lists, "user_to_item")
    part = part_of(run, "12")
    damage(run, prefix + part, how)
    before = file_names(run)
    assert forget_in_run(lists, "r1", GONE) == (
        1 if prefix else 0
    )  # it cannot be told of the lists
    assert before - file_names(run) == {part, f"_fingerprints/{part}"}


def test_fingerprints_are_removed_where_the_lists_are_not_there_yet() -> None:
    lists = MemoryStore("s3://shop")
    run, _ = write_run(lists, "user_to_item")
    part = part_of(run, "12")
    run.delete([part])
    forget_in_run(lists, "r1", GONE)
    assert f"_fingerprints/{part}" not in file_names(run)


@pytest.mark.parametrize("run_id", ["2026-11-22", "2026-11-22-b"])
@pytest.mark.parametrize("is_claimed", [True, False])
def test_unfinished_run_is_open_again_after_forget_was_killed_and_restarted(
    run_id: str, is_claimed: bool
) -> None:
    start = MemoryStore("s3://shop")
    write_run(start, "user_to_item", run_id=run_id)
    run = run_store(start, run_id)
    claim_run(run, "b" * 16)  # which takes the run over: the first inputs have lost it
    if not is_claimed:
        run.delete([CLAIM])
    point, refused, is_done = 0, 0, False
    while not is_done:
        lists = replace(start, objects=dict(start.objects))
        run = run_store(lists, run_id)
        actor = Actor(lists, lambda store: forget_in_run(store, run_id, GONE))
        actor.step(point)
        is_done = actor.done
        actor.kill()
        claim, _ = read_claim(run)
        if claim is not None and claim.state == "forgetting":
            with pytest.raises(ConflictError, match=r"`visrec forget` .* interrupted, start `v"):
                claim_run(run, "b" * 16)
            refused += 1
        forget_in_run(lists, run_id, GONE)
        assert len(file_names(run)) == 2 * (SHARDS - 1) + is_claimed
        claim_run(run, "b" * 16)
        if is_claimed:
            with pytest.raises(InputError, match="belongs to other inputs"):
                claim_run(run, DIGEST)
        point += 1
    assert refused > 2


@pytest.mark.parametrize("layout", ["nested", "long"])
@pytest.mark.parametrize("has_fingerprints", [True, False])
def test_cold_users_are_counted_down_with_the_lists(layout: Layout, has_fingerprints: bool) -> None:
    lists = MemoryStore("s3://shop")
    cold = frozenset(["12", "13"])
    run, fields = write_run(lists, "user_to_item", layout, cold=cold)
    if not has_fingerprints:
        fields["fingerprints"] = {}
    finish_run(run, draft_manifest(**fields), [PASSED])
    forget_in_run(lists, "r1", GONE)
    assert (require_intact_run(run).queries, require_intact_run(run).cold_users) == (2, 1)
    forget_in_run(lists, "r1", UsersToForget(user_ids=pa.array(["13", "14"])))
    assert (require_intact_run(run).queries, require_intact_run(run).cold_users) == (0, 0)


def test_cold_users_are_counted_down_where_fingerprints_do_not_tell_of_them() -> None:
    """Those of an earlier version have no column for it."""
    lists = MemoryStore("s3://shop")
    run, fields = write_run(lists, "user_to_item", cold=frozenset(["13"]))
    for name in fields["fingerprints"]:
        table = pq.read_table(pa.BufferReader(run.read(name))).drop_columns([COLD])
        prints = with_sha256(table, {}, parquet_file)
        run.write(name, prints)
        fields["fingerprints"][name] = hashlib.sha256(prints).hexdigest()
    finish_run(run, draft_manifest(**fields), [PASSED])
    forget_in_run(lists, "r1", UsersToForget(user_ids=pa.array(["13"])))
    assert (require_intact_run(run).queries, require_intact_run(run).cold_users) == (2, 0)


def test_readers_follow_the_pointer_at_every_step_of_forget(tmp_path: Path) -> None:
    """Exports and metrics, and the DuckDB statement of docs/operations.md."""
    start = MemoryStore("s3://shop")
    run, fields = write_run(start, "user_to_item")
    finish_run(run, draft_manifest(**fields), [PASSED])
    publish_run(start, "r1")
    actor, counts = Actor(start, lambda store: forget_in_run(store, "r1", GONE)), []
    while not actor.done:
        actor.step()
        pointer, manifest = open_published(start)
        opened = open_published_run(start)
        assert opened.key.manifest_sha256 == pointer.manifest_sha256
        assert opened.manifest == manifest
        users = [id for n in range(SHARDS) for id in opened.read_shard(n).query_ids.to_pylist()]
        assert len(users) == opened.manifest.queries
        text = metrics_text(start, job="nightly", exit_code=0, ended_at=1.5e9, seconds=1.0)
        assert f"visrec_lists {len(users)}" in text
        found = duckdb_by_pointer(on_disk(start, tmp_path))["user_id"].to_pylist()
        assert sorted(found) == sorted(users)
        counts.append(len(users))
    assert set(counts) == {3, 2}


def on_disk(lists: MemoryStore, folder: Path) -> Store:
    """A copy of a store."""
    copy = Store(str(folder / str(len(list(folder.iterdir())))))
    for uri, data in lists.objects.items():
        copy.write(uri.removeprefix(f"{lists.root}/"), data)
    return copy
