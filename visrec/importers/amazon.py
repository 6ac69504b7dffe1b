"""Amazon Reviews as JSON lines, of 2018 and of 2023: https://amazon-reviews-2023.github.io

Reviews are interactions, their stars are ratings. Where the metadata of the products lie beside
them (`meta_Books.jsonl.gz` beside `Books.jsonl.gz`), titles, categories and the address of each
product's first picture are taken over. One import reads one category.
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.importers.base import KEY, PICTURE, Imported, Source, own_name
from visrec.storage.schemas import INTERACTIONS, ITEMS, cast_columns

_JSON = r".*\.jsonl?(\.gz)?"
# Around the category in the names of all editions, as in reviews_Books_5.json.gz.
_AFFIXES = re.compile(r"^(meta|reviews)_?|(_[0-9]+)?\.jsonl?(\.gz)?$", re.IGNORECASE)
_USER_AND_ITEM = [column for column in INTERACTIONS if column.name in ("user_id", "item_id")]
# By edition: the fields of user, item, time (seconds or milliseconds), stars.
_EDITIONS = {
    "2023": (("user_id", "parent_asin", "timestamp", "rating"), 1000),
    "2018": (("reviewerID", "asin", "unixReviewTime", "overall"), 1),
}
_TYPES = (TEXT, TEXT, pa.int64(), pa.float64())
_IMAGE_2023 = pa.struct([("large", TEXT), ("hi_res", TEXT), ("thumb", TEXT)])
_META = pa.schema(
    [
        ("parent_asin", TEXT),
        ("asin", TEXT),
        ("title", TEXT),
        ("main_category", TEXT),
        ("main_cat", TEXT),
        ("images", pa.list_(_IMAGE_2023)),
        ("imageURLHighRes", pa.list_(TEXT)),
        ("imUrl", TEXT),
    ]
)


def read(source: Source) -> Imported:
    """The reviews, and products with pictures where there is a file `meta_*`.

    Raises:
        InputError: there are no reviews of either edition, or files of several categories.
    """
    reviews = source.require_all(rf"(?!meta){_JSON}", "reviews as .jsonl or .json (.gz too)")
    meta = source.find_all(rf"meta{_JSON}")
    if len(reviews) > 1 or len(meta) > 1 or len({*map(_category, reviews + meta)}) > 1:
        raise source.refuse(
            reviews + meta,
            "one file of reviews, such as Books.jsonl.gz, and at most one of the metadata of the "
            "same category, such as meta_Books.jsonl.gz",
        )
    edition = _edition(source, reviews[0])
    return Imported(
        _reviews(source, reviews[0], edition),
        _products(source, meta[0]) if meta else (),
        notes=(f"Reviews of the edition of {edition}.",),
    )


def _category(name: str) -> str:
    return _AFFIXES.sub("", own_name(name)).lower()


def _edition(source: Source, name: str) -> str:
    """Which fields the first line has."""
    lines = chain.from_iterable(map(io.BytesIO, source.line_blocks(name)))
    first = next((line for line in lines if line.strip()), b"{}")
    names = _parse_line(source, name, first)
    for edition, (fields, _) in _EDITIONS.items():
        if {*fields[:3]} <= {*names}:
            return edition
    raise InputError(
        f"{source.store.uri(name)} has the fields {', '.join(names) or 'none'}; expected those of "
        "Amazon Reviews 2023 (user_id, parent_asin, timestamp) or 2018 (reviewerID, asin, "
        f"unixReviewTime). Change --{KEY}.",
        key=KEY,
    )


def _reviews(source: Source, name: str, edition: str) -> Iterator[pa.Table]:
    fields, divisor = _EDITIONS[edition]
    schema = pa.schema(list(zip(fields, _TYPES, strict=True)))
    for block in source.line_blocks(name):
        table = _parse(source, name, block, schema).select(list(fields))
        table = table.rename_columns(["user_id", "item_id", "timestamp", "rating"])
        ids = cast_columns(table, _USER_AND_ITEM, source.where(name))
        seconds = pc.divide(table["timestamp"], divisor)
        yield ids.append_column("timestamp", seconds).append_column("rating", table["rating"])


def _products(source: Source, name: str) -> Iterator[pa.Table]:
    """The products, each with the address of its first picture, if it has one."""
    for block in source.line_blocks(name):
        table = _parse(source, name, block, _META)
        first = _first(table["images"])
        columns = {
            "item_id": pc.coalesce(table["parent_asin"], table["asin"]),
            "title": table["title"],
            "category": pc.coalesce(table["main_category"], table["main_cat"]),
        }
        picture = pc.coalesce(
            pc.struct_field(first, "hi_res"),
            pc.struct_field(first, "large"),
            _first(table["imageURLHighRes"]),
            table["imUrl"],
        )
        products = cast_columns(pa.table(columns), ITEMS, source.where(name))
        yield products.append_column(PICTURE, picture)


def _first(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first entry of each list; null for an empty one."""
    filled = pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0)
    return pc.list_element(pc.if_else(filled, lists, pa.scalar([None], lists.type)), 0)


def _parse(source: Source, name: str, block: bytes, schema: pa.Schema) -> pa.Table:
    """Lines of JSON as a table with these columns; null where a line lacks one. A number or a flag
    in a column of text becomes text."""
    options = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        str(block, "utf-8")  # which pyarrow does not check
        return pajson.read_json(io.BytesIO(block), parse_options=options)
    except (pa.ArrowInvalid, UnicodeDecodeError):  # a line is damaged, or has another type
        rows = [_parse_line(source, name, line) for line in block.split(b"\n") if line.strip()]
    arrays = [_column(rows, field, source.where(name)) for field in schema]
    return pa.Table.from_arrays([pa.chunked_array([array]) for array in arrays], schema=schema)


def _column(rows: list[dict[str, Any]], field: pa.Field, where: str) -> pa.Array:
    values = [row.get(field.name) for row in rows]
    if field.type == TEXT:
        values = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise InputError(f"{where}: the field {field.name}: {error}.", key=KEY) from error


def _parse_line(source: Source, name: str, line: bytes) -> dict[str, Any]:
    """One line of JSON, in which NaN is null."""
    try:
        row = json.loads(str(line, "utf-8-sig"), parse_constant=lambda _: None)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise InputError(
            f"{source.where(name)} is not JSON lines of Amazon Reviews: found the line "
            f"{line[:60].decode('utf-8', 'replace')!r}; expected a JSON object in UTF-8 on each "
            "line.",
            key=KEY,
        )
    return row
