"""An export to a store: staged shard by shard, made visible by one write, then cleaned up.

It may be killed at any moment. The next start reads from the store's record how far the export got:

- Killed while it staged: an export of the same run goes on after the last complete shard. One of
  another run gives the interrupted export up and cleans up.
- Killed after the switch: readers see the new run; the next export finishes the cleanup, and then
  does its own work: one of all lists writes them all again, which repairs a store.

Each change of the record replaces exactly what this process wrote last. So a process that another
one has taken over from cannot switch, and what it still writes belongs to a generation that no
reader sees.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from visrec.errors import ConflictError, InputError, StorageError
from visrec.exports.batches import ListBatch, all_batches, changed_batches, have_same_shards
from visrec.exports.run_lists import BeforeShard, RunLists, open_run
from visrec.exports.serving_store import ServingStore
from visrec.exports.state import ExportState, Staging, parse_state
from visrec.publication.list_tables import Lists
from visrec.storage.store import Store

# Between switch and cleanup: a reader that has just asked for the generation still finds its lists.
READERS_GRACE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export did.

    Attributes:
        run_id: the run that readers see now.
        written: lists written.
        unchanged: lists that were left as they are; None if all lists were written.
        removed: lists removed because the run has none for their user or item; None if unknown.
        old_entries: entries removed that no reader sees any more.
        note: why all lists were written although only changed ones were wanted.
    """

    run_id: str
    written: int = 0
    unchanged: int | None = None
    removed: int | None = None
    old_entries: int = 0
    note: str | None = None


class _UnusableBaseError(Exception):
    """The run that the store holds cannot be compared with."""


def export_to_store(
    store: ServingStore,
    where: str,
    run: RunLists,
    recommendations: Store,
    *,
    only_changed: bool,
    before_shard: BeforeShard,
) -> ExportReport:
    """Exports a run to a store.

    Args:
        store: receives the lists.
        where: the store, for messages.
        run: the run.
        recommendations: where the runs are, among them the one that the store holds.
        only_changed: write only lists that differ from those that the store holds.
        before_shard: called before each shard; raises if this process must not go on.

    Raises:
        ConflictError: another process exports to the store.
        InputError: a file of the run is damaged.
    """
    export = _Export(store, where, run, before_shard)
    base, note = _find_base(export.state, run, recommendations) if only_changed else (None, None)
    try:
        return export.run_all(base, note, only_changed=only_changed)
    except _UnusableBaseError:
        note = _note(export.state, "can no longer be read")
        return export.run_all(None, note, only_changed=only_changed)


def _find_base(
    state: ExportState, run: RunLists, recommendations: Store
) -> tuple[RunLists | None, str | None]:
    """The run that the store holds, if lists can be compared with it; otherwise why not."""
    if state.run is None:
        return None, None
    if state.write_all:
        return None, "an export of another run was interrupted before"
    base = open_run(recommendations, state.run)
    if base is None:
        return None, _note(state, "is not in the workspace any more, or was changed there")
    if len(base.parts) != len(run.parts) or base.manifest.kind != run.manifest.kind:
        return None, _note(state, "has another number of shards")
    return base, None


def _note(state: ExportState, why: str) -> str:
    run_id = state.run.run_id if state.run else ""
    return f"the run {run_id}, which the store held, {why}"


class _Export:
    """One process's export of one run to one store.

    Attributes:
        state: as this process read or wrote it last.
    """

    def __init__(
        self, store: ServingStore, where: str, run: RunLists, before_shard: BeforeShard
    ) -> None:
        self._store, self._where, self._run, self._before_shard = store, where, run, before_shard
        self._record = store.read_state()
        self._holder = ExportState().holder
        self.state = parse_state(self._record, where)

    def run_all(
        self, base: RunLists | None, note: str | None, *, only_changed: bool
    ) -> ExportReport:
        """All steps that are left; `base` is None to write all lists."""
        state = self.state
        holds_run = state.run == self._run.key
        if state.staging is not None and not self._can_resume(state.staging, base, only_changed):
            self._swap(replace(state, staging=None, is_swept=False, write_all=True))
            base, note = None, note or "an export of another run was interrupted before"
        old_entries = 0 if self.state.is_swept else self._clean_up()
        if self.state.staging is None and holds_run and only_changed:
            return ExportReport(run_id=self._run.key.run_id, old_entries=old_entries)
        self._begin(base)
        staged = self._stage(base)
        self._switch()
        time.sleep(READERS_GRACE_S)
        old_entries += self._clean_up()
        return ExportReport(
            run_id=self._run.key.run_id,
            written=staged.written,
            unchanged=self._run.manifest.queries - staged.written if staged.only_changed else None,
            removed=staged.removed if staged.only_changed else None,
            old_entries=old_entries,
            note=note if only_changed and not staged.only_changed else None,
        )

    def _can_resume(self, staging: Staging, base: RunLists | None, only_changed: bool) -> bool:
        """Whether an interrupted export is the one that is wanted now, or does more than that."""
        if staging.run != self._run.key:
            return False
        return not staging.only_changed or (only_changed and base is not None)

    def _begin(self, base: RunLists | None) -> None:
        """Takes an interrupted export over, or starts a new one."""
        if self.state.staging is not None:
            self._swap(self.state)
            return
        staging = Staging(run=self._run.key, only_changed=base is not None)
        self._swap(replace(self.state, staging=staging, issued=self.state.issued + 1))

    def _stage(self, base: RunLists | None) -> Staging:
        """Writes the shards that are not written yet."""
        staging = self._staging
        for shard in range(staging.shards_done, len(self._run.parts)):
            self._before_shard(shard, len(self._run.parts))
            counts = _Counts()
            batches = counts.count(self._batches(shard, base if staging.only_changed else None))
            with self._store.transaction():
                self._store.write(self.state.issued, _prefetch(batches))
                staging = replace(
                    staging,
                    shards_done=shard + 1,
                    written=staging.written + counts.written,
                    removed=staging.removed + counts.removed,
                )
                self._swap(replace(self.state, staging=staging))
        return staging

    def _batches(self, shard: int, base: RunLists | None) -> Iterator[ListBatch]:
        lists = self._run.read_shard(shard)
        if base is None:
            return all_batches(lists)
        return changed_batches(lists, self._read_base(base, lists, shard))

    def _read_base(self, base: RunLists, lists: Lists, shard: int) -> Lists:
        try:
            found = base.read_shard(shard)
        except (ConflictError, InputError, StorageError) as error:
            raise _UnusableBaseError from error
        if not have_same_shards(lists, found, shard, len(base.parts)):
            raise _UnusableBaseError
        return found

    def _switch(self) -> None:
        """Makes the staged lists visible."""
        self._before_shard(len(self._run.parts), len(self._run.parts))
        state, staging = self.state, self._staging
        switched = replace(
            state,
            run=staging.run,
            generation=state.issued,
            since=state.since if staging.only_changed else state.issued,
            staging=None,
            is_swept=False,
            write_all=state.write_all and staging.only_changed,
        )
        self._swap(switched)

    def _clean_up(self) -> int:
        """Removes what no reader sees."""
        old_entries = self._store.clean_up(self.state)
        self._swap(replace(self.state, is_swept=True))
        return old_entries

    @property
    def _staging(self) -> Staging:
        if self.state.staging is None:
            raise AssertionError("nothing is staged")
        return self.state.staging

    def _swap(self, state: ExportState) -> None:
        """Replaces the record.

        Raises:
            ConflictError: it is not the one that this process read or wrote last.
        """
        after = replace(state, holder=self._holder)
        record = after.to_json()
        # If the reply to a write was lost, its repetition fails although the record is written.
        if not self._store.swap_state(self._record, after) and self._store.read_state() != record:
            raise ConflictError(
                f"Another process exports to {self._where}, and has taken over from this one. "
                "Readers see a whole run. Start the export again once the other one has ended.",
                path=self._where,
            )
        self.state, self._record = after, record


class _Counts:
    """Counts the lists of the batches that pass."""

    def __init__(self) -> None:
        self.written = self.removed = 0

    def count(self, batches: Iterator[ListBatch]) -> Iterator[ListBatch]:
        for batch in batches:
            self.removed += batch.removed
            self.written += len(batch) - batch.removed
            yield batch


def _prefetch(batches: Iterator[ListBatch]) -> Iterator[ListBatch]:
    """The same batches; while the store takes one, a thread makes the next."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, batches, None)
        while (batch := upcoming.result()) is not None:
            upcoming = pool.submit(next, batches, None)
            yield batch
