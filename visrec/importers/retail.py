"""An order export of a shop, one row a line item: Shopify, WooCommerce, UCI Online Retail, others.

The columns are found by their names. Cancelled orders, refunds and returns are left out: whoever
sent a thing back did not like it. A line without a user or a time has that of its order.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.importers.base import KEY, Imported, Source, without_nulls
from visrec.storage.arrow_values import any_true
from visrec.storage.column_guess import guess_columns
from visrec.storage.schemas import INTERACTIONS, label_column

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
        InputError: there is no CSV file, or it is unclear which column is the user, the item or
            the time.
    """
    name = source.require("an order export as .csv or .tsv (.gz too)", _TABLE)
    mapping = _mapping(source, name)
    left_out = Counter[str]()
    titles: dict[str, str] = {}
    described = ", ".join(f"{column} is {stored!r}" for column, stored in mapping.items())
    return Imported(
        _lines(source, name, mapping, left_out, titles),
        _items(titles),
        left_out=left_out,
        notes=(f"Columns of {name}: {described}.",),
    )


def cancellation_columns(names: Sequence[str]) -> list[str]:
    """Those of a table's columns that say whether an order was cancelled or refunded."""
    known = {*_OTHERS[_STATUS], *_OTHERS[_CANCELLED_AT]} - {"status"}  # that may be of anything
    return [name for name in names if _normalized(name) in known]


def _normalized(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _mapping(source: Source, name: str) -> dict[str, str]:
    """The stored name of each column that counts."""
    names = source.header(name)
    mapping = guess_columns(_REQUIRED, names)
    missing = [column for column in _REQUIRED if column not in mapping]
    if missing:
        raise InputError(
            f"{source.store.uri(name)} has the columns {', '.join(names)}; expected columns that "
            f"are named like a user, an item and a time, and found none for {', '.join(missing)}. "
            "Rename them, or put the file into the workspace as interactions.csv and name its "
            "columns with --interactions.columns.",
            key=KEY,
        )
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
    name: str,
    mapping: dict[str, str],
    left_out: Counter[str],
    titles: dict[str, str],
) -> Iterator[pa.Table]:
    """The line items that count; the last title of each product goes into `titles`."""
    columns = [c for c in INTERACTIONS if c.name in _REQUIRED]
    labels = [label_column(c) for c in _OTHERS if c in mapping]
    orders, is_day_first = _OrderFields(), cache(lambda: _find_day_first(source, name, mapping))
    rewrite = partial(_rewrite, is_day_first=is_day_first)
    void_orders: set[str] = set()  # Shopify states an order's status on its first line alone
    for stored in source.read(name, [*columns, *labels], mapping, rewrite):
        batch = orders.fill(stored)
        if _TITLE in batch.column_names:
            pairs = zip(batch["item_id"].to_pylist(), batch[_TITLE].to_pylist(), strict=True)
            titles |= {item: title for item, title in pairs if item and title}
        table = without_nulls(_without_void(batch, void_orders, left_out), left_out)
        yield table.select(list(_REQUIRED))


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


def _find_day_first(source: Source, name: str, mapping: dict[str, str]) -> bool | None:
    """Whether dates with slashes have the day first, by all of a file; None if that is unclear."""
    largest = [0, 0]
    for table in source.read(name, [label_column("timestamp")], mapping):
        for n in range(2):
            form = rf"{_SLASHES}.*"
            dates = table["timestamp"].filter(pc.match_substring_regex(table["timestamp"], form))
            number = pc.replace_substring_regex(dates, form, rf"\{n + 1}").cast(pa.int64())
            largest[n] = max(largest[n], pc.max(number).as_py() or 0)
    first, second = (number > 12 for number in largest)
    return None if first == second else first


def _without_void(table: pa.Table, void_orders: set[str], left_out: Counter[str]) -> pa.Table:
    """The lines that were bought and kept."""
    false = pa.chunked_array([pa.repeat(False, len(table))])
    void = false
    if _STATUS in table.column_names:
        status = pc.fill_null(pc.utf8_lower(table[_STATUS]), "")
        status = pc.replace_substring_regex(status, r"^wc-", "")  # as WooCommerce stores it
        void = pc.or_(void, pc.is_in(status, pa.array(_VOID, status.type)))
    if _CANCELLED_AT in table.column_names:
        void = pc.or_(void, table[_CANCELLED_AT].is_valid())
    if _ORDER in table.column_names:
        orders = pc.fill_null(table[_ORDER], "")
        void = pc.or_(void, pc.match_substring_regex(orders, r"^C\d+$"))  # UCI Online Retail
        void_orders |= {*orders.filter(void).to_pylist()} - {""}
        void = pc.or_(void, pc.is_in(orders, pa.array(sorted(void_orders), orders.type)))
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
