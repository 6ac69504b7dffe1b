"""A table that was prepared once: coded, assigned to partitions by user, and sorted.

It holds interactions, or the rows of the users table or of the block list, which lack some of the
columns of interactions.

It is stored as immutable files and a manifest, which lists the current partitions and the files
whose rows they contain.

Shapes: P partitions.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import PREPARED_INTERACTIONS
from visrec.storage.store import Store

PREPARED = "prepared"  # folder of a workspace
PREPARED_MANIFEST = "_manifest.json"
MANIFEST_VERSION = 1  # of its keys and of the files
OPTIONAL_COLUMNS = ("rating", "evaluation")


@dataclass(frozen=True, kw_only=True)
class PreparedManifest:
    """What was prepared.

    Attributes:
        inputs: the fingerprint of each file of the table, in the order of their rows.
        parts_P: the file of each partition; None for one without rows.
        rows_P: the number of rows of each partition.
        columns: the optional columns that any of the files has.
        without_rating: the files that lack the column `rating`.
    """

    inputs: Mapping[str, str]
    parts_P: Sequence[str | None]
    rows_P: Sequence[int]
    columns: Sequence[str]
    without_rating: Sequence[str]

    @staticmethod
    def empty(partitions: int) -> "PreparedManifest":
        """A manifest of this number of partitions, all without rows."""
        return PreparedManifest(
            inputs={},
            parts_P=[None] * partitions,
            rows_P=[0] * partitions,
            columns=[],
            without_rating=[],
        )

    @property
    def partitions(self) -> int:
        """The number of partitions (P)."""
        return len(self.parts_P)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as JSON has it, with the inputs as a list, which keeps their order."""
        fields = {**asdict(self), "inputs": list(self.inputs.items())}
        return {"version": MANIFEST_VERSION, **fields}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "PreparedManifest | None":
        """The manifest from its JSON; None if another version of visrec wrote it."""
        fields = dict(value)
        if fields.pop("version", None) != MANIFEST_VERSION:
            return None
        return PreparedManifest(**{**fields, "inputs": dict(fields["inputs"])})

    def fits(self, partitions: int | None, listed: Set[str]) -> bool:
        """Whether it has this number of partitions (if one is given) and all its files exist."""
        files = {part for part in self.parts_P if part is not None}
        return partitions in (None, self.partitions) and files <= listed

    def is_prefix_of(self, inputs: Mapping[str, str]) -> bool:
        """Whether these inputs begin with its files, unchanged."""
        return [*self.inputs.items()] == [*inputs.items()][: len(self.inputs)]


@dataclass(frozen=True)
class PreparedTable:
    """A prepared table, to read.

    Attributes:
        table: the one that was prepared.
        store: the directory of the partitions.
        manifest: its content.
    """

    table: InputTable
    store: Store
    manifest: PreparedManifest

    @property
    def partitions(self) -> list[int]:
        """The partitions that have rows."""
        return [number for number, part in enumerate(self.manifest.parts_P) if part is not None]

    def require_rating_column(self, config: InteractionsConfig) -> None:
        """Refuses a `min_rating` if a file has no rating column, just as reading the file would.

        Raises:
            InputError: names the file.
        """
        for where in self.manifest.without_rating:
            config.require_rating_column(False, where)

    def read(self, partition: int) -> pa.Table:
        """The rows of a partition, ids as codes.

        Optional columns are there if any row of the table has them, or it has no rows.
        """
        part = self.manifest.parts_P[partition]
        rows = PREPARED_INTERACTIONS.empty_table() if part is None else self.store.read_table(part)
        known = self.manifest.columns if any(self.manifest.rows_P) else OPTIONAL_COLUMNS
        absent = {*OPTIONAL_COLUMNS} - {*known}
        return rows.drop_columns(sorted(absent)) if absent else rows
