"""Which values a column may contain and how they are parsed, the same for CSV and Parquet.

Blanks are nulls: empty text, white space and NaN. Other ids are kept as they are; text that holds a
number, a flag or a timestamp may have white space around it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT
from visrec.storage.arrow_values import (
    EXACT_LIMIT,
    NULL_WORDS,
    NUMBER_PATTERN,
    InvalidValueError,
    any_true,
    decoded,
    decoded_type,
    first_where,
    is_bytes,
    is_number,
    is_text,
    nan_to_null,
    stripped,
)
from visrec.storage.timestamps import EXPECTED_TIMESTAMP, is_timestamp, parse_timestamps

_TRUE = ["true", "t", "yes", "y", "1", "1.0", "ja", "j", "wahr"]
_FALSE = ["false", "f", "no", "n", "0", "0.0", "nein", "falsch"]
# Three digits after a comma may be thousands, unless nothing but a zero is before it.
_DECIMAL_COMMA = r"^[+-]?([0-9]+,([0-9]{1,2}|[0-9]{4,})|0,[0-9]+)$"
_FLOAT = r"^-?[0-9]+\.0$"
_ROUNDED = r"^-?[0-9]([.,][0-9]+)?[eE]\+[0-9]{2,3}$"


@dataclass(frozen=True)
class ColumnType:
    """What a column contains.

    Attributes:
        accepts: whether values of an Arrow type, encodings aside, can be parsed.
        parse: turns values of any accepted type into one type. It may raise `InvalidValueError` or
            `pa.ArrowInvalid`.
        expected: the accepted values in words, for errors.
    """

    accepts: Callable[[pa.DataType], bool]
    parse: Callable[[pa.ChunkedArray], pa.ChunkedArray]
    expected: str

    def supports(self, dtype: pa.DataType) -> bool:
        """Whether a column of this Arrow type can be read; a column of nulls always can."""
        return pa.types.is_null(dtype) or self.accepts(decoded_type(dtype))

    def cast(self, values: pa.ChunkedArray, dtype: pa.DataType) -> pa.ChunkedArray:
        """The parsed values as the Arrow type `dtype`.

        Raises:
            InvalidValueError: a value is not one of the expected ones.
            pa.ArrowInvalid: Arrow cannot cast a value.
        """
        if pa.types.is_null(values.type):
            return values.cast(dtype)
        return self.parse(decoded(values)).cast(dtype)


# Ids.


def _is_id(dtype: pa.DataType) -> bool:
    integer = pa.types.is_integer(dtype) or (pa.types.is_decimal(dtype) and dtype.scale == 0)
    other = pa.types.is_floating(dtype) or isinstance(dtype, pa.UuidType)
    return bool(is_text(dtype) or is_bytes(dtype) or integer or other)


def _parse_names(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(values.type, pa.UuidType):
        return pa.chunked_array([_uuid_text(chunk) for chunk in values.chunks], TEXT)
    if pa.types.is_floating(values.type):
        values = _integers_from_floats(values)
    try:
        text = values.cast(TEXT)
        text.validate(full=True)  # a file may declare any bytes as text
    except pa.ArrowInvalid as error:
        raise InvalidValueError(
            f"found an id that is not UTF-8 ({error}); expected text"
        ) from error
    return pc.if_else(_blank(text), None, text)


def _parse_ids(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Refuses integers that pandas has turned into text such as 7.0, since another table has 7, and
    those of which a spreadsheet has kept the first digits alone."""
    text = _parse_names(values)
    if is_text(values.type):
        _refuse_rounded(text)
        _refuse_floats(text)
    return text


def _refuse_rounded(text: pa.ChunkedArray) -> None:
    if not any_true(pc.match_substring(text, "+")):  # much faster than the pattern
        return
    rounded = pc.match_substring_regex(text, _ROUNDED)
    if any_true(rounded):
        raise InvalidValueError(
            f"found the id {first_where(text, rounded)!r}, as spreadsheets write long numbers, "
            "of which digits are lost; expected all digits. Give the column the number format "
            "Text before the numbers are entered, and export it again"
        )


def _refuse_floats(text: pa.ChunkedArray) -> None:
    valid = text.drop_null()
    # Words such as nan are text made of a null. The first other value usually decides.
    first = next((found for one in valid if (found := one.as_py()) not in NULL_WORDS), "")
    if not re.fullmatch(_FLOAT, first):
        return
    is_word = pc.is_in(valid, value_set=pa.array(NULL_WORDS, TEXT))
    if pc.all(pc.or_(is_word, pc.match_substring_regex(valid, _FLOAT))).as_py():
        raise InvalidValueError(
            f"found only ids such as {first!r}, which pandas makes from integers in "
            "a column with nulls; expected integers (astype('Int64')) or other text"
        )


def _blank(text: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.or_(pc.equal(text, ""), pc.utf8_is_space(text))


def _integers_from_floats(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids that were integers until pandas made floats of a column with nulls."""
    limit = float(EXACT_LIMIT[values.type.bit_width])
    values = nan_to_null(values.cast(pa.float64()))
    exact = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), limit))
    if any_true(pc.invert(exact)):
        found = first_where(values, pc.invert(exact))
        raise InvalidValueError(
            f"found {found:.17g} as an id; expected whole numbers below {limit:,.0f}, which such "
            "floats hold exactly, or strings or integers"
        )
    return values.cast(pa.int64())


def _uuid_text(ids: pa.Array) -> pa.Array:
    """UUIDs in their usual form, 8-4-4-4-12 hexadecimal digits."""
    bytes_N16 = np.frombuffer(b"".join(i or bytes(16) for i in ids.storage.to_pylist()), np.uint8)
    digits = np.array([b"%02x" % byte for byte in range(256)], "S2")[bytes_N16].tobytes().decode()
    text = [digits[start : start + 32] for start in range(0, len(digits), 32)]
    dashed = [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in text]
    return pc.if_else(ids.is_valid(), pa.array(dashed, TEXT), pa.scalar(None, TEXT))


# Numbers and flags.


def _parse_numbers(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_text(values.type):
        values = _with_decimal_points(stripped(values))
        invalid = pc.invert(pc.match_substring_regex(values, NUMBER_PATTERN))
        if any_true(invalid):
            found = first_where(values, invalid)
            thousands = ", without separators of thousands" if "," in found else ""
            raise InvalidValueError(
                f"found {found!r}; expected numbers such as 4.5 or 4,5{thousands}"
            )
    numbers = nan_to_null(values.cast(pa.float64()))
    if any_true(pc.invert(pc.is_finite(numbers))):
        raise InvalidValueError("found an infinite number; expected finite numbers or nulls")
    return numbers


def _with_decimal_points(text: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers with a decimal comma, as spreadsheets of half of Europe write them, with a point."""
    has_comma = pc.match_substring_regex(text, _DECIMAL_COMMA)
    if not any_true(has_comma):
        return text
    return pc.if_else(has_comma, pc.replace_substring(text, ",", "."), text)


def _is_flag(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_boolean(dtype) or is_number(dtype))


def _parse_flags(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_boolean(values.type):
        return values
    if is_text(values.type):
        text = pc.utf8_lower(stripped(values))
        yes, no = (pc.is_in(text, value_set=pa.array(words, TEXT)) for words in (_TRUE, _FALSE))
    else:
        values = text = _parse_numbers(values)
        yes, no = pc.equal(values, 1), pc.equal(values, 0)
    invalid = pc.fill_null(pc.and_(pc.is_valid(text), pc.invert(pc.or_(yes, no))), False)
    if any_true(invalid):
        found = first_where(values, invalid)
        raise InvalidValueError(f"found {found!r}; expected true or false, 1 or 0, yes or no")
    return pc.if_else(pc.is_valid(text), yes, pa.scalar(None, pa.bool_()))


# Pictures and features.


def _is_picture(dtype: pa.DataType) -> bool:
    if pa.types.is_struct(dtype):  # Hugging Face: {bytes, path}
        index = dtype.get_field_index("bytes")
        return index >= 0 and is_bytes(dtype.field(index).type)
    return is_bytes(dtype)


def _parse_pictures(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values


def _is_list_view(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_list_view(dtype) or pa.types.is_large_list_view(dtype))


def _is_vector(dtype: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, _is_list_view)
    return any(is_list(dtype) for is_list in lists) and bool(pa.types.is_floating(dtype.value_type))


def _parse_vectors(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _is_list_view(values.type):
        return values
    return pa.chunked_array([_lists_from_views(chunk) for chunk in values.chunks])


def _lists_from_views(views: pa.Array) -> pa.Array:
    """Lists from list views, which Arrow cannot cast."""
    lengths = pc.fill_null(pc.list_value_length(views), 0).to_numpy()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    mask = views.is_null() if views.null_count else None
    return pa.LargeListArray.from_arrays(offsets, pc.list_flatten(views), mask=mask)


ID = ColumnType(_is_id, _parse_ids, "strings or integers")  # of users and items
NAME = ColumnType(_is_id, _parse_names, "strings or integers")  # of artists, categories, URIs
NUMBER = ColumnType(is_number, _parse_numbers, "numbers")
FLAG = ColumnType(_is_flag, _parse_flags, "booleans, 1 and 0, or the words true and false")
TIMESTAMP = ColumnType(is_timestamp, parse_timestamps, EXPECTED_TIMESTAMP)
PICTURE = ColumnType(_is_picture, _parse_pictures, "the bytes of a picture")
VECTOR = ColumnType(_is_vector, _parse_vectors, "lists of float16, float32 or float64")
