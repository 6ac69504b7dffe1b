"""The columns of every table that crosses a stage, and the one check they all pass through."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import SchemaError

_ID = pa.string()


def _is_id(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or (pa.types.is_dictionary(kind) and _is_id(kind.value_type))
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_time(kind: pa.DataType) -> bool:
    return _is_number(kind) or bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _is_vector(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_floating(kind.value_type))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True, kw_only=True)
class Column:
    """One declared column.

    Args:
        name: its name.
        accepts: whether a type that was found can be taken.
        expected: that in words, for the error.
        to: the type it is cast to.
        required: whether the table must have it.
    """

    name: str
    accepts: Callable[[pa.DataType], bool]
    expected: str
    to: pa.DataType
    required: bool = True


def an_id(name: str) -> Column:
    """A column of a name that a user chose: strings or integers, some of which may be null."""
    return _id(name, required=False)


def _id(name: str, *, required: bool = True) -> Column:
    return Column(
        name=name, accepts=_is_id, expected="strings or integers", to=_ID, required=required
    )


def _flag(name: str) -> Column:
    return Column(
        name=name, accepts=pa.types.is_boolean, expected="booleans", to=pa.bool_(), required=False
    )


def _number(name: str) -> Column:
    return Column(
        name=name, accepts=_is_number, expected="numbers", to=pa.float64(), required=False
    )


INTERACTIONS = (
    _id("user_id"),
    _id("item_id"),
    Column(
        name="timestamp",
        accepts=_is_time,
        expected="seconds since 1970 or a timestamp type",
        to=pa.int64(),
    ),
    _number("rating"),
    _number("weight"),
    _flag("evaluation"),
)
ITEMS = (
    _id("item_id"),
    _id("artist_id", required=False),
    _id("category", required=False),
    _flag("available"),
    _number("stock"),
    _id("title", required=False),
)
BLOCKED = (_id("item_id"), _id("user_id", required=False))
USERS = (_id("user_id"),)
PICTURES = (
    _id("item_id"),
    Column(
        name="image",
        accepts=_is_bytes,
        expected="the bytes of a picture",
        to=pa.large_binary(),
        required=False,
    ),
    _id("uri", required=False),
)
FEATURES = (
    _id("item_id"),
    Column(
        name="feature",
        accepts=_is_vector,
        expected="lists of float16, float32 or float64",
        to=pa.list_(pa.float64()),
    ),
)

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
        pa.field("reason", _ID, nullable=False),
        pa.field("detail", _ID, nullable=False),
        pa.field("source", _ID),
    ]
)


def features_schema(dim: int) -> pa.Schema:
    """The features table: `source` marks the file a feature came from, to see that it is unchanged.

    Args:
        dim: D, numbers a feature.
    """
    return pa.schema(
        [
            pa.field("item_id", _ID, nullable=False),
            pa.field("feature", pa.list_(pa.field("element", pa.float16()), dim), nullable=False),
            pa.field("digest", _ID, nullable=False),
            pa.field("source", _ID),
        ]
    )


def check(found: pa.Schema, columns: Sequence[Column], where: str) -> None:
    """Refuses a table whose columns are not what is declared.

    Args:
        found: the table's schema.
        columns: what is declared.
        where: the table's place and the key that named it, for the error.

    Raises:
        SchemaError: a required column is missing, or one has a type that cannot be taken.
    """
    names = set(found.names)
    missing = [column.name for column in columns if column.required and column.name not in names]
    if missing:
        raise SchemaError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. Found "
            f"{', '.join(found.names) or 'none'}; expected "
            + ", ".join(c.name if c.required else f"{c.name} (optional)" for c in columns)
            + "."
        )
    for column in columns:
        if column.name not in names:
            continue
        kind = found.field(column.name).type
        if not pa.types.is_null(kind) and not column.accepts(kind):  # null: no value to judge by
            raise SchemaError(
                f"{where}: the column {column.name} has the type {kind}; expected "
                f"{column.expected}."
            )


def conform(table: pa.Table, columns: Sequence[Column], where: str) -> pa.Table:
    """The declared columns that a table has, cast to their declared types.

    Raises:
        SchemaError: as `check`, or a required value is null, or a value cannot be cast.
    """
    check(table.schema, columns, where)
    taken: Mapping[str, pa.ChunkedArray] = {
        column.name: _cast(table[column.name], column, where)
        for column in columns
        if column.name in table.column_names
    }
    return pa.table(dict(taken))


def _cast(values: pa.ChunkedArray, column: Column, where: str) -> pa.ChunkedArray:
    try:
        cast = _seconds(values) if column.to == pa.int64() else values.cast(column.to)
    except pa.ArrowInvalid as error:
        raise SchemaError(f"{where}: the column {column.name}: {error}") from error
    # Now, since the nulls of a dictionary are seen only in what it stands for.
    if column.required and cast.null_count:
        raise SchemaError(
            f"{where}: {cast.null_count} of {len(cast)} values of the column {column.name} are "
            "null; expected none."
        )
    return cast


def _seconds(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whole seconds since 1970, rounded down."""
    if pa.types.is_floating(times.type):
        return pc.floor(times).cast(pa.int64())
    if pa.types.is_timestamp(times.type):
        times = pc.floor_temporal(times, unit="second")  # a cast rounds towards 1970
    if pa.types.is_temporal(times.type):
        times = times.cast(pa.timestamp("s"))
    return times.cast(pa.int64())
