"""The columns of every table that crosses a stage, and the one check they all pass through."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from visrec.errors import SchemaError
from visrec.ids import TEXT
from visrec.storage.column_types import (
    FLAG,
    ID,
    NAME,
    NUMBER,
    PICTURE,
    TIME,
    VECTOR,
    Kind,
    ValueRefusedError,
)

_ID = pa.string()  # in files; what is read becomes `TEXT`
_SHOWN_NAMES = 20  # in an error; a table of features may have a column a number


@dataclass(frozen=True, kw_only=True)
class Column:
    """One declared column.

    Args:
        name: its name.
        kind: what it holds.
        to: the type it becomes.
        required: whether the table must have it, with a value in every row.
        nullable: whether rows of a required column may lack a value, since who reads the table
            leaves them out and counts them.
    """

    name: str
    kind: Kind
    to: pa.DataType
    required: bool = True
    nullable: bool = False


def an_id(name: str) -> Column:
    """A column of a name that a user chose: ids, some of which may be null."""
    return _name(name)


def _id(name: str, *, required: bool = True, nullable: bool = False) -> Column:
    return Column(name=name, kind=ID, to=TEXT, required=required, nullable=nullable)


def _name(name: str) -> Column:
    return Column(name=name, kind=NAME, to=TEXT, required=False)


def _flag(name: str) -> Column:
    return Column(name=name, kind=FLAG, to=pa.bool_(), required=False)


def _number(name: str) -> Column:
    return Column(name=name, kind=NUMBER, to=pa.float64(), required=False)


INTERACTIONS = (
    _id("user_id", nullable=True),
    _id("item_id", nullable=True),
    Column(name="timestamp", kind=TIME, to=pa.int64(), nullable=True),
    _number("rating"),
    _number("weight"),
    _flag("evaluation"),
)
ITEMS = (
    _id("item_id"),
    _name("artist_id"),
    _name("category"),
    _flag("available"),
    _number("stock"),
    _name("title"),
)
BLOCKED = (_id("item_id"), _id("user_id", required=False))
USERS = (_id("user_id"),)
PICTURES = (
    _id("item_id"),
    Column(name="image", kind=PICTURE, to=pa.large_binary(), required=False),
    _name("uri"),
)
FEATURES = (
    _id("item_id"),
    Column(name="feature", kind=VECTOR, to=pa.list_(pa.float64())),
)
# The rows that a model's training held out; they lie in the model's directory.
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
        SchemaError: a required column is missing, one is there twice, or one has a type that cannot
            be taken.
    """
    missing = [c.name for c in columns if c.required and c.name not in found.names]
    if missing:
        raise SchemaError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}. Found "
            f"{names_of(found)}; expected "
            + ", ".join(c.name if c.required else f"{c.name} (optional)" for c in columns)
            + "."
        )
    for column in columns:
        places = found.get_all_field_indices(column.name)
        if len(places) > 1:
            raise SchemaError(
                f"{where} has {len(places)} columns of the name {column.name}; expected one."
            )
        if places and not column.kind.takes(found.field(places[0]).type):
            raise SchemaError(
                f"{where}: the column {column.name} has the type {found.field(places[0]).type}; "
                f"expected {column.kind.expected}."
            )


def names_of(schema: pa.Schema) -> str:
    """The columns of a table in words, as many as one can read."""
    names, more = schema.names[:_SHOWN_NAMES], len(schema.names) - _SHOWN_NAMES
    return (", ".join(names) or "none") + (f" and {more:,} more" if more > 0 else "")


def conform(table: pa.Table, columns: Sequence[Column], where: str) -> pa.Table:
    """The declared columns that a table has, cast to their declared types, blanks as nulls.

    Raises:
        SchemaError: as `check`, or a required value is null, or a value cannot be cast.
    """
    taken = cast(table, columns, where)
    require_values(taken, columns, where)
    return taken


def cast(table: pa.Table, columns: Sequence[Column], where: str) -> pa.Table:
    """The same, whatever is null.

    Raises:
        SchemaError: as `check`, or a value cannot be cast.
    """
    check(table.schema, columns, where)
    present = [column for column in columns if column.name in table.schema.names]
    return pa.table({column.name: _cast(table[column.name], column, where) for column in present})


def _cast(values: pa.ChunkedArray, column: Column, where: str) -> pa.ChunkedArray:
    try:
        return column.kind.of(values, column.to)
    except (pa.ArrowInvalid, ValueRefusedError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise SchemaError(f"{where}: the column {column.name}: {text}.") from error


def require_values(table: pa.Table, columns: Sequence[Column], where: str) -> None:
    """Refuses a table whose rows lack what each of them must have.

    Raises:
        SchemaError: a value is null; an example is named.
    """
    for column in columns:
        if not column.required or column.nullable or not table[column.name].null_count:
            continue
        example = table.filter(table[column.name].is_null()).slice(0, 1).to_pylist()[0]
        shown = ", ".join(f"{name} {value!r:.60}" for name, value in example.items())
        raise SchemaError(
            f"{where}: {table[column.name].null_count} of {len(table)} values of the column "
            f"{column.name} are null or blank, as in the row {shown}; expected none."
        )
