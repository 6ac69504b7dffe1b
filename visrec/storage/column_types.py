"""What the values of a column may be and what they become, the same from CSV as from Parquet.

Blanks are nulls: an empty text, one of white space alone, and NaN. Ids stay as they are otherwise;
of numbers, flags and times in words the white space around them does not count.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT

_NO_VALUE = ["", "na", "n/a", "nan", "nat", "none", "null"]  # where a number, flag or time is due
_TRUE, _FALSE = ["true", "t", "yes", "y", "1", "1.0"], ["false", "f", "no", "n", "0", "0.0"]
_NUMBER = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
_ZONE = r"(:[0-9]{2})([.,][0-9]+)? ?(Z|z|UTC|[+-][0-9]{2}(?::?[0-9]{2})?)$"
_FRACTION = r"(:[0-9]{2})[.,][0-9]+$"
_FLOAT = r"^-?[0-9]+\.0$"
_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}  # below these, floats of so many bits are whole numbers
FIRST_TIME = int(datetime(1900, 1, 2, tzinfo=UTC).timestamp())  # 1900-01-01 stands for no date
LAST_TIME = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_UNITS = {10**3: "milliseconds", 10**6: "microseconds", 10**9: "nanoseconds"}
_FIRST_DATE, _LAST_DATE = 1900_01_01, 2099_12_31  # as the digits of one number


class ValueRefusedError(ValueError):
    """A value of a column cannot be taken: what was found, and what was expected."""


@dataclass(frozen=True)
class Kind:
    """What a column holds.

    Args:
        accepts: whether values of a type can be taken, encodings aside.
        convert: what makes of them a common type; it may raise `ValueRefusedError`, or
            `pa.ArrowInvalid`.
        expected: that in words, for errors.
    """

    accepts: Callable[[pa.DataType], bool]
    convert: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    expected: str

    def takes(self, kind: pa.DataType) -> bool:
        """Whether a column of this type can be taken; of nulls alone there is nothing to refuse."""
        return pa.types.is_null(kind) or self.accepts(plain_type(kind))

    def of(self, values: pa.ChunkedArray, to: pa.DataType) -> pa.ChunkedArray:
        """The values as the declared type."""
        if pa.types.is_null(values.type):
            return values.cast(to)
        return self.convert(plain(values)).cast(to)


# Encodings.


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type without encodings and extensions but UUIDs, whose bytes are not their text."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        return plain_type(kind.storage_type)
    return kind


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values without encodings and extensions."""
    kind = values.type
    if kind == plain_type(kind):
        return values
    if pa.types.is_dictionary(kind):
        return plain(values.cast(kind.value_type))
    if pa.types.is_run_end_encoded(kind):
        chunks = [pc.run_end_decode(chunk) for chunk in values.chunks]
        return plain(pa.chunked_array(chunks, kind.value_type))
    return plain(pa.chunked_array([chunk.storage for chunk in values.chunks], kind.storage_type))


def _is_text(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
    )


def _first(values: pa.ChunkedArray, where: pa.ChunkedArray) -> Any:
    return values.filter(where)[0].as_py()


def _any(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())


# Ids.


def _is_id(kind: pa.DataType) -> bool:
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0)
    other = pa.types.is_floating(kind) or isinstance(kind, pa.UuidType)
    return bool(_is_text(kind) or _is_bytes(kind) or whole or other)


def _ids(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(values.type, pa.UuidType):
        return pa.chunked_array([_uuid_text(chunk) for chunk in values.chunks], TEXT)
    if pa.types.is_floating(values.type):
        values = _whole_numbers(values)
    try:
        text = values.cast(TEXT)
        text.validate(full=True)  # a file may say of any bytes that they are text
    except pa.ArrowInvalid as error:
        raise ValueRefusedError(
            f"found an id that is not UTF-8 ({error}); expected text"
        ) from error
    return pc.if_else(_blank(text), None, text)


def _user_or_item_ids(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same, but for text that was made of such floats, which is another id in another table."""
    text = _ids(values)
    if _is_text(values.type):
        known = text.drop_null()
        floats = pc.match_substring_regex(known[:1], _FLOAT)  # a look at one is enough mostly
        if _any(floats) and pc.all(pc.match_substring_regex(known, _FLOAT)).as_py():
            raise ValueRefusedError(
                f"found ids such as {known[0].as_py()!r} alone, which pandas makes of integers in "
                "a column with nulls; expected integers (astype('Int64')) or other text"
            )
    return text


def _blank(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.or_(pc.equal(text, ""), pc.utf8_is_space(text))


def _whole_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """pandas makes floats of the integers of a column with nulls."""
    most = float(_EXACT[values.type.bit_width])
    values = _without_nan(values.cast(pa.float64()))
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), most))
    if _any(pc.invert(whole)):
        raise ValueRefusedError(
            f"found {_first(values, pc.invert(whole)):.17g} as an id; expected whole numbers below "
            f"{most:,.0f}, which such floats hold exactly, or strings or integers"
        )
    return values.cast(pa.int64())


def _uuid_text(ids: pa.Array) -> pa.Array:
    """The usual form, 8-4-4-4-12 hexadecimal digits."""
    bytes_N16 = np.frombuffer(b"".join(i or bytes(16) for i in ids.storage.to_pylist()), np.uint8)
    digits = np.array([b"%02x" % byte for byte in range(256)], "S2")[bytes_N16].tobytes().decode()
    text = [digits[at : at + 32] for at in range(0, len(digits), 32)]
    dashed = [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in text]
    return pc.if_else(ids.is_valid(), pa.array(dashed, TEXT), pa.scalar(None, TEXT))


# Numbers and flags.


def _is_number(kind: pa.DataType) -> bool:
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(numeric or _is_text(kind))


def _without_nan(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_nan(values), None, values)


def _words(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text where numbers, flags or times are due, null where it says that there is none."""
    text = pc.utf8_trim_whitespace(values.cast(TEXT))
    none = pc.is_in(pc.utf8_lower(text), value_set=pa.array(_NO_VALUE, TEXT))
    return pc.if_else(none, None, text)


def _numbers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if _is_text(values.type):
        values = _words(values)
        other = pc.invert(pc.match_substring_regex(values, _NUMBER))
        if _any(other):
            raise ValueRefusedError(f"found {_first(values, other)!r}; expected numbers, as 4.5")
    numbers = _without_nan(values.cast(pa.float64()))
    if _any(pc.invert(pc.is_finite(numbers))):
        raise ValueRefusedError("found an infinite number; expected finite ones, or none at all")
    return numbers


def _is_flag(kind: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(kind) or _is_number(kind))


def _flags(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_boolean(values.type):
        return values
    if _is_text(values.type):
        text = pc.utf8_lower(_words(values))
        yes, no = (pc.is_in(text, value_set=pa.array(each, TEXT)) for each in (_TRUE, _FALSE))
    else:
        values = text = _numbers(values)
        yes, no = pc.equal(values, 1), pc.equal(values, 0)
    other = pc.and_(pc.is_valid(text), pc.invert(pc.or_(yes, no)))
    if _any(pc.fill_null(other, False)):
        odd = _first(values, pc.fill_null(other, False))
        raise ValueRefusedError(f"found {odd!r}; expected true or false, 1 or 0, yes or no")
    return pc.if_else(pc.is_valid(text), yes, pa.scalar(None, pa.bool_()))


# Times.


def _is_time(kind: pa.DataType) -> bool:
    number = _is_number(kind) and not pa.types.is_float16(kind)  # which ends at 65,504
    return bool(number or pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _times(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole seconds since 1970, rounded down; of zoned times too, which are instants in UTC."""
    if _is_text(times.type):
        seconds = _seconds_of_text(times)
    elif pa.types.is_timestamp(times.type):
        seconds = _seconds_of_instants(times)
    elif pa.types.is_date(times.type):
        seconds = times.cast(pa.timestamp("s")).cast(pa.int64())
    else:
        seconds = _whole_seconds(times)
    _require_plausible(seconds)
    return seconds


def _seconds_of_instants(times: pa.ChunkedArray) -> pa.ChunkedArray:
    unit = times.type.unit
    # Never by the clock of the zone, which shows an hour twice or not at all.
    instants = times.cast(pa.timestamp(unit, "UTC")) if times.type.tz else times
    whole = pc.floor_temporal(instants.cast(pa.timestamp(unit)), unit="second")
    return whole.cast(pa.timestamp("s")).cast(pa.int64())  # a cast rounds towards 1970


def _whole_seconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_integer(times.type):
        return _require_seconds(times.cast(pa.int64()))
    times = _without_nan(times.cast(pa.float64()))
    if _any(pc.greater(pc.abs(times), 2.0**62)):
        raise ValueRefusedError(
            f"found {_first(times, pc.greater(pc.abs(times), 2.0**62)):g}; expected {TIME.expected}"
        )
    return _require_seconds(pc.floor(times).cast(pa.int64()))


def _require_seconds(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Refuses numbers that are times in another unit, or the digits of dates."""
    last = pc.max(numbers).as_py()
    for digits, form in ((numbers, "YYYYMMDD"), (pc.divide(numbers, 10**6), "YYYYMMDDhhmmss")):
        if _are_dates(digits):
            raise ValueRefusedError(
                f"found timestamps such as {last} alone, which are dates written as numbers, "
                f"{form}; expected {TIME.expected}"
            )
    if last is not None and last >= LAST_TIME:
        fits = (unit for each, unit in _UNITS.items() if last // each < LAST_TIME)
        raise ValueRefusedError(
            f"found timestamps up to the year {_year(last)}, such as {last}; "
            f"{next(fits, 'nanoseconds')}? Expected {TIME.expected}"
        )
    return numbers


def _are_dates(numbers: pa.ChunkedArray) -> bool:
    """Whether all are a year, a month and a day in eight digits; of seconds, these are a few days
    in 1970 and never all."""
    bounds = pc.min_max(numbers).as_py()
    if bounds["min"] is None or bounds["min"] < _FIRST_DATE or bounds["max"] > _LAST_DATE:
        return False
    rest = pc.subtract(numbers, pc.multiply(pc.divide(numbers, 10_000), 10_000))
    month = pc.divide(rest, 100)
    day = pc.subtract(rest, pc.multiply(month, 100))
    parts = ((month, 12), (day, 31))
    return all(pc.min(part).as_py() >= 1 and pc.max(part).as_py() <= most for part, most in parts)


def _seconds_of_text(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of numbers, and of ISO 8601 with or without a fraction and a zone; UTC without one."""
    text = values.cast(TEXT)
    # Most columns have one form throughout, which is read five to ten times as fast.
    if pc.all(pc.match_substring_regex(text, r"^[0-9]{1,18}$")).as_py():
        return _require_seconds(text.cast(pa.int64()))
    with suppress(pa.ArrowInvalid):
        return _seconds_of_instants(text.cast(pa.timestamp("us")))
    text = _words(values)
    number, zoned = (pc.match_substring_regex(text, form) for form in (_NUMBER, _ZONE))
    bare = pc.if_else(pc.or_(number, zoned), None, text)
    clock = pc.replace_substring_regex(pc.if_else(zoned, text, None), _ZONE, r"\1\3")
    clock = pc.replace_substring_regex(clock, r"(UTC|z)$", "Z")
    bare = pc.replace_substring_regex(bare, _FRACTION, r"\1")
    return pc.coalesce(
        _whole_seconds(pc.if_else(number, text, None).cast(pa.float64())),
        _parsed(clock, pa.timestamp("s", "UTC")),
        _parsed(bare, pa.timestamp("s")),
    )


def _parsed(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return text.cast(kind).cast(pa.int64())
    except pa.ArrowInvalid:
        for value in pc.unique(text.drop_null()):
            try:
                value.cast(kind)
            except pa.ArrowInvalid as error:
                raise ValueRefusedError(
                    f"found {value.as_py()!r}; expected {TIME.expected}"
                ) from error
        raise


def _year(seconds: int) -> int:
    return 1970 + int(np.datetime64(seconds, "s").astype("datetime64[Y]").astype(np.int64))


def _require_plausible(seconds: pa.ChunkedArray) -> None:
    """Refuses what stands for no time."""
    bounds = pc.min_max(seconds).as_py()
    for odd in (bounds["min"], bounds["max"]):
        if odd is not None and not FIRST_TIME <= odd < LAST_TIME:
            raise ValueRefusedError(
                f"found a timestamp in the year {_year(odd)} ({odd} seconds since 1970); expected "
                "times from 1900-01-02 to 2099, and blanks where a time is not known"
            )


# Pictures and features.


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # Hugging Face: {bytes, path}
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_bytes(kind.field(at).type)
    return _is_bytes(kind)


def _pictures(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind))


def _is_vector(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, _is_view)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_floating(kind.value_type))


def _vectors(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _is_view(values.type):
        return values
    return pa.chunked_array([_as_lists(chunk) for chunk in values.chunks])


def _as_lists(views: pa.Array) -> pa.Array:
    """Arrow casts no list view to a list."""
    lengths = pc.fill_null(pc.list_value_length(views), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    mask = views.is_null() if views.null_count else None
    return pa.LargeListArray.from_arrays(offsets, pc.list_flatten(views), mask=mask)


ID = Kind(_is_id, _user_or_item_ids, "strings or integers")
NAME = Kind(_is_id, _ids, "strings or integers")  # of an artist, a category, a place
NUMBER = Kind(_is_number, _numbers, "numbers")
FLAG = Kind(_is_flag, _flags, "booleans, 1 and 0, or true and false in words")
TIME = Kind(
    _is_time, _times, "seconds since 1970, a timestamp type, or ISO 8601 as 2026-11-22T03:00:00Z"
)
PICTURE = Kind(_is_picture, _pictures, "the bytes of a picture")
VECTOR = Kind(_is_vector, _vectors, "lists of float16, float32 or float64")
