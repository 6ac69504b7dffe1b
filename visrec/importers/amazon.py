"""Amazon Reviews as JSON lines, of 2018 and of 2023: https://amazon-reviews-2023.github.io

Reviews are interactions, their stars are ratings. Where the metadata of the products lie beside
them (`meta_*.jsonl.gz`), titles, categories and the address of each product's first picture are
taken over.
"""

import io
from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from visrec.errors import InputError
from visrec.ids import TEXT
from visrec.importers.base import KEY, PICTURE, Imported, Source, without_nulls

_JSON = r".*\.jsonl?(\.gz)?"
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
        InputError: there are no reviews of either edition.
    """
    reviews = source.require("reviews as .jsonl or .json (.gz too)", rf"(?!meta){_JSON}")
    meta = source.find(rf"meta{_JSON}")
    edition = _edition(source, reviews)
    left_out = Counter[str]()
    return Imported(
        _reviews(source, reviews, edition, left_out),
        _products(source, meta) if meta else (),
        left_out,
        (f"Reviews of the edition of {edition}.",),
    )


def _edition(source: Source, name: str) -> str:
    """Which fields the first lines have."""
    names: list[str] = []
    for block in source.blocks(name):
        names = _parse(source, name, block.split(b"\n", 1)[0] + b"\n", None).column_names
        break
    for edition, (fields, _) in _EDITIONS.items():
        if {*fields[:3]} <= {*names}:
            return edition
    raise InputError(
        f"{source.store.uri(name)} has the fields {', '.join(names) or 'none'}; expected those of "
        "Amazon Reviews 2023 (user_id, parent_asin, timestamp) or 2018 (reviewerID, asin, "
        f"unixReviewTime). Change --{KEY}.",
        key=KEY,
    )


def _reviews(source: Source, name: str, edition: str, left_out: Counter[str]) -> Iterator[pa.Table]:
    fields, divisor = _EDITIONS[edition]
    schema = pa.schema(list(zip(fields, _TYPES, strict=True)))
    for block in source.blocks(name):
        table = _parse(source, name, block, schema).select(list(fields))
        table = table.rename_columns(["user_id", "item_id", "timestamp", "rating"])
        seconds = pc.divide(table["timestamp"], divisor)
        table = table.set_column(2, "timestamp", seconds)
        yield without_nulls(table, left_out)


def _products(source: Source, name: str) -> Iterator[pa.Table]:
    """The products, each with the address of its first picture, if it has one."""
    for block in source.blocks(name):
        table = _parse(source, name, block, _META)
        first = _first(table["images"])
        columns = {
            "item_id": pc.coalesce(table["parent_asin"], table["asin"]),
            "title": table["title"],
            "category": pc.coalesce(table["main_category"], table["main_cat"]),
            PICTURE: pc.coalesce(
                pc.struct_field(first, "hi_res"),
                pc.struct_field(first, "large"),
                _first(table["imageURLHighRes"]),
                table["imUrl"],
            ),
        }
        products = pa.table(columns)
        yield products.filter(products["item_id"].is_valid())


def _first(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first entry of each list; null for an empty one."""
    filled = pc.greater(pc.fill_null(pc.list_value_length(lists), 0), 0)
    return pc.list_element(pc.if_else(filled, lists, pa.scalar([None], lists.type)), 0)


def _parse(source: Source, name: str, block: bytes, schema: pa.Schema | None) -> pa.Table:
    """Lines of JSON as a table with these columns; null where a line lacks one."""
    options = pajson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="ignore" if schema else "infer"
    )
    try:
        return pajson.read_json(io.BytesIO(block), parse_options=options)
    except pa.ArrowInvalid as error:
        raise InputError(
            f"{source.store.uri(name)} (--{KEY}) is not JSON lines of Amazon Reviews: {error}."
        ) from error
