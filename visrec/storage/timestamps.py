"""Timestamps in any format that tables use, parsed to seconds since 1970.

The unit of a number follows from its size: as seconds, milliseconds would lie beyond the year 2100.
"""

import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT
from visrec.storage.arrow_values import (
    EXACT_LIMIT,
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
    "seconds, milliseconds, microseconds or nanoseconds since 1970, a timestamp type, ISO 8601 "
    "such as 2026-11-22T03:00:00Z, or 22.11.2026 03:00"
)
FIRST_TIME = int(datetime(1900, 1, 2, tzinfo=UTC).timestamp())  # 1900-01-01 means "no date"
LAST_TIME = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_ZONE = r"(:[0-9]{2})([.,][0-9]+)? ?(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)$"
_FRACTION = r"(:[0-9]{2})[.,][0-9]+$"
_SLASHES = r"^([0-9]{4})/([0-9]{2})/([0-9]{2})"
# With dots the day is first: no locale of Unicode's CLDR has dots and the month first.
_DOTTED = r"^(0?[1-9]|[12][0-9]|3[01])\.(0?[1-9]|1[0-2])\.[0-9]{4}($|[ ,])"
_YEAR_LAST = re.compile(r"([0-9]{1,2})[./-]([0-9]{1,2})[./-]([0-9]{4}|[0-9]{2})\b")
_INTEGER = r"^(?:[0-9]{1,18}|[1-8][0-9]{18})$"  # that fits into 64 bits
# Units by Arrow's names, with how many of them a second has.
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_FIRST_DATE, _LAST_DATE = 1900_01_01, 2099_12_31  # YYYYMMDD as a number
# 2000 to 2049 as spreadsheets store them. Wider bounds could take a piece of a table whose times
# are mere numbers of its rows for such dates.
_FIRST_SERIAL, _LAST_SERIAL = 36_526, 54_788


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
    _require_plausible(seconds, times)
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
        return _seconds_from_epoch(times.cast(pa.int64()))
    if pa.types.is_float32(times.type):
        is_rounded = pc.greater_equal(pc.abs(times), EXACT_LIMIT[32])
        if any_true(is_rounded):
            found = first_where(times, is_rounded)
            raise InvalidValueError(
                f"found {found:.0f} as float32, which rounds times to 64 or 128 seconds; expected "
                "float64 or integers"
            )
    times = nan_to_null(times.cast(pa.float64()))
    overflows = pc.greater(pc.abs(times), 2.0**62)
    if any_true(overflows):
        raise InvalidValueError(
            f"found {first_where(times, overflows):g}; expected {EXPECTED_TIMESTAMP}"
        )
    return _seconds_from_epoch(pc.floor(times).cast(pa.int64()))


def _seconds_from_epoch(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Seconds from whole numbers of one unit; dates written as numbers are refused."""
    last = pc.max(numbers).as_py()
    if last is not None and pc.min(numbers).as_py() >= _FIRST_SERIAL and last <= _LAST_SERIAL:
        raise InvalidValueError(
            f"found only timestamps such as {last}, which are days since 1900, as spreadsheets "
            f"store dates; expected {EXPECTED_TIMESTAMP}. Give the column the number format "
            "yyyy-mm-dd hh:mm:ss before it is exported"
        )
    for digits, form in ((numbers, "YYYYMMDD"), (pc.divide(numbers, 10**6), "YYYYMMDDhhmmss")):
        if _are_dates(digits):
            raise InvalidValueError(
                f"found only timestamps such as {last}, which are dates written as numbers, "
                f"{form}; expected {EXPECTED_TIMESTAMP}"
            )
    unit = _unit_of(last)
    if unit == "s":
        return numbers
    smaller = LAST_TIME * _UNITS[unit] // 1000
    is_smaller = pc.and_(pc.greater(numbers, 0), pc.less(numbers, smaller))
    if any_true(is_smaller):
        first = first_where(numbers, is_smaller)
        raise InvalidValueError(
            f"found the timestamps {first} and {last}, which are {UNIT_NAMES[_unit_of(first)]} and "
            f"{UNIT_NAMES[unit]} since 1970 (or, in {UNIT_NAMES[_unit_of(first)]}, the year "
            f"{_year(last // _UNITS[_unit_of(first)])}); expected one unit, and blanks for unknown "
            "times"
        )
    return _seconds_from_instants(numbers.cast(pa.timestamp(unit)))


def _unit_of(number: int | None) -> str:
    """The unit, by Arrow's name, in which a number lies before the year 2100.

    Raises:
        InvalidValueError: there is none.
    """
    for unit, factor in _UNITS.items():
        if number is None or number < LAST_TIME * factor:
            return unit
    raise InvalidValueError(
        f"found {number}, which lies beyond the year 2100 even in nanoseconds; expected "
        f"{EXPECTED_TIMESTAMP}"
    )


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
    if pc.all(pc.match_substring_regex(text, _INTEGER)).as_py():
        return _seconds_from_epoch(text.cast(pa.int64()))
    with suppress(pa.ArrowInvalid):
        return _seconds_from_instants(text.cast(pa.timestamp("us")))
    text = pc.replace_substring_regex(stripped(values), _SLASHES, r"\1-\2-\3")
    text = _year_first(text)
    if pc.all(pc.match_substring_regex(text, _INTEGER)).as_py():
        return _seconds_from_epoch(text.cast(pa.int64()))
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


def _year_first(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """ISO 8601 in place of dates such as 31.12.2026 9:05, as German spreadsheets write them."""
    is_dotted = pc.match_substring_regex(text, _DOTTED)
    if not any_true(is_dotted):
        return text
    dates = text
    for form, replacement in (
        (r"^([0-9])\.", r"0\1."),
        (r"^([0-9]{2})\.([0-9])\.", r"\1.0\2."),
        (r"^([0-9]{2})\.([0-9]{2})\.([0-9]{4}),?", r"\3-\2-\1"),
        (r"^([0-9-]{10}) ([0-9]):", r"\1 0\2:"),
    ):
        dates = pc.replace_substring_regex(dates, form, replacement)
    return pc.if_else(is_dotted, dates, text)


def _parse_iso(text: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
    try:
        return text.cast(dtype).cast(pa.int64())
    except pa.ArrowInvalid:
        for value in pc.unique(text.drop_null()):
            try:
                value.cast(dtype)
            except pa.ArrowInvalid as error:
                raise _not_iso(value.as_py()) from error
        raise


def _not_iso(text: str) -> InvalidValueError:
    """What is wrong with a text that is no timestamp, and what to do about it."""
    match = _YEAR_LAST.match(text)
    if not match:
        return InvalidValueError(f"found {text!r}; expected {EXPECTED_TIMESTAMP}")
    first, second = int(match[1]), int(match[2])
    if first > 12 or second > 12:
        order = "day" if first > 12 else "month"
        found = f"a date with the {order} first, which other values of the column do not show"
        day_first = str(first > 12)
    else:
        found = "which may have the day first or the month first"
        day_first = "True or False"
    return InvalidValueError(
        f"found {text!r}, {found}; expected the year first, as in 2026-11-22 03:00:00. Export the "
        "column again in that form: in a spreadsheet with the number format yyyy-mm-dd hh:mm:ss, "
        "in SQL with to_char(column, 'YYYY-MM-DD HH24:MI:SS'), in pandas with "
        f"pd.to_datetime(column, dayfirst={day_first})"
    )


def _require_plausible(seconds: pa.ChunkedArray, times: pa.ChunkedArray) -> None:
    """Refuses placeholders for an unknown time, such as the year 1 or 9999.

    Args:
        seconds: since 1970.
        times: the same as the table has them, for the error.
    """
    bounds = pc.min_max(seconds).as_py()
    for second in (bounds["min"], bounds["max"]):
        if second is not None and not FIRST_TIME <= second < LAST_TIME:
            raise InvalidValueError(
                f"found a timestamp in the year {_year(second)} ({second} seconds since 1970, from "
                f"values read as {describe_timestamps(times)}); "
                "expected times from 1900-01-02 to 2099, and blanks for unknown times"
            )


def _year(seconds: int) -> int:
    return 1970 + int(np.datetime64(seconds, "s").astype("datetime64[Y]").astype(np.int64))


def epoch_unit(times: pa.ChunkedArray) -> str | None:
    """The unit of timestamps that are numbers, or text of digits; None for all others."""
    if is_text(times.type):
        for dtype in (pa.int64(), pa.float64()):
            with suppress(pa.ArrowInvalid):
                times = times.cast(dtype)
                break
    if not (pa.types.is_integer(times.type) or pa.types.is_floating(times.type)):
        return None
    last = pc.max(times).as_py()
    return None if last is None or not np.isfinite(last) or last == 0 else _unit_of(int(last))


def describe_timestamps(times: pa.ChunkedArray) -> str:
    """How timestamps are written, in words."""
    unit = epoch_unit(stripped(times) if is_text(times.type) else times)
    if unit is not None:
        return f"{UNIT_NAMES[unit]} since 1970"
    if is_number(times.type) and not is_text(times.type):
        return f"{UNIT_NAMES['s']} since 1970"  # all 0, or all before 1970
    if not is_text(times.type):
        naive = pa.types.is_timestamp(times.type) and times.type.tz is None
        return f"{times.type}{', read as UTC' if naive else ''}"
    text = stripped(times).drop_null()
    kinds = {
        "numbers": pc.match_substring_regex(text, NUMBER_PATTERN),
        "ISO 8601 with a time zone": pc.match_substring_regex(text, _ZONE),
        "dates such as 31.12.2026, read as UTC": pc.match_substring_regex(text, _DOTTED),
    }
    found = [kind for kind, mask in kinds.items() if any_true(mask)]
    if not pc.all(reduce(pc.or_, kinds.values())).as_py():
        found.append("ISO 8601 without a time zone, read as UTC")
    if found == ["numbers"]:  # all 0, which may have any unit
        return f"{UNIT_NAMES['s']} since 1970"
    return " and ".join(found) or "blank"
