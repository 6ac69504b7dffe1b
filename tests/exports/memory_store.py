"""A store in memory that can be killed before any of its operations."""

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from tests.exports.lists import Seen
from visrec.exports.batches import ListBatch
from visrec.exports.state import ExportState


class Killed(BaseException):
    """Ends an export as SIGKILL does: nothing of visrec catches it."""


@dataclass
class MemoryStore:
    """Entries by id and generation.

    Attributes:
        entries: what was written: items, or None for the mark of a removed list.
        record: what is recorded of what the store holds.
        visible: `since` and `generation`, as readers get them.
        lives: operations until the store kills the export; -1 for never.
        written: how many entries were written in all.
    """

    entries: dict[tuple[str, int], str | None] = field(default_factory=dict)
    record: bytes | None = None
    visible: tuple[int, int] = (0, 0)
    lives: int = -1
    written: int = 0

    def read_state(self) -> bytes | None:
        return self.record

    def swap_state(self, before: bytes | None, after: ExportState) -> bool:
        self._live()
        if self.record != before:
            return False
        self.record, self.visible = after.to_json(), (after.since, after.generation)
        return True

    def transaction(self) -> AbstractContextManager[object]:
        return nullcontext()

    def write(self, generation: int, batches: Iterable[ListBatch]) -> None:
        for batch in batches:
            for id, items in zip(batch.ids, batch.items, strict=True):
                self._live()
                self.entries[id, generation] = items
                self.written += 1

    def clean_up(self, state: ExportState) -> int:
        ids, before = {id for id, _ in self.entries}, len(self.entries)
        for id in sorted(ids):
            self._live()
            generations = [n for other, n in self.entries if other == id]
            seen = max((n for n in generations if state.since <= n <= state.generation), default=0)
            keeps = self.entries.get((id, seen)) is not None
            for n in generations:
                if n != seen or not keeps:
                    del self.entries[id, n]
        return before - len(self.entries)

    def read_all(self) -> Seen:
        """What readers see."""
        since, generation = self.visible
        found: Seen = {}
        for (id, n), items in sorted(self.entries.items()):
            if since <= n <= generation:
                found.pop(id, None)
                if items is not None:
                    found[id] = json.loads(items)
        return found

    def _live(self) -> None:
        if self.lives == 0:
            raise Killed
        self.lives -= 1
