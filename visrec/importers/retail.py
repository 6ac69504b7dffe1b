"""An order export of a shop, one row a line item: Shopify, WooCommerce, UCI Online Retail, others.

The columns are found by their names. All files of a folder are read as one export, in the order of
their names and numbers: Shopify writes a large one as several files. Cancelled orders, refunds and
returns are left out: whoever sent a thing back did not like it. A line without a user or a time has
that of its order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError, SchemaError
from visrec.importers.base import KEY, Imported, Source, own_name
from visrec.storage.arrow_values import any_true
from visrec.storage.column_guess import guess_columns
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import INTERACTIONS, label_column
from visrec.storage.tables import column_names, read_batches

_OF_ORDER = ("user_id", "timestamp")  # what all lines of an order share
_REQUIRED = ("user_id", "item_id", "timestamp")
_TABLE = r".*\.(csv|tsv)(\.gz)?"
_VOID = ("cancelled", "canceled", "refunded", "voided", "failed", "returned", "expired")
_QUANTITY, _STATUS, _CANCELLED_AT, _ORDER, _TITLE = (
    "quantity", "status", "cancelled_at", "order_id", "title",
)  # fmt: skip
# Normalized names of the columns that say what became of a line.
_OTHERS = {
    _QUANTITY: (
        *("lineitemquantity", "quantity", "qty", "itemquantity", "itemqty"),
        "quantityrefund",  # WooCommerce: Quantity (- Refund)
    ),
    _STATUS: ("financialstatus", "orderstatus", "status"),
    _CANCELLED_AT: ("cancelledat", "canceledat"),
    _ORDER: ("invoiceno", "invoice", "ordernumber", "orderid", "order", "name"),
    _TITLE: ("lineitemname", "description", "productname", "itemname", "title"),
}
_SLASHES = r"^\s*([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})"


def read(source: Source) -> Imported:
    """The line items as interactions, and the titles of the products.

    Raises:
        InputError: there is no CSV file, the files have different columns, or it is unclear which
            column is the user, the item or the time.
    """
    names = source.require_all(_TABLE, "an order export as .csv or .tsv (.gz too)")
    mappings = {name: _mapping(source.header(name)) for name in names}
    mapping = mappings[names[0]]
    for name, other in mappings.items():
        if other != mapping:
            raise source.refuse(
                names,
                f"parts of one order export, with the same columns, but in {own_name(names[0])} "
                f"{_describe(mapping)}, and in {own_name(name)} {_describe(other)}",
            )
    _require_columns(source, names[0], mapping)
    left_out = Counter[str]()
    titles: dict[str, str] = {}
    return Imported(
        _lines(source, names, mapping, left_out, titles),
        _items(titles),
        left_out=left_out,
        notes=(f"Columns of {', '.join(names)}: {_describe(mapping)}.",),
    )


def cancellation_columns(table: InputTable) -> list[str]:
    """Those of a table's columns that say whether an order was cancelled or refunded.

    A column that is just called status may be of anything, so its first values decide.

    Raises:
        InputError: there is no table, or a file cannot be read.
    """
    known = {*_OTHERS[_STATUS], *_OTHERS[_CANCELLED_AT]}
    names = [name for name in column_names(table) if _normalized(name) in known]
    return [n for n in names if _normalized(n) != "status" or _has_void_orders(table, n)]


def _has_void_orders(table: InputTable, column: str) -> bool:
    try:
        first = next(read_batches(table, [label_column(column)]), None)
    except SchemaError:
        return False  # a status that is no text
    return first is not None and any_true(_is_void(first[column]))


def _is_void(status: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether a status is that of a cancelled or refunded order; false for null."""
    words = pc.fill_null(pc.utf8_lower(status), "")
    words = pc.replace_substring_regex(words, r"^wc-", "")  # as WooCommerce stores it
    return pc.is_in(words, pa.array(_VOID, words.type))


def _normalized(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _describe(mapping: dict[str, str]) -> str:
    return ", ".join(f"{column} is {stored!r}" for column, stored in mapping.items())


def _require_columns(source: Source, name: str, mapping: dict[str, str]) -> None:
    missing = [column for column in _REQUIRED if column not in mapping]
    if missing:
        raise InputError(
            f"{source.store.uri(name)} has the columns {', '.join(source.header(name))}; expected "
            "columns that are named like a user, an item and a time, and found none for "
            f"{', '.join(missing)}. Rename them, or put the file into the workspace as "
            "interactions.csv and name its columns with --interactions.columns.",
            key=KEY,
        )


def _mapping(names: Sequence[str]) -> dict[str, str]:
    """The stored name of each column that counts, as far as there is one."""
    mapping = guess_columns(_REQUIRED, names)
    normalized = {_normalized(stored): stored for stored in names}
    if not any(each.startswith("lineitem") for each in normalized):
        normalized.pop("name", None)  # the order in Shopify's exports, a product in others
    for column, known in _OTHERS.items():
        free = (normalized[each] for each in known if each in normalized)
        stored = next((each for each in free if each not in mapping.values()), None)
        mapping |= {column: stored} if stored else {}
    return mapping


def _lines(
    source: Source,
    names: Sequence[str],
    mapping: dict[str, str],
    left_out: Counter[str],
    titles: dict[str, str],
) -> Iterator[pa.Table]:
    """The line items that count; the last title of each product goes into `titles`."""
    columns = [c for c in INTERACTIONS if c.name in _REQUIRED]
    labels = [label_column(c) for c in _OTHERS if c in mapping]
    orders, is_day_first = _OrderFields(), cache(lambda: _find_day_first(source, names, mapping))
    rewrite = partial(_rewrite, is_day_first=is_day_first)
    # Shopify states an order's status on its first line alone.
    void_orders = _find_void_orders(source, names, mapping) if len(names) > 1 else set()
    batches = (source.read(name, [*columns, *labels], mapping, rewrite) for name in names)
    for stored in chain.from_iterable(batches):
        batch = orders.fill(stored)
        if _TITLE in batch.column_names:
            pairs = zip(batch["item_id"].to_pylist(), batch[_TITLE].to_pylist(), strict=True)
            titles |= {item: title for item, title in pairs if item and title}
        yield _without_void(batch, void_orders, left_out).select(list(_REQUIRED))


class _OrderFields:
    """Gives the lines of an order, which follow each other, the user and the time that only its
    first lines state, as in exports of Shopify."""

    def __init__(self) -> None:
        self._last: pa.Table | None = None  # the last line of the batch before

    def fill(self, table: pa.Table) -> pa.Table:
        """A batch with these values; unchanged where no column names the order."""
        if _ORDER not in table.column_names or not len(table):
            return table
        lines = table if self._last is None else pa.concat_tables([self._last, table])
        starts = _starts_of_orders(lines[_ORDER])
        for name in _OF_ORDER:
            column = lines[name].combine_chunks()
            row = np.arange(len(column))
            stated = np.maximum.accumulate(np.where(column.is_valid(), row, -1))
            taken = pa.array(np.where(stated >= starts, stated, row))
            lines = lines.set_column(lines.column_names.index(name), name, column.take(taken))
        self._last = lines.slice(len(lines) - 1)
        return lines.slice(len(lines) - len(table))


def _starts_of_orders(orders: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """For each line the number of the first line of its order; a line without one is its own."""
    is_same = pc.fill_null(pc.equal(orders[1:], orders[:-1]), False)
    is_first = np.append(True, ~is_same.to_numpy())
    return np.maximum.accumulate(np.where(is_first, np.arange(len(orders)), 0))


def _rewrite(table: pa.Table, is_day_first: Callable[[], bool | None]) -> pa.Table:
    """A batch whose values that only UCI Online Retail has are written as tables have them: times
    such as 12/13/2010 8:26, and users that pandas made floats of, such as 17850.0.

    Args:
        table: the batch as the file stores it.
        is_day_first: the order of dates with slashes. Where it is unknown they stay, and are
            refused.
    """
    users = pc.replace_substring_regex(table["user_id"], r"^([0-9]+)\.0$", r"\1")
    times = table["timestamp"]
    if any_true(pc.match_substring_regex(times, _SLASHES)) and is_day_first() is not None:
        for form, replacement in (
            (_SLASHES, r"\3-\2-\1" if is_day_first() else r"\3-\1-\2"),
            (r"^([0-9]{4})-([0-9])-", r"\1-0\2-"),
            (r"^([0-9]{4}-[0-9]{2})-([0-9])($|[^0-9])", r"\1-0\2\3"),
            (r"^([0-9-]{10}) ([0-9]):", r"\1 0\2:"),
        ):
            times = pc.replace_substring_regex(times, form, replacement)
    columns = {**dict(zip(table.column_names, table.columns, strict=True)), "user_id": users}
    return pa.table({**columns, "timestamp": times})


def _find_day_first(source: Source, names: Sequence[str], mapping: dict[str, str]) -> bool | None:
    """Whether dates with slashes have the day first, by all files; None if that is unclear."""
    largest = [0, 0]
    batches = (source.read(name, [label_column("timestamp")], mapping) for name in names)
    for table in chain.from_iterable(batches):
        for n in range(2):
            form = rf"{_SLASHES}.*"
            dates = table["timestamp"].filter(pc.match_substring_regex(table["timestamp"], form))
            number = pc.replace_substring_regex(dates, form, rf"\{n + 1}").cast(pa.int64())
            largest[n] = max(largest[n], pc.max(number).as_py() or 0)
    first, second = (number > 12 for number in largest)
    return None if first == second else first


def _find_void_orders(source: Source, names: Sequence[str], mapping: dict[str, str]) -> set[str]:
    """The orders that were cancelled or refunded by any of the files: where exports of several
    dates overlap, the earlier one has an order as paid."""
    void_orders: set[str] = set()
    columns = [label_column(c) for c in (_ORDER, _STATUS, _CANCELLED_AT) if c in mapping]
    # Without a status, an order is void by its own id, which each line has.
    if _ORDER in mapping and len(columns) > 1:
        for name in names:
            for table in source.read(name, columns, mapping):
                _without_void(table, void_orders, Counter())
    return void_orders


def _without_void(table: pa.Table, void_orders: set[str], left_out: Counter[str]) -> pa.Table:
    """The lines that were bought and kept."""
    false = pa.chunked_array([pa.repeat(False, len(table))])
    void = false
    if _STATUS in table.column_names:
        void = pc.or_(void, _is_void(table[_STATUS]))
    if _CANCELLED_AT in table.column_names:
        void = pc.or_(void, table[_CANCELLED_AT].is_valid())
    if _ORDER in table.column_names:
        orders = pc.fill_null(table[_ORDER], "")
        void = pc.or_(void, pc.match_substring_regex(orders, r"^C\d+$"))  # UCI Online Retail
        void_orders |= {*orders.filter(void).to_pylist()} - {""}
        void = pc.or_(void, pc.is_in(orders, pa.array(list(void_orders), orders.type)))
    returned = false
    if _QUANTITY in table.column_names:
        negative = pc.match_substring_regex(
            pc.fill_null(table[_QUANTITY], "1"), r"^\s*(-|0+([.,]0+)?\s*$)"
        )
        returned = pc.and_(negative, pc.invert(void))
    for reason, rows in (("of cancelled or refunded orders", void), ("returns", returned)):
        if count := pc.sum(rows).as_py():
            left_out[reason] += count
    return table.filter(pc.invert(pc.or_(void, returned)))


def _items(titles: dict[str, str]) -> Iterator[pa.Table]:
    """The products with titles, which fit into memory, once the line items were read."""
    yield pa.table({"item_id": list(titles), "title": list(titles.values())})
