"""Timestamps in any format that tables use, parsed to seconds since 1970."""

from contextlib import suppress
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT
from visrec.storage.arrow_values import (
    NUMBER_PATTERN,
    InvalidValueError,
    any_true,
    first_where,
    is_number,
    is_text,
    nan_to_null,
    stripped,
)

EXPECTED_TIMESTAMP = (
    "seconds since 1970, a timestamp type, or ISO 8601 such as 2026-11-22T03:00:00Z"
)
FIRST_TIME = int(datetime(1900, 1, 2, tzinfo=UTC).timestamp())  # 1900-01-01 means "no date"
LAST_TIME = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_ZONE = r"(:[0-9]{2})([.,][0-9]+)? ?(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)$"
_FRACTION = r"(:[0-9]{2})[.,][0-9]+$"
_UNITS = {10**3: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}
_FIRST_DATE, _LAST_DATE = 1900_01_01, 2099_12_31  # YYYYMMDD as a number


def is_timestamp(dtype: pa.DataType) -> bool:
    number = is_number(dtype) and not pa.types.is_float16(dtype)  # whose maximum is 65,504
    return bool(number or pa.types.is_timestamp(dtype) or pa.types.is_date(dtype))


def parse_timestamps(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds since 1970, rounded down. Timestamps with a time zone are instants in UTC."""
    if is_text(times.type):
        seconds = _seconds_from_text(times)
    elif pa.types.is_timestamp(times.type):
        seconds = _seconds_from_instants(times)
    elif pa.types.is_date(times.type):
        seconds = times.cast(pa.timestamp("s")).cast(pa.int64())
    else:
        seconds = _seconds_from_numbers(times)
    _require_plausible(seconds)
    return seconds


def _seconds_from_instants(times: pa.ChunkedArray) -> pa.ChunkedArray:
    unit = times.type.unit
    # Not local time, in which one hour of the year occurs twice and another never.
    instants = times.cast(pa.timestamp(unit, "UTC")) if times.type.tz else times
    # A cast alone would round towards 1970.
    floored = pc.floor_temporal(instants.cast(pa.timestamp(unit)), unit="second")
    return floored.cast(pa.timestamp("s")).cast(pa.int64())


def _seconds_from_numbers(times: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_integer(times.type):
        return _require_seconds(times.cast(pa.int64()))
    times = nan_to_null(times.cast(pa.float64()))
    overflows = pc.greater(pc.abs(times), 2.0**62)
    if any_true(overflows):
        raise InvalidValueError(
            f"found {first_where(times, overflows):g}; expected {EXPECTED_TIMESTAMP}"
        )
    return _require_seconds(pc.floor(times).cast(pa.int64()))


def _require_seconds(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Refuses numbers in another unit than seconds, and dates written as numbers."""
    last = pc.max(numbers).as_py()
    for digits, form in ((numbers, "YYYYMMDD"), (pc.divide(numbers, 10**6), "YYYYMMDDhhmmss")):
        if _are_dates(digits):
            raise InvalidValueError(
                f"found only timestamps such as {last}, which are dates written as numbers, "
                f"{form}; expected {EXPECTED_TIMESTAMP}"
            )
    if last is not None and last >= LAST_TIME:
        units = (unit for factor, unit in _UNITS.items() if last // factor < LAST_TIME)
        raise InvalidValueError(
            f"found timestamps up to the year {_year(last)}, such as {last}; "
            f"{next(units, 'nanoseconds')}? Expected {EXPECTED_TIMESTAMP}"
        )
    return numbers


def _are_dates(numbers: pa.ChunkedArray) -> bool:
    """Whether all numbers are dates in eight digits. As seconds they would be a few days of 1970,
    which are never all timestamps of a table."""
    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is None or bounds["min"] < _FIRST_DATE or bounds["max"] > _LAST_DATE:
        return False
    rest = pc.subtract(numbers, pc.multiply(pc.divide(numbers, 10_000), 10_000))
    month = pc.divide(rest, 100)
    day = pc.subtract(rest, pc.multiply(month, 100))
    limits = ((month, 12), (day, 31))
    return all(pc.min(part).as_py() >= 1 and pc.max(part).as_py() <= most for part, most in limits)


def _seconds_from_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds from numbers and from ISO 8601, which is UTC if it names no time zone."""
    text = values.cast(TEXT)
    # Most columns use one format throughout, which can be parsed five to ten times as fast.
    if pc.all(pc.match_substring_regex(text, r"^[0-9]{1,18}$")).as_py():
        return _require_seconds(text.cast(pa.int64()))
    with suppress(pa.ArrowInvalid):
        return _seconds_from_instants(text.cast(pa.timestamp("us")))
    text = stripped(values)
    numeric, zone = (pc.match_substring_regex(text, form) for form in (NUMBER_PATTERN, _ZONE))
    number = pc.if_else(numeric, text, None)
    zoned = pc.replace_substring_regex(pc.if_else(zone, text, None), _ZONE, r"\1\3")
    zoned = pc.replace_substring_regex(zoned, r"(UTC|z)$", "Z")
    naive = pc.if_else(pc.or_(numeric, zone), None, text)
    naive = pc.replace_substring_regex(naive, _FRACTION, r"\1")
    return pc.coalesce(
        _seconds_from_numbers(number.cast(pa.float64())),
        _parse_iso(zoned, pa.timestamp("s", "UTC")),
        _parse_iso(naive, pa.timestamp("s")),
    )


def _parse_iso(text: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    try:
        return text.cast(dtype).cast(pa.int64())
    except pa.ArrowInvalid:
        for value in pc.unique(text.drop_null()):
            try:
                value.cast(dtype)
            except pa.ArrowInvalid as error:
                raise InvalidValueError(
                    f"found {value.as_py()!r}; expected {EXPECTED_TIMESTAMP}"
                ) from error
        raise


def _require_plausible(seconds: pa.ChunkedArray) -> None:
    """Refuses placeholders for an unknown time, such as the year 1 or 9999."""
    bounds = pc.min_max(seconds).as_py()
    for second in (bounds["min"], bounds["max"]):
        if second is not None and not FIRST_TIME <= second < LAST_TIME:
            raise InvalidValueError(
                f"found a timestamp in the year {_year(second)} ({second} seconds since 1970); "
                "expected times from 1900-01-02 to 2099, and blanks for unknown times"
            )


def _year(seconds: int) -> int:
    return 1970 + int(np.datetime64(seconds, "s").astype("datetime64[Y]").astype(np.int64))
