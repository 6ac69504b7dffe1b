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
        min_rating: rows rated below this do not count, for they say that an item was not liked;
            needs a rating column. The same for training, evaluation and lists. Such items are not
            recommended either.
        as_of: a date or time (ISO, UTC) before which a row must have happened; a date means its
            first second. It must not lie in the future.
    """

    path: str | None = None
    min_rating: float | None = None
    as_of: str | None = None

    def __post_init__(self) -> None:
        before = self.before()
        if before is not None:
            require_past(before, "interactions.as_of", self.as_of)

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

    def require_min_rating(self, wanted: float | None, whose: str) -> None:
        """Refuses profiles made otherwise than those that a model was trained on.

        Args:
            wanted: the `min_rating` of its training.
            whose: it is, in words.

        Raises:
            InputError: it is another.
        """
        if self.min_rating != wanted:
            shown = ["none" if each is None else f"{each:g}" for each in (self.min_rating, wanted)]
            raise InputError(
                f"Found --interactions.min_rating {shown[0]}, and {shown[1]} for {whose}; expected "
                "the same, or what counts as liked there is something else here."
            )


def require_past(before: float, key: str, given: str | None) -> None:
    """Refuses a cutoff that has not been reached yet: what happens until then is not known, and a
    publication of that cutoff would stand in the way of every real night until then.

    Cutoffs are UTC, so no time zone needs any tolerance: a date begins when it begins in UTC.

    Args:
        before: the cutoff, in seconds since 1970.
        key: where it was given, without dashes.
        given: as it was written.

    Raises:
        InputError: it lies in the future.
    """
    now = datetime.now(UTC)
    if before > now.timestamp():
        raise InputError(
            f"Found --{key} {given}, which lies in the future: it is {now:%Y-%m-%d %H:%M} UTC. "
            "Expected a date or time that has been reached, such as today's date in UTC."
        )


def read_interactions(config: InteractionsConfig, uri: str) -> Iterator[pa.Table]:
    """The interactions that count, a batch at a time.

    Raises:
        InputError: a rating is asked for where there is no such column.
    """
    for batch, counts in _read(config, uri):
        yield batch if counts is None else batch.filter(counts)


def read_not_liked(config: InteractionsConfig, uri: str) -> Iterator[pa.Table]:
    """The interactions that do not count for their rating, a batch at a time.

    Raises:
        InputError: as `read_interactions`.
    """
    for batch, counts in _read(config, uri):
        if counts is not None:
            yield batch.filter(pc.invert(counts))


def _read(
    config: InteractionsConfig, uri: str
) -> Iterator[tuple[pa.Table, pa.ChunkedArray | None]]:
    """Batches of what has happened, and which rows count; None for all."""
    before = config.before()
    for batch in read_batches(uri, schemas.INTERACTIONS, "interactions.path"):
        if before is not None:
            batch = batch.filter(pc.less(batch["timestamp"], before))
        if config.min_rating is None:
            yield batch, None
            continue
        if "rating" not in batch.column_names:
            raise InputError(
                f"Found no rating column in {uri}; --interactions.min_rating "
                f"{config.min_rating} needs one. Leave the key out, or add the column."
            )
        yield batch, pc.fill_null(pc.greater_equal(batch["rating"], config.min_rating), False)


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
