"""What an export needs from a store. One file a store implements it."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from visrec.exports.batches import ListBatch
from visrec.exports.state import ExportState


class ServingStore(Protocol):
    """A place where a shop reads lists of one kind, by user or by item.

    Lists are entries under (id, generation); `visrec.exports.state` says which of them readers
    see. Methods raise what the store's library raises.
    """

    def read_state(self) -> bytes | None:
        """The record of what the store holds; None where there is none."""

    def swap_state(self, before: bytes | None, after: ExportState) -> bool:
        """Writes the record, if it still is `before`; returns whether it did.

        Readers go by `generation` and `since` of the record, which the store keeps where they can
        read them.
        """

    def transaction(self) -> AbstractContextManager[object]:
        """What is written inside becomes durable at once, where the store can do that."""

    def write(self, generation: int, batches: Iterable[ListBatch]) -> None:
        """Writes entries of a generation; writing the same entries again changes nothing."""

    def clean_up(self, state: ExportState) -> int:
        """Removes the entries that readers do not see, and those that mark a removed list.

        Returns:
            How many entries were removed.
        """
