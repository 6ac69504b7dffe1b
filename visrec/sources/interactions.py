"""Interactions in: which of the rows of a log count, and how far back it is read."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec import schemas
from visrec.errors import InputError
from visrec.sources.tables import digest_files, read_batches

_NEXT, _END, _NULL = "\x1f", "\x1e", "\x00"  # of a row's values


@dataclass(frozen=True, kw_only=True)
class InteractionsConfig:
    """Which interactions are read.

    Attributes:
        path: Parquet or CSV file (or a directory of them) with user_id, item_id and timestamp;
            by default interactions.parquet of the workspace.
        min_rating: rows rated below this do not count; needs a rating column.
        as_of: a date or time (ISO, UTC) before which a row must have happened; a date means its
            first second.
    """

    path: str | None = None
    min_rating: float | None = None
    as_of: str | None = None

    def __post_init__(self) -> None:
        self.before()

    def before(self) -> int | None:
        """`as_of` in seconds since 1970.

        Raises:
            InputError: it is not a date.
        """
        if self.as_of is None:
            return None
        try:
            moment = datetime.fromisoformat(self.as_of)
        except ValueError as error:
            raise InputError(
                f"Found --interactions.as_of {self.as_of!r}; expected an ISO date such as "
                "2026-11-22 or 2026-11-22T03:00."
            ) from error
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(aware.timestamp())


def read_interactions(config: InteractionsConfig, uri: str) -> Iterator[pa.Table]:
    """The interactions that count, a batch at a time.

    Raises:
        InputError: a rating is asked for where there is no such column.
    """
    before = config.before()
    for batch in read_batches(uri, schemas.INTERACTIONS, "interactions.path"):
        if config.min_rating is not None:
            if "rating" not in batch.column_names:
                raise InputError(
                    f"Found no rating column in {uri}; --interactions.min_rating "
                    f"{config.min_rating} needs one. Leave the key out, or add the column."
                )
            batch = batch.filter(pc.greater_equal(batch["rating"], config.min_rating))
        if before is not None:
            batch = batch.filter(pc.less(batch["timestamp"], before))
        yield batch


def digest_interactions(config: InteractionsConfig, uri: str) -> str:
    """16 hexadecimal digits that change with any row that counts.

    As of a moment they do not change with what is added to the files later, so that a night that is
    begun again, or filled in, is the same night.
    """
    if config.as_of is None:
        return digest_files(uri, "interactions.path")
    seen = hashlib.sha256()
    for batch in read_interactions(config, uri):
        texts = [column.cast(pa.large_string()) for column in batch.columns]
        end, following = (pa.scalar(mark, pa.large_string()) for mark in (_END, _NEXT))
        rows = pc.binary_join_element_wise(
            *texts, end, following, null_handling="replace", null_replacement=_NULL
        )
        for chunk in rows.chunks:
            _, offsets, values = chunk.buffers()
            if len(chunk):
                places = np.frombuffer(offsets, np.int64)[chunk.offset :][: len(chunk) + 1]
                seen.update(values[int(places[0]) : int(places[-1])])
    return seen.hexdigest()[:16]
