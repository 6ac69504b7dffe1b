"""Declared columns of all tables that visrec reads, and schemas of those that it writes.

Tables that users write are declared as tuples of `Column`, which accept many types; `conform`
checks and casts them. Tables that visrec writes have one exact Arrow schema.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from visrec.errors import SchemaError
from visrec.ids import TEXT
from visrec.storage.arrow_values import InvalidValueError
from visrec.storage.column_types import (
    FLAG,
    ID,
    NAME,
    NUMBER,
    PICTURE,
    TIMESTAMP,
    VECTOR,
    ColumnType,
)

_ID = pa.string()  # in files; `TEXT` once they are read
NOT_UTF_8 = "\ufffd"  # in a name, where a file has other bytes than text
_MAX_SHOWN_NAMES = 20  # in an error; some feature tables have a column for each dimension


@dataclass(frozen=True, kw_only=True)
class Column:
    """One declared column.

    Attributes:
        name: the name of the column.
        column_type: which values it may contain.
        dtype: Arrow type that the values are cast to.
        required: whether the table must have the column, with a value in every row.
        nullable: whether a required column may contain nulls, because the reader of the table
            drops and counts those rows.
    """

    name: str
    column_type: ColumnType
    dtype: pa.DataType
    required: bool = True
    nullable: bool = False


def label_column(name: str) -> Column:
    """An optional column that the configuration names, such as the one of `--rules.cap_by`."""
    return _name(name)


def _id(name: str, *, required: bool = True, nullable: bool = False) -> Column:
    return Column(name=name, column_type=ID, dtype=TEXT, required=required, nullable=nullable)


def _name(name: str) -> Column:
    return Column(name=name, column_type=NAME, dtype=TEXT, required=False)


def _flag(name: str) -> Column:
    return Column(name=name, column_type=FLAG, dtype=pa.bool_(), required=False)


def _number(name: str) -> Column:
    return Column(name=name, column_type=NUMBER, dtype=pa.float64(), required=False)


INTERACTIONS = (
    _id("user_id", nullable=True),
    _id("item_id", nullable=True),
    Column(name="timestamp", column_type=TIMESTAMP, dtype=pa.int64(), nullable=True),
    _number("rating"),
    _number("weight"),
    _flag("evaluation"),
)
AVAILABLE, STOCK = _flag("available"), _number("stock")
ITEMS = (
    _id("item_id"),
    _name("artist_id"),
    _name("category"),
    AVAILABLE,
    STOCK,
    _name("title"),
)
TEXTS = (_id("item_id"), _name("title"), _name("description"))  # of the items table
BLOCKED = (_id("item_id"), _id("user_id", required=False))
USERS = (_id("user_id"),)
USER_IDS = (_id("user_id", required=False),)  # of any table
PICTURES = (
    _id("item_id"),
    Column(name="image", column_type=PICTURE, dtype=pa.large_binary(), required=False),
    _name("uri"),
    _name("view"),
)
FEATURES = (
    _id("item_id"),
    Column(name="feature", column_type=VECTOR, dtype=pa.list_(pa.float64())),
)
# Interactions with their nulls, sorted in partitions; other tools read their codes as strings.
_CODE = pa.dictionary(pa.int32(), pa.string())
PREPARED_INTERACTIONS = pa.schema(
    [
        pa.field("user_id", _CODE),
        pa.field("item_id", _CODE),
        pa.field("timestamp", pa.int64()),
        pa.field("rating", pa.float64()),
        pa.field("evaluation", pa.bool_()),
    ]
)
# Interactions that training held out, in the directory of the model.
HELD_OUT = pa.schema([pa.field("user_id", _ID), pa.field("item_id", _ID)])

RECOMMENDED = pa.struct(
    [
        pa.field("item_id", _ID, nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("because_item_id", _ID),
    ]
)
RECOMMENDATIONS = pa.schema(
    [
        pa.field("user_id", _ID, nullable=False),
        pa.field("items", pa.list_(RECOMMENDED), nullable=False),
        pa.field("cold", pa.bool_(), nullable=False),
    ]
)
RECOMMENDATIONS_LONG = pa.schema(
    [
        pa.field("user_id", _ID, nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        *RECOMMENDED,
    ]
)
SIMILAR_ITEMS = pa.schema(
    [
        pa.field("item_id", _ID, nullable=False),
        pa.field("items", pa.list_(pa.struct(list(RECOMMENDED)[:2])), nullable=False),
    ]
)
SIMILAR_ITEMS_LONG = pa.schema(
    [
        pa.field("item_id", _ID, nullable=False),
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("similar_item_id", _ID, nullable=False),
        pa.field("score", pa.float32(), nullable=False),
    ]
)
REJECTED = pa.schema(
    [
        pa.field("item_id", _ID, nullable=False),
        pa.field("view", _ID),
        pa.field("reason", _ID, nullable=False),
        pa.field("detail", _ID, nullable=False),
        pa.field("source", _ID),
    ]
)
# What is known of a picture at an http address, whose `address` is a hash: it may hold a password.
FETCHED = pa.schema(
    [
        pa.field("address", _ID, nullable=False),
        pa.field("etag", _ID),
        pa.field("last_modified", _ID),
        pa.field("digest", _ID, nullable=False),
        pa.field("reason", _ID, nullable=False),
        pa.field("detail", _ID, nullable=False),
    ]
)


def features_schema(dim: int) -> pa.Schema:
    """The schema of a features table.

    Its column `source` is a fingerprint of the picture file, which shows whether it has changed.

    Args:
        dim: D, dimensions of a feature.
    """
    return pa.schema(
        [
            pa.field("item_id", _ID, nullable=False),
            pa.field("feature", pa.list_(pa.field("element", pa.float16()), dim), nullable=False),
            pa.field("digest", _ID, nullable=False),
            pa.field("source", _ID),
        ]
    )


def check_columns(schema: pa.Schema, columns: Sequence[Column], where: str) -> None:
    """Refuses a table that does not have the declared columns.

    Args:
        schema: the table's schema.
        columns: the declared columns.
        where: location of the table and the key that names it, for the error.

    Raises:
        SchemaError: a required column is missing, a column occurs twice, or its type is not
            supported.
    """
    missing = [c.name for c in columns if c.required and c.name not in schema.names]
    if missing:
        expected = ", ".join(c.name if c.required else f"{c.name} (optional)" for c in columns)
        raise SchemaError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. Found "
            f"{describe_columns(schema)}; expected {expected}.",
            column=missing[0],
        )
    for column in columns:
        indices = schema.get_all_field_indices(column.name)
        if len(indices) > 1:
            raise SchemaError(
                f"{where} has {len(indices)} columns named {column.name}; expected one.",
                column=column.name,
            )
        if indices and not column.column_type.supports(schema.field(indices[0]).type):
            raise SchemaError(
                f"{where}: the column {column.name} has the type {schema.field(indices[0]).type}; "
                f"expected {column.column_type.expected}.",
                column=column.name,
            )


def describe_columns(schema: pa.Schema) -> str:
    """The names of a table's columns as text, with a count of those beyond the first few."""
    names, more = schema.names[:_MAX_SHOWN_NAMES], len(schema.names) - _MAX_SHOWN_NAMES
    text = (", ".join(names) or "none") + (f" and {more:,} more" if more > 0 else "")
    if any(NOT_UTF_8 in name for name in schema.names):
        text += " (not all in UTF-8: save the file as UTF-8, in Excel as CSV UTF-8)"
    return text


def conform(table: pa.Table, columns: Sequence[Column], where: str) -> pa.Table:
    """The declared columns that a table has, cast to their declared types, with nulls for blanks.

    Raises:
        SchemaError: as `cast_columns`, or a required value is null.
    """
    conformed = cast_columns(table, columns, where)
    require_no_nulls(conformed, columns, where)
    return conformed


def cast_columns(table: pa.Table, columns: Sequence[Column], where: str) -> pa.Table:
    """`conform` for tables whose nulls are checked elsewhere.

    Raises:
        SchemaError: as `check_columns`, or a value is invalid.
    """
    check_columns(table.schema, columns, where)
    present = [column for column in columns if column.name in table.schema.names]
    return pa.table({column.name: _cast(table[column.name], column, where) for column in present})


def _cast(values: pa.ChunkedArray, column: Column, where: str) -> pa.ChunkedArray:
    try:
        return column.column_type.cast(values, column.dtype)
    except (pa.ArrowInvalid, InvalidValueError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        message = f"{where}: the column {column.name}: {text}."
        raise SchemaError(message, column=column.name) from error


def require_no_nulls(table: pa.Table, columns: Sequence[Column], where: str) -> None:
    """Refuses nulls in columns that must have a value in every row.

    Raises:
        SchemaError: a value is null; the message shows an example.
    """
    for column in columns:
        if not column.required or column.nullable or not table[column.name].null_count:
            continue
        example = table.filter(table[column.name].is_null()).slice(0, 1).to_pylist()[0]
        shown = ", ".join(f"{name} {value!r:.60}" for name, value in example.items())
        raise SchemaError(
            f"{where}: {table[column.name].null_count} of {len(table)} values of the column "
            f"{column.name} are null or blank, as in the row {shown}; expected none.",
            column=column.name,
        )
