"""Users leave runs of lists; runs of similar items and files of others stay as they are."""

import hashlib
from typing import Any

import pyarrow as pa
import pytest

from tests.exports.lists import Listed, as_table
from tests.publication.runs import PASSED, draft_manifest, file_names
from visrec.errors import InputError
from visrec.interactions.log import assign_shards
from visrec.publication.claims import claim_run
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.forget import UsersToForget, forget_in_run
from visrec.publication.list_tables import COLD_USERS_KEY, lists_file
from visrec.publication.manifest import ShardFile, require_intact_run
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


def write_run(lists: Store, kind: Kind) -> tuple[Store, dict[str, Any]]:
    """A run that has all its files; returns it, and the fields of its manifest."""
    run = run_store(lists, "r1")
    claim_run(run, DIGEST)
    spec = RunSpec(run, SHARDS, 1, "nested", kind, {"visrec.inputs": DIGEST})
    shard_of = assign_shards(pa.array(IDS), SHARDS)
    files, fingerprints = {}, {}
    for shard in range(SHARDS):
        ids = [user for user, own in zip(IDS, shard_of, strict=True) if own == shard]
        table = as_table({id: Listed((("a", 0.5, None),)) for id in ids}, kind=kind)
        data = with_sha256(table, {COLD_USERS_KEY: "0"}, lists_file)
        hashes = pa.array(range(len(ids)), pa.uint64())
        prints = parquet_file(pa.table({spec.id_column: pa.array(ids), "fingerprint": hashes}))
        run.write(spec.part(shard), data)
        run.write(spec.query_fingerprints(shard), prints)
        files[spec.part(shard)] = ShardFile(len(ids), len(data), hashlib.sha256(data).hexdigest())
        fingerprints[spec.query_fingerprints(shard)] = hashlib.sha256(prints).hexdigest()
    return run, {"kind": kind, "files": files, "fingerprints": fingerprints, "queries": len(IDS)}


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
