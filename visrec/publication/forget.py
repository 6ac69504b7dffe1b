"""Removes users from runs that are kept, while readers see a whole run at every moment.

A run without a manifest only loses its files with these users, and damaged files, which may have
the users, too; its job makes these files again. In a complete run, each file that may have the
users is compared with the manifest's hash. Those with the users are written again under new names,
without them. Then:

1. The new manifest is written under a name of its own.
2. Its SHA-256 is written into `rewriting` of the pointer's file, by the usual conditional write. If
   the run is the published one, the same write moves the pointer to that name; tables follow.
3. The new manifest also replaces the manifest under its usual name.
4. The run is taken out of `rewriting`. A pointer at the run is moved to the usual name.
5. The files that only the old manifest names are removed.

Between 2 and 4, whoever moves the pointer to the run names the new manifest by its own name, so the
pointer is never at a manifest that was replaced. Until the end, a small file in the run, written
before the first new file, tells all other processes to remove nothing. Each step can be repeated,
so a second start after a kill ends as the first would have.

What was computed from the users and does not name them is kept: gates, counts of rows that were
read, the digest under which the run was claimed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.errors import ConflictError, InputError
from visrec.ids import is_in
from visrec.interactions.log import assign_shards
from visrec.publication.claims import CLAIM, FINGERPRINTS, PARTS, Claim, read_claim
from visrec.publication.list_tables import COLD, COLD_USERS_KEY, ID_COLUMNS, lists_file
from visrec.publication.manifest import (
    REWRITING,
    RUN_MANIFEST,
    RunManifest,
    ShardFile,
    parse_manifest,
    read_manifest_bytes,
    remove_stray_files,
    rewritten_name,
)
from visrec.publication.pointer import read_pointer, replace_pointer
from visrec.publication.records import VERSION, now
from visrec.publication.run_spec import parse_part, rewritten_part, run_store
from visrec.publication.shards import is_intact, parquet_file, with_sha256
from visrec.publication.tables import read_settled_pointer
from visrec.storage.store import Store, to_json

_USER = ID_COLUMNS["user_to_item"]  # in files with lists, and in those with their fingerprints


@dataclass(frozen=True, kw_only=True)
class UsersToForget:
    """What is removed, and what has changed with it.

    Attributes:
        user_ids: the users.
        model_digests: the present digest of each model that was rewritten, by its earlier ones.
            Lists of other users do not change, so they can be reused under the new digest.
    """

    user_ids: pa.Array
    model_digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shard:
    """A file with lists and the one with its fingerprints, without the users.

    Attributes:
        name: the new name of the file.
        file: its description.
        fingerprints: SHA-256 of the fingerprints; None where the run has none, or they were damaged
            and left out: without them, the next night makes the lists again.
        removed_queries: users whose lists were removed.
        removed_cold_users: how many of them had the fallback list.
        removed_rows: rows that were removed.
    """

    name: str
    file: ShardFile
    fingerprints: str | None
    removed_queries: int
    removed_cold_users: int
    removed_rows: int


def run_ids(recommendations: Store) -> list[str]:
    """The runs that have files, complete or not."""
    names = {entry.name.partition("/")[0] for entry in recommendations.list("run=")}
    return sorted(name.removeprefix("run=") for name in names)


def forget_in_run(recommendations: Store, run_id: str, forgotten: UsersToForget) -> int:
    """Removes users from a run, and returns how many lists it had of them.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        forgotten: the users.

    Raises:
        ConflictError: another job has completed or removed the run meanwhile.
        InputError: the run's manifest, a file with lists that may have the users, the claim or the
            pointer is damaged. Nothing was changed.
    """
    run = run_store(recommendations, run_id)
    _finish_interrupted(recommendations, run_id)
    found = run.read_if_exists(RUN_MANIFEST)
    if run_id in read_pointer(recommendations)[0].removing:
        return _remove_files(run, forgotten)
    if found is None:
        return _forget_in_unfinished_run(run, forgotten)
    data, version = found
    manifest = parse_manifest(data, run.uri(RUN_MANIFEST))
    affected = _affected_files(run, manifest, forgotten)
    inputs = _renamed_model(manifest.inputs, forgotten)
    removed = 0
    if affected or inputs != manifest.inputs:
        run.write_json(REWRITING, {"version": VERSION, "since": now()})
        shards = {name: _rewrite_shard(run, name, manifest, forgotten) for name in affected}
        removed = sum(shard.removed_queries for shard in shards.values())
        rewritten = _without_users(manifest, shards, inputs)
        _replace_manifest(recommendations, run_id, to_json(rewritten.to_dict()), version)
    _clean_up(run)
    return removed


def _renamed_model(inputs: Mapping[str, object], forgotten: UsersToForget) -> dict[str, object]:
    """The inputs with the present digest of the model."""
    model = str(inputs["model"])
    return {**inputs, "model": forgotten.model_digests.get(model, model)}


# Files.


def may_have_users(name: str, user_ids: pa.Array) -> bool:
    """Whether a file with lists may have these users, by its name.

    Users are assigned to files by a hash of their ids, so most files need not be read. A file whose
    name visrec does not use is not one of the run.
    """
    numbers = parse_part(name)
    return numbers is not None and numbers[0] in assign_shards(user_ids, numbers[1])


def _affected_files(run: Store, manifest: RunManifest, forgotten: UsersToForget) -> list[str]:
    """The list files of a complete run that are to be written again.

    They contain these users, or their fingerprint files do, or are damaged and may do so.

    Raises:
        InputError: a list file that may contain them is not the one that the manifest names.
    """
    if manifest.kind != "user_to_item":  # lists of items, which may have the same ids
        return []
    affected = []
    for name in manifest.files:
        if not may_have_users(name, forgotten.user_ids):
            continue
        lists, fingerprints = _read_shard(run, name, manifest)
        if (
            len(_ids_of(lists, forgotten))
            or (fingerprints is None and FINGERPRINTS + name in manifest.fingerprints)
            or (fingerprints is not None and len(_ids_of(fingerprints, forgotten)))
        ):
            affected.append(name)
    return affected


def _read_shard(run: Store, name: str, manifest: RunManifest) -> tuple[bytes, bytes | None]:
    """A file with lists and the one with its fingerprints, None where that is missing or damaged.

    Raises:
        InputError: the file with lists is not the one that the manifest names.
    """
    lists = _read_if_intact(run, name, manifest.files[name].sha256)
    if lists is None:
        raise InputError(
            f"{run.uri(name)} is not the file that the manifest names, so users cannot be removed "
            "from this run, which stays as it is. If it is the published run, publish another one "
            f"first, with `visrec nightly` or `visrec rollback`. Then remove {run.root} and start "
            "this command again.",
            path=run.uri(name),
        )
    sha256 = manifest.fingerprints.get(FINGERPRINTS + name)
    return lists, _read_if_intact(run, FINGERPRINTS + name, sha256)


def _read_if_intact(run: Store, name: str, sha256: str | None) -> bytes | None:
    found = run.read_if_exists(name)
    return found[0] if found and hashlib.sha256(found[0]).hexdigest() == sha256 else None


def _ids_of(data: bytes, forgotten: UsersToForget) -> pa.ChunkedArray:
    """Ids of the users in an intact file; none if it has lists of items."""
    file = pq.ParquetFile(pa.BufferReader(data))
    if _USER not in file.schema_arrow.names:
        return pa.chunked_array([], pa.string())
    ids = file.read(columns=[_USER])[_USER]
    return ids.filter(is_in(ids, forgotten.user_ids))


def _forget_in_unfinished_run(run: Store, forgotten: UsersToForget) -> int:
    """Removes the files with the users; the run's job makes them again.

    A job that is at work on the run loses its claim and stops, because it could complete the run
    while files are removed. A run that may be completed at any moment stays as it is. A start that
    was killed has left its own claim, which this one takes over and then opens again.
    """
    claim, version = read_claim(run)
    if claim is not None and claim.state == "removed":
        return _remove_files(run, forgotten)
    taken = (claim or Claim(inputs_digest="")).renewed("forgetting")
    is_sealed = claim is not None and claim.state == "sealed"
    if is_sealed or not run.compare_and_swap(CLAIM, to_json(taken.to_dict()), version):
        return 0
    removed = _remove_files(run, forgotten)
    claim, version = read_claim(run)
    if claim == taken and version is not None:
        if taken.inputs_digest:
            run.replace(CLAIM, to_json(taken.renewed("open").to_dict()), version)
        else:  # there was no claim before
            run.delete([CLAIM])
    return removed


def _remove_files(run: Store, forgotten: UsersToForget) -> int:
    """Removes the files with the users from a run that nobody reads or writes.

    Damaged files, which may have the users, are removed, too.
    """
    parts = {entry.name for entry in run.list(PARTS)}
    parts |= {entry.name.removeprefix(FINGERPRINTS) for entry in run.list(FINGERPRINTS)}
    removed = 0
    for name in sorted(parts):
        if not may_have_users(name, forgotten.user_ids):
            continue
        lists, fingerprints = (
            _ids_if_intact(run, each, forgotten) for each in (name, FINGERPRINTS + name)
        )
        if lists is None or fingerprints is None or len(lists) or len(fingerprints):
            removed += 0 if lists is None else pc.count_distinct(lists).as_py()
            run.delete([name, FINGERPRINTS + name])
    return removed


def _ids_if_intact(run: Store, name: str, forgotten: UsersToForget) -> pa.ChunkedArray | None:
    """Ids of the users in a file; none if there is no such file. None if it is damaged."""
    found = run.read_if_exists(name)
    if found is None:
        return pa.chunked_array([], pa.string())
    return _ids_of(found[0], forgotten) if is_intact(found[0]) else None


def _rewrite_shard(
    run: Store, name: str, manifest: RunManifest, forgotten: UsersToForget
) -> _Shard:
    """Writes a shard's two files again, under a new name, which both share."""
    lists_before, fingerprints_before = _read_shard(run, name, manifest)
    table, gone, kept = _split(lists_before, forgotten)
    fingerprints, removed = None, [gone]
    if fingerprints_before is not None:
        _, gone_fingerprints, fingerprint_table = _split(fingerprints_before, forgotten)
        removed.append(gone_fingerprints)
        fingerprints = with_sha256(fingerprint_table, {}, parquet_file)
    cold_before = int((table.schema.metadata or {})[COLD_USERS_KEY.encode()])
    # Lists in the long layout do not tell, nor do fingerprints of an earlier version: without
    # either, the new count is an upper bound.
    cold = next((rows[COLD] for rows in removed if COLD in rows.column_names), None)
    removed_cold = 0 if cold is None else pc.sum(cold).as_py() or 0
    cold_users = min(cold_before - removed_cold, pc.count_distinct(kept[_USER]).as_py())
    lists = with_sha256(kept, {COLD_USERS_KEY: str(cold_users)}, lists_file)
    content = hashlib.sha256(lists + (fingerprints or b"")).hexdigest()
    new_name = rewritten_part(name, content)
    if fingerprints is not None:
        run.write(FINGERPRINTS + new_name, fingerprints)
    run.write(new_name, lists)
    return _Shard(
        name=new_name,
        file=ShardFile(len(kept), len(lists), hashlib.sha256(lists).hexdigest()),
        fingerprints=None if fingerprints is None else hashlib.sha256(fingerprints).hexdigest(),
        removed_queries=pc.count_distinct(gone[_USER]).as_py(),
        removed_cold_users=cold_before - cold_users,
        removed_rows=len(gone),
    )


def _split(data: bytes, forgotten: UsersToForget) -> tuple[pa.Table, pa.Table, pa.Table]:
    """The table in an intact file, its rows of the users, and its other rows."""
    table = pq.read_table(pa.BufferReader(data))
    is_gone = is_in(table[_USER], forgotten.user_ids)
    return table, table.filter(is_gone), table.filter(pc.invert(is_gone))


def _without_users(
    manifest: RunManifest, shards: Mapping[str, _Shard], inputs: Mapping[str, object]
) -> RunManifest:
    """The manifest of the files that are left.

    Args:
        manifest: the run's manifest.
        shards: the files that were written again, by their old names.
        inputs: the run's inputs, with the present digest of the model.
    """
    files, fingerprints = dict(manifest.files), dict(manifest.fingerprints)
    for name, shard in shards.items():
        del files[name]
        files[shard.name] = shard.file
        fingerprints.pop(FINGERPRINTS + name, None)
        if shard.fingerprints is not None:
            fingerprints[FINGERPRINTS + shard.name] = shard.fingerprints
    gone = list(shards.values())
    return replace(
        manifest,
        inputs=inputs,
        queries=manifest.queries - sum(shard.removed_queries for shard in gone),
        cold_users=manifest.cold_users - sum(shard.removed_cold_users for shard in gone),
        rows=manifest.rows - sum(shard.removed_rows for shard in gone),
        files=files,
        fingerprints=fingerprints,
    )


# Manifest and pointer.


def _replace_manifest(recommendations: Store, run_id: str, data: bytes, version: str) -> None:
    """Steps 1 to 4.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        data: the new manifest.
        version: the version of the old one.

    Raises:
        ConflictError: another writer has replaced the manifest.
    """
    run = run_store(recommendations, run_id)
    sha256 = hashlib.sha256(data).hexdigest()
    run.write(rewritten_name(sha256), data)
    _point_to(recommendations, run_id, rewritten_name(sha256), sha256)
    if not run.replace(RUN_MANIFEST, data, version):
        raise ConflictError(
            f"Another job changed {run.uri(RUN_MANIFEST)} while users were removed from the run. "
            "Start again when no other job works on it.",
            path=run.uri(RUN_MANIFEST),
        )
    _point_to(recommendations, run_id, RUN_MANIFEST, sha256)


def _point_to(recommendations: Store, run_id: str, name: str, sha256: str) -> None:
    """Lets the pointer name a manifest of the run, if it names the run.

    `rewriting` has the manifest as long as it has a name of its own. The counter of the
    pointer's file always changes: a job that has read another manifest and is about to publish then
    fails its conditional write and reads again.
    """
    manifest = f"run={run_id}/{name}"
    rewriting = {} if name == RUN_MANIFEST else {run_id: sha256}
    while True:
        pointer, version = read_settled_pointer(recommendations)
        if version is None:
            return
        others = {run: sha for run, sha in pointer.rewriting.items() if run != run_id}
        new_pointer = replace(
            pointer, rewriting={**others, **rewriting}, removals=pointer.removals + 1
        )
        if pointer.run_id == run_id:
            new_pointer = replace(new_pointer, manifest=manifest, manifest_sha256=sha256)
        if replace_pointer(recommendations, new_pointer, version):
            read_settled_pointer(recommendations)  # tables name the new files from now on
            return


def _finish_interrupted(recommendations: Store, run_id: str) -> None:
    """Steps 3 and 4 of a start that was killed between 2 and 4."""
    run = run_store(recommendations, run_id)
    sha256 = read_pointer(recommendations)[0].rewriting.get(run_id)
    if sha256 is None:
        return
    data, found = read_manifest_bytes(run, sha256), run.read_if_exists(RUN_MANIFEST)
    if data is not None and found is not None:
        _replace_manifest(recommendations, run_id, data, found[1])


def _clean_up(run: Store) -> None:
    """Step 5, for this start and for one that was killed before."""
    run.delete(entry.name for entry in list(run.list("_manifest-")))
    run.delete([REWRITING])
    remove_stray_files(run)
