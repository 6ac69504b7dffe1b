"""Arrow columns whose type is known only at run time: encodings, text, masks."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visrec.ids import TEXT

EXACT_LIMIT = {16: 2**11, 32: 2**24, 64: 2**53}  # by bit width: smaller integers are exact
NUMBER_PATTERN = r"^[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"
# As SQL clients, Hive, pandas, NumPy, R and spreadsheets write nulls.
NULL_WORDS = ["", "NULL", "null", "\\N", "NA", "<NA>", "N/A", "n/a", "#N/A"]
NULL_WORDS += ["NaN", "nan", "NaT", "None"]
_LOWER_NULL_WORDS = pa.array(sorted({word.lower() for word in NULL_WORDS}), TEXT)


class InvalidValueError(ValueError):
    """A column contains an invalid value; the message says what was found and expected."""


def decoded_type(dtype: pa.DataType) -> pa.DataType:
    """The type without dictionary and run-end encodings and without extension types, except UUIDs,
    whose storage is not their text."""
    if pa.types.is_dictionary(dtype) or pa.types.is_run_end_encoded(dtype):
        return decoded_type(dtype.value_type)
    if isinstance(dtype, pa.BaseExtensionType) and not isinstance(dtype, pa.UuidType):
        return decoded_type(dtype.storage_type)
    return dtype


def decoded(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as their `decoded_type`."""
    dtype = values.type
    if dtype == decoded_type(dtype):
        return values
    if pa.types.is_dictionary(dtype):
        return decoded(values.cast(dtype.value_type))
    if pa.types.is_run_end_encoded(dtype):
        chunks = [pc.run_end_decode(chunk) for chunk in values.chunks]
        return decoded(pa.chunked_array(chunks, dtype.value_type))
    return decoded(pa.chunked_array([chunk.storage for chunk in values.chunks], dtype.storage_type))


def is_text(dtype: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(dtype)
        or pa.types.is_large_string(dtype)
        or pa.types.is_string_view(dtype)
    )


def is_bytes(dtype: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(dtype)
        or pa.types.is_large_binary(dtype)
        or pa.types.is_binary_view(dtype)
    )


def is_number(dtype: pa.DataType) -> bool:
    numeric = (
        pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_decimal(dtype)
    )
    return bool(numeric or is_text(dtype))


def first_where(values: pa.ChunkedArray, mask: pa.ChunkedArray) -> Any:
    """The first value where the mask is true, of whatever type the values have."""
    return values.filter(mask)[0].as_py()


def any_true(mask: pa.ChunkedArray) -> bool:
    return bool(pc.any(mask).as_py())


def nan_to_null(values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.is_nan(values), None, values)


def stripped(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text without the white space around it; null where it is one of the words for null."""
    text = pc.utf8_trim_whitespace(values.cast(TEXT))
    is_null = pc.is_in(pc.utf8_lower(text), value_set=_LOWER_NULL_WORDS)
    return pc.if_else(is_null, None, text)
