"""Interactions of users: which rows of a log count, up to the cutoff."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.config import check_fields, digest
from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.storage import schemas
from visrec.storage.input_table import InputTable, check_mapping
from visrec.storage.table_files import list_table_files
from visrec.storage.tables import digest_table, read_table_file

TableBatches: TypeAlias = Iterator[tuple[str, pa.Table]]  # where the rows are, and the rows
LIKED = "liked"  # column that says which rows count
# Reasons for which rows are left out.
NO_TIME, NO_USER, NO_ITEM = "without a timestamp", "without a user_id", "without an item_id"
AFTER_CUTOFF, NOT_LIKED = "at or after as_of", "rated below min_rating"
FUTURE = "dated after today"
NOT_RATED = "without a rating"
NO_FEATURE = "of items without a feature"
REPEATED = "repeats of a user and item (the first time counts)"


@dataclass(frozen=True, kw_only=True)
class InteractionsConfig:
    """Which interactions are read.

    Attributes:
        path: Parquet, CSV, TSV or JSON lines (a file, also compressed, or a directory) with
            user_id, item_id and timestamp; by default interactions.* of the workspace.
        columns: the columns that have other names in the files, such as {user_id: customer_email,
            item_id: sku, timestamp: ordered_at}.
        min_rating: rows with a lower rating do not count, because the user did not like the item.
            Needs a rating column, and the same value for training, evaluation and lists. Items
            rated lower are not recommended to that user.
        as_of: cutoff as an ISO date or time in UTC; only earlier rows count. A date means its first
            second. It must not be in the future. Without it, all rows up to the end of today count.
        max_incomplete: share of rows that may lack a user, an item or a timestamp, such as those of
            guests. They are left out and counted; if there are more, the job ends.
    """

    path: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    min_rating: float | None = None
    as_of: str | None = None
    max_incomplete: float = 0.2

    def __post_init__(self) -> None:
        check_fields(self, "interactions", min_rating="(-inf, inf)", max_incomplete="[0, 1]")
        check_mapping(self.columns, schemas.INTERACTIONS, "interactions.columns")
        cutoff_timestamp = self.cutoff_timestamp()
        if cutoff_timestamp is not None:
            require_past(cutoff_timestamp, "interactions.as_of", self.as_of)
        _ = self.end_timestamp  # all processes of a job get that of the first one

    def table(self, uri: str) -> InputTable:
        """The interactions at a location, with the names of their columns."""
        return InputTable(
            uri=uri,
            key="interactions.path",
            columns=self.columns,
            columns_key="interactions.columns",
        )

    def cutoff_timestamp(self) -> int | None:
        """`as_of` in seconds since 1970; None without a cutoff.

        Raises:
            InputError: it is not a date.
        """
        return None if self.as_of is None else utc_seconds(self.as_of, "interactions.as_of")

    @cached_property
    def end_timestamp(self) -> int:
        """The cutoff or, without one, the end of today (UTC). Only rows before it are used.

        A row dated in the future has a wrong date. It would otherwise set the date of all lists,
        and on that date nothing would have been taken lately.
        """
        cutoff_timestamp = self.cutoff_timestamp()
        if cutoff_timestamp is not None:
            return cutoff_timestamp
        today = datetime.now(UTC).date()
        return int(datetime.combine(today + timedelta(days=1), time(), UTC).timestamp())

    def require_min_rating(self, expected: float | None, source: str) -> None:
        """Refuses profiles that are built differently from those that a model was trained on.

        Args:
            expected: the `min_rating` of the model's training.
            source: where that value was used, in words.

        Raises:
            InputError: this `min_rating` is different.
        """
        if self.min_rating != expected:
            found, other = (_format_rating(each) for each in (self.min_rating, expected))
            raise InputError(
                f"Found --interactions.min_rating {found}, and {other} for {source}; expected the "
                "same value, so that the same interactions count.",
                key="interactions.min_rating",
            )

    def require_rating_column(self, is_present: bool, where: str) -> None:
        """Refuses a `min_rating` for rows without a rating column.

        Args:
            is_present: whether they have one.
            where: location of the rows, and the key that names it.

        Raises:
            InputError: they have none.
        """
        if self.min_rating is not None and not is_present:
            raise InputError(
                f"Found no rating column in {where}; --interactions.min_rating "
                f"{self.min_rating} needs one. Remove the key, or add the column.",
                key="interactions.min_rating",
            )


def _format_rating(rating: float | None) -> str:
    return "none" if rating is None else f"{rating:g}"


def utc_seconds(value: str, key: str) -> int:
    """An ISO date or time in seconds since 1970; UTC if it names no zone.

    Args:
        value: the configured value.
        key: its configuration key, without dashes.

    Raises:
        InputError: it is not a date.
    """
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as error:
        raise InputError(
            f"Found --{key} {value!r}; expected an ISO date such as 2026-11-22 or "
            "2026-11-22T03:00.",
            key=key,
        ) from error
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(aware.timestamp())


def require_past(
    cutoff_timestamp: float, key: str, value: str | None, expected: str = "a date or time"
) -> None:
    """Refuses a cutoff in the future.

    Interactions before such a cutoff may still come, and if its run were published, no night until
    then could be. Cutoffs are UTC, so no time zone needs any tolerance.

    Args:
        cutoff_timestamp: in seconds since 1970.
        key: the configuration key, without dashes.
        value: the configured value, for the message.
        expected: what the key takes, for the message.

    Raises:
        InputError: the cutoff is in the future.
    """
    now = datetime.now(UTC)
    if cutoff_timestamp > now.timestamp():
        raise InputError(
            f"Found --{key} {value}, which lies in the future: it is {now:%Y-%m-%d %H:%M} UTC. "
            f"Expected {expected} in the past, such as today's date in UTC.",
            key=key,
        )


def read_interactions(config: InteractionsConfig, uri: str) -> Iterator[pa.Table]:
    """The interactions that count, in batches; some rows may lack an item.

    Raises:
        InputError: as `read_usable_rows`.
    """
    for batch in read_usable_rows(config, uri, Counter()):
        if LIKED in batch.column_names:
            yield batch.filter(batch[LIKED]).drop_columns(LIKED)
        else:
            yield batch


def read_disliked(config: InteractionsConfig, batches: TableBatches) -> Iterator[pa.Table]:
    """The interactions that do not count because of their rating, in batches.

    Args:
        config: which interactions count.
        batches: rows, and where they are. How many of them are incomplete is not checked.

    Raises:
        InputError: there is a `min_rating` but no rating column.
    """
    if config.min_rating is None:
        return
    for batch in usable_rows(config, batches, Counter(), IncompleteRows()):
        yield batch.filter(pc.invert(batch[LIKED]))


def read_usable_rows(
    config: InteractionsConfig, uri: str, left_out: Counter[str]
) -> Iterator[pa.Table]:
    """The usable rows of a table (see `usable_rows`), in batches, if few rows are incomplete.

    Args:
        config: which interactions count.
        uri: location of the table.
        left_out: counts the rows that are left out here, by reason.

    Raises:
        InputError: there is a `min_rating` but no rating column, or too many rows lack a user, an
            item or a timestamp.
    """
    incomplete = IncompleteRows()
    yield from usable_rows(config, read_all(config, uri), left_out, incomplete)
    incomplete.require_few(config, uri)


def usable_rows(
    config: InteractionsConfig,
    batches: TableBatches,
    left_out: Counter[str],
    incomplete: "IncompleteRows",
) -> Iterator[pa.Table]:
    """The usable rows among some: those before the cutoff that have a user and a timestamp.

    Rows without an item are usable, because they name a user. With a `min_rating`, the column
    `LIKED` says which rows count. The caller checks how many rows were incomplete.

    Args:
        config: which interactions count.
        batches: rows, and where they are.
        left_out: counts the rows that are left out here, by reason.
        incomplete: counts the rows that lack something.

    Raises:
        InputError: there is a `min_rating` but no rating column.
    """
    for where, batch in batches:
        past = _before_end(batch, config, left_out)
        incomplete.add(batch.filter(pc.is_null(batch["timestamp"])), past)
        has_user = pc.is_valid(past["user_id"])
        left_out[NO_USER] += len(past) - int(pc.sum(has_user).as_py() or 0)
        past = past.filter(has_user)
        if config.min_rating is None:
            yield past
            continue
        config.require_rating_column("rating" in past.column_names, where)
        liked = pc.fill_null(pc.greater_equal(past["rating"], config.min_rating), False)
        yield past.append_column(LIKED, liked)


def read_all(config: InteractionsConfig, uri: str) -> TableBatches:
    """All rows of a table in batches, each with the location of its file."""
    for file in list_table_files(config.table(uri)):
        for batch in read_table_file(file, schemas.INTERACTIONS):
            yield file.where, batch


def _before_end(batch: pa.Table, config: InteractionsConfig, left_out: Counter[str]) -> pa.Table:
    """The rows with a timestamp before `end_timestamp`."""
    timed = batch.filter(pc.is_valid(batch["timestamp"]))
    left_out[NO_TIME] += len(batch) - len(timed)
    past = timed.filter(pc.less(timed["timestamp"], config.end_timestamp))
    left_out[FUTURE if config.as_of is None else AFTER_CUTOFF] += len(timed) - len(past)
    return past


@dataclass
class IncompleteRows:
    """Counts rows that lack a user, an item or a timestamp.

    They are counted among rows before the cutoff or without a timestamp.

    Attributes:
        rows: all of these.
        incomplete: those that lack something.
        example: one of them; empty if there is none.
    """

    rows: int = 0
    incomplete: int = 0
    example: dict[str, object] = field(default_factory=dict)

    def add(self, without_time: pa.Table, past: pa.Table) -> None:
        """Counts a batch.

        Args:
            without_time: its rows that lack a timestamp.
            past: its rows before the cutoff.
        """
        self.rows += len(without_time) + len(past)
        is_incomplete = pc.or_(pc.is_null(past["user_id"]), pc.is_null(past["item_id"]))
        for incomplete in (without_time, past.filter(is_incomplete)):
            self.incomplete += len(incomplete)
            if len(incomplete) and not self.example:
                self.example = incomplete.slice(0, 1).to_pylist()[0]

    def merge(self, other: "IncompleteRows") -> None:
        """Adds the counts of other rows."""
        self.rows += other.rows
        self.incomplete += other.incomplete
        self.example = self.example or other.example

    def require_few(self, config: InteractionsConfig, uri: str) -> None:
        """Refuses the rows of a table if more than `max_incomplete` of them lack something.

        Raises:
            InputError: shows an example.
        """
        if self.incomplete > config.max_incomplete * self.rows:
            shown = ", ".join(f"{name} {value!r:.60}" for name, value in self.example.items())
            raise InputError(
                f"{self.incomplete:,} of {self.rows:,} rows of {uri} lack a user_id, an "
                f"item_id or a timestamp, such as {shown}; expected a share of at most "
                f"{config.max_incomplete:g}. Fill them in, or raise "
                "--interactions.max_incomplete.",
                path=uri,
                key="interactions.max_incomplete",
            )


def digest_interactions(config: InteractionsConfig, uri: str) -> str:
    """16 hexadecimal digits that depend on every row that counts.

    With a cutoff they do not depend on rows that are appended later, so that a night that is
    restarted or backfilled is the same night. Without one they change when rows that were dated
    after today begin to count.
    """
    if config.as_of is None:
        found = digest_table(config.table(uri))
        future = _count_future(config, uri)
        return digest(found, future) if future else found
    rows = hashlib.sha256()
    for batch in read_interactions(config, uri):
        _update_digest(rows, batch)
    return rows.hexdigest()[:16]


def _count_future(config: InteractionsConfig, uri: str) -> int:
    """The rows dated after today. Only times are read: the files' digest covers all else."""
    left_out: Counter[str] = Counter()
    # A file without times is refused by whoever reads its rows, who knows which columns to expect.
    times = [replace(c, required=False) for c in schemas.INTERACTIONS if c.name == "timestamp"]
    for file in list_table_files(config.table(uri)):
        for batch in read_table_file(file, times):
            if batch.column_names:
                _before_end(batch, config, left_out)
    return left_out[FUTURE]


def _update_digest(digest: "hashlib._Hash", batch: pa.Table) -> None:
    """Hashes a batch row by row, so that batch boundaries do not matter. All declared columns
    count: one that the batch lacks is null, as it is once a later row has a value there.

    A value is hashed as its length, a colon and its text, and a null as a minus sign, so that no
    two different rows have the same bytes.
    """
    null, separator = pa.scalar("-", TEXT), pa.scalar("", TEXT)
    values = []
    for name in (column.name for column in schemas.INTERACTIONS):
        if name not in batch.column_names:
            values.append(pa.chunked_array([pa.repeat(null, len(batch))]))
            continue
        text = batch[name].cast(TEXT)
        length = pc.binary_length(text).cast(TEXT)
        encoded = pc.binary_join_element_wise(length, text, pa.scalar(":", TEXT))
        values.append(pc.fill_null(encoded, null))
    rows = pc.binary_join_element_wise(*values, separator)
    for chunk in rows.chunks:
        _, offset_buffer, data = chunk.buffers()
        if len(chunk):
            offsets = np.frombuffer(offset_buffer, np.int64)[chunk.offset :][: len(chunk) + 1]
            digest.update(data[int(offsets[0]) : int(offsets[-1])])
