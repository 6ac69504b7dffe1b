"""Publishes a complete run: the pointer moves to it, or stays where it is for a reason."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from visrec.errors import ConflictError
from visrec.publication.manifest import (
    RUN_MANIFEST,
    RunManifest,
    parse_manifest,
    read_manifest_bytes,
    read_manifest_file,
    require_intact_files,
    rewritten_name,
)
from visrec.publication.pointer import (
    LATEST,
    Pointer,
    TableFormat,
    read_pointer,
    replace_pointer,
)
from visrec.publication.records import now
from visrec.publication.run_spec import run_store
from visrec.publication.tables import add_tables, read_settled_pointer, with_tables
from visrec.storage.store import Store


@dataclass(frozen=True)
class PublicationStatus:
    """Whether a complete run is the published one.

    Attributes:
        run_id: the complete run.
        published: the pointer.
        reason: why the pointer is not at the run; None if it is.
    """

    run_id: str
    published: Pointer
    reason: str | None

    @property
    def summary(self) -> str:
        """`yes`, or `no` and the reason."""
        return "yes" if self.reason is None else f"no: {self.reason}"

    def tables_row(self, asked: Collection[TableFormat]) -> dict[str, str]:
        """The row of a summary about tables for SQL readers; empty without any.

        Args:
            asked: the formats of --publish.table.
        """
        follow = ", ".join(self.published.tables)
        left_out = ", ".join(name for name in asked if name not in self.published.tables)
        if left_out:
            follow += f"{'; ' if follow else ''}not {left_out}, until a run is published with it"
        return {"tables": follow} if follow else {}

    @property
    def explanation(self) -> str | None:
        """Sentences on which run stays published instead, and why; None if the run is published."""
        if self.reason is None:
            return None
        stays = self.published.run_id
        text = (
            f"The run {self.run_id} is complete and is not published: {stays} stays published, "
            f"because {self.reason}."
        )
        if (self.published.cutoff_timestamp or 0) > datetime.now(UTC).timestamp():
            text += (
                f" The cutoff of {stays} lies in the future, so it would stay published until "
                "then: go back to an earlier run with `visrec rollback --run_id`."
            )
        return text


def publish_run(
    recommendations: Store,
    run_id: str,
    *,
    completed_by_another: bool = False,
    tables: Collection[TableFormat] = (),
) -> bool:
    """Moves the pointer to a complete run; returns whether it moved.

    Publication never moves the pointer back: neither to a run with an earlier cutoff (a backfilled
    night) nor to a run that was rolled back. A run that another start has completed may be old. The
    pointer moves to it only if nobody has moved the pointer since the run became complete, which
    means that an earlier start was stopped between manifest and pointer. If the pointer names this
    run with an older manifest, it moves to the present one.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        completed_by_another: whether another start of the run, earlier or beside, has completed it.
        tables: tables for SQL readers that follow the pointer from now on.

    Raises:
        ConflictError: another writer moved the pointer first.
        InputError: the run was complete and its files are not those of the manifest any more, or
            the log of a table is damaged.
    """
    # If the write fails, try again unless the pointer itself moved (a new `sequence`): retention
    # and forget change the file as well.
    sequence = None
    while True:
        pointer, version = read_settled_pointer(recommendations)
        if sequence not in (None, pointer.sequence):
            raise moved_meanwhile_error(recommendations)
        sequence = pointer.sequence
        # The manifest is read after the pointer. Before retention removes the run, it changes the
        # pointer's file, and then the conditional write below fails.
        found = read_manifest_to_publish(recommendations, run_id, pointer)
        if found is None:
            return False
        new_pointer = with_tables(next_pointer(run_id, *found, pointer), tables)
        if new_pointer.manifest_sha256 == pointer.manifest_sha256:
            add_tables(recommendations, tables)
            return False
        pointer_may_have_moved = completed_by_another and version is not None
        if _reason_to_stay(run_id, found[1], pointer, pointer_may_have_moved) is not None:
            return False
        if completed_by_another:  # nobody has read the files since they were checked
            require_intact_files(run_store(recommendations, run_id), found[1])
        if replace_pointer(recommendations, new_pointer, version):
            read_settled_pointer(recommendations)
            return True


def publication_status(
    recommendations: Store, run_id: str, *, completed_by_another: bool = False
) -> PublicationStatus:
    """Whether a complete run is the published one, and if not, why the pointer does not move.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        completed_by_another: whether another start of the run, earlier or beside, has completed it.
    """
    pointer, version = read_pointer(recommendations)
    found = read_manifest_to_publish(recommendations, run_id, pointer)
    reason: str | None
    if found is None:
        reason = "it is not complete, or retention has removed it"
    elif hashlib.sha256(found[0]).hexdigest() == pointer.manifest_sha256:
        reason = None
    else:
        pointer_may_have_moved = completed_by_another and version is not None
        reason = _reason_to_stay(run_id, found[1], pointer, pointer_may_have_moved)
        reason = reason or "the pointer has not moved to it"
    return PublicationStatus(run_id, pointer, reason)


def next_pointer(run_id: str, data: bytes, manifest: RunManifest, pointer: Pointer) -> Pointer:
    """The pointer that names a run and follows the present pointer.

    Args:
        run_id: the run.
        data: the bytes of its manifest.
        manifest: the same, parsed.
        pointer: the present one.
    """
    cutoff_timestamp = manifest.cutoff_timestamp
    if cutoff_timestamp is None:  # so that no older night is published after such a run
        cutoff_timestamp = pointer.cutoff_timestamp
    previous = pointer.run_id
    if previous == run_id:  # the run was made again
        previous = pointer.previous_run_id
    sha256 = hashlib.sha256(data).hexdigest()
    is_rewritten = pointer.rewriting.get(run_id) == sha256
    return replace(
        pointer,
        run_id=run_id,
        manifest=f"run={run_id}/{rewritten_name(sha256) if is_rewritten else RUN_MANIFEST}",
        manifest_sha256=sha256,
        cutoff_timestamp=cutoff_timestamp,
        previous_run_id=previous,
        published_at=now(),
        # If the pointer's file was lost, counting continues from the run's copy of the number.
        sequence=max(pointer.sequence, manifest.pointer_sequence) + 1,
    )


def moved_meanwhile_error(recommendations: Store) -> ConflictError:
    """The error of a writer that did not move the pointer because another one was first."""
    return ConflictError(
        f"Another run moved {recommendations.uri(LATEST)} at the same moment. The run is "
        "complete; run the job again with the same --run_id to publish it."
    )


def read_manifest_to_publish(
    recommendations: Store, run_id: str, pointer: Pointer
) -> tuple[bytes, RunManifest] | None:
    """The bytes of a run's manifest, and the manifest; None where there is none.

    While users are removed from a run, this is the new manifest, which `rewriting` in the pointer's
    file names by its SHA-256. It has a file of its own until the pointer's file has changed again.

    Args:
        recommendations: where the runs are.
        run_id: the run.
        pointer: the present one.

    Raises:
        InputError: the manifest is damaged.
    """
    run = run_store(recommendations, run_id)
    sha256 = pointer.rewriting.get(run_id)
    if pointer.run_id == run_id:
        sha256 = pointer.manifest_sha256
    if sha256 is not None:
        data = read_manifest_bytes(run, sha256)
        if data is not None:
            return data, parse_manifest(data, run.uri(RUN_MANIFEST))
    return read_manifest_file(run)


def _reason_to_stay(
    run_id: str, manifest: RunManifest, pointer: Pointer, pointer_may_have_moved: bool
) -> str | None:
    """Why the pointer does not move to a complete run that it does not name; None if it may.

    Args:
        run_id: the run.
        manifest: its manifest.
        pointer: the present one.
        pointer_may_have_moved: whether time may have passed since the run became complete: this
            start did not complete it, and there is a pointer.
    """
    if run_id in pointer.removing:
        return "retention is removing it"
    if run_id in pointer.rolled_back:
        return f"{run_id} was rolled back (`visrec rollback --run_id {run_id}` publishes it again)"
    cutoffs = (manifest.cutoff_timestamp, pointer.cutoff_timestamp)
    if cutoffs[0] is not None and cutoffs[1] is not None and cutoffs[0] < cutoffs[1]:
        return "a later night is published"
    if (
        pointer_may_have_moved
        and run_id != pointer.run_id
        and manifest.pointer_sequence != pointer.sequence
    ):
        return "the pointer has moved to another run since this one became complete"
    return None
