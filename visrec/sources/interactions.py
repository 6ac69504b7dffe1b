"""Interactions in: which of the rows of a log count, and how far back it is read."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage import schemas
from visrec.storage.tables import digest_files, files_of, read_file

LIKED = "liked"  # the column that says which rows count
# Why rows are left out.
NO_TIME, NO_USER, NO_ITEM = "without a timestamp", "without a user_id", "without an item_id"
AFTER_CUTOFF, NOT_LIKED = "at or after as_of", "rated below min_rating"
NOT_RATED = "without a rating"
NO_FEATURE, REPEATED = "of items without a feature", "repeated"


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
        max_incomplete: share of the rows that may lack a user, an item or a time. Such rows, as of
            guests, are left out and counted; where there are more, the job ends.
    """

    path: str | None = None
    min_rating: float | None = None
    as_of: str | None = None
    max_incomplete: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, "interactions", min_rating="(-inf, inf)", max_incomplete="[0, 1]")
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
    """The interactions that count, a batch at a time; some may lack an item.

    Raises:
        InputError: as `read_known`.
    """
    for batch in read_known(config, uri, Counter()):
        yield (
            batch.filter(batch[LIKED]).drop_columns(LIKED) if LIKED in batch.column_names else batch
        )


def read_not_liked(config: InteractionsConfig, uri: str) -> Iterator[pa.Table]:
    """The interactions that do not count for their rating, a batch at a time.

    Raises:
        InputError: as `read_known`.
    """
    for batch in read_known(config, uri, Counter()):
        if LIKED in batch.column_names:
            yield batch.filter(pc.invert(batch[LIKED]))


def read_known(config: InteractionsConfig, uri: str, left_out: Counter[str]) -> Iterator[pa.Table]:
    """What had happened by the cutoff, a batch at a time: rows of a user and a time.

    Where there is a `min_rating`, the column `LIKED` says which rows count.

    Args:
        config: which of them count.
        uri: where they are.
        left_out: takes the rows that are left out here, by reason.

    Raises:
        InputError: a rating is asked for where there is no such column, or too many rows lack a
            user, an item or a time.
    """
    incomplete = _Incomplete(config, uri)
    for where, batch in _batches(uri):
        known = _happened(batch, config.before(), left_out)
        incomplete.note(batch.filter(pc.is_null(batch["timestamp"])), known)
        has_user = pc.is_valid(known["user_id"])
        left_out[NO_USER] += len(known) - int(pc.sum(has_user).as_py() or 0)
        known = known.filter(has_user)
        if config.min_rating is None:
            yield known
            continue
        if "rating" not in known.column_names:
            raise InputError(
                f"Found no rating column in {where}; --interactions.min_rating "
                f"{config.min_rating} needs one. Leave the key out, or add the column."
            )
        liked = pc.fill_null(pc.greater_equal(known["rating"], config.min_rating), False)
        yield known.append_column(LIKED, liked)
    incomplete.require_few()


def _batches(uri: str) -> Iterator[tuple[str, pa.Table]]:
    for file in files_of(uri, "interactions.path"):
        for batch in read_file(file, schemas.INTERACTIONS):
            yield file.where, batch


def _happened(batch: pa.Table, before: int | None, left_out: Counter[str]) -> pa.Table:
    """The rows that have a time, before the cutoff."""
    timed = batch.filter(pc.is_valid(batch["timestamp"]))
    left_out[NO_TIME] += len(batch) - len(timed)
    if before is None:
        return timed
    happened = timed.filter(pc.less(timed["timestamp"], before))
    left_out[AFTER_CUTOFF] += len(timed) - len(happened)
    return happened


class _Incomplete:
    """Counts the rows that lack what each must have, among those that a cutoff leaves."""

    def __init__(self, config: InteractionsConfig, uri: str) -> None:
        self._config, self._uri = config, uri
        self._rows = self._lacking = 0
        self._example: dict[str, object] = {}

    def note(self, without_time: pa.Table, timed: pa.Table) -> None:
        self._rows += len(without_time) + len(timed)
        lacks = pc.or_(pc.is_null(timed["user_id"]), pc.is_null(timed["item_id"]))
        for lacking in (without_time, timed.filter(lacks)):
            self._lacking += len(lacking)
            if len(lacking) and not self._example:
                self._example = lacking.slice(0, 1).to_pylist()[0]

    def require_few(self) -> None:
        if self._lacking > self._config.max_incomplete * self._rows:
            shown = ", ".join(f"{name} {value!r:.60}" for name, value in self._example.items())
            raise InputError(
                f"{self._lacking:,} of {self._rows:,} rows of {self._uri} lack a user_id, an "
                f"item_id or a timestamp, such as {shown}; expected at most a share of "
                f"{self._config.max_incomplete:g}. Fill them, or raise "
                "--interactions.max_incomplete."
            )


def digest_interactions(config: InteractionsConfig, uri: str) -> str:
    """16 hexadecimal digits that change with any row that counts.

    As of a moment they do not change with what is added to the files later, so that a night that is
    begun again, or filled in, is the same night.
    """
    if config.as_of is None:
        return digest_files(uri, "interactions.path")
    seen, names = hashlib.sha256(), None
    for batch in read_interactions(config, uri):
        if len(batch) and batch.column_names != names:
            names = batch.column_names
            seen.update(f"#{json.dumps(names)}\n".encode())
        _update(seen, batch)
    return seen.hexdigest()[:16]


def _update(seen: "hashlib._Hash", batch: pa.Table) -> None:
    """Hashes a batch row by row, so that it does not matter where batches are cut.

    A value is its length, a colon and its text; a null is a minus. So no two rows look the same.
    """
    none, nothing = pa.scalar("-", TEXT), pa.scalar("", TEXT)
    values = []
    for column in batch.columns:
        text = column.cast(TEXT)
        length = pc.binary_length(text).cast(TEXT)
        told = pc.binary_join_element_wise(length, text, pa.scalar(":", TEXT))
        values.append(pc.fill_null(told, none))
    rows = pc.binary_join_element_wise(*values, nothing)
    for chunk in rows.chunks:
        _, offsets, data = chunk.buffers()
        if len(chunk):
            places = np.frombuffer(offsets, np.int64)[chunk.offset :][: len(chunk) + 1]
            seen.update(data[int(places[0]) : int(places[-1])])
