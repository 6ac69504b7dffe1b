"""An order export of a shop, one row a line item: Shopify, WooCommerce, UCI Online Retail, others.

The columns are found by their names. Cancelled orders, refunds and returns are left out: whoever
sent a thing back did not like it.
"""

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError
from visrec.importers.base import KEY, Imported, Source, without_nulls
from visrec.storage.column_guess import guess_columns
from visrec.storage.schemas import INTERACTIONS, label_column

_REQUIRED = ("user_id", "item_id", "timestamp")
_TABLE = r".*\.(csv|tsv)(\.gz)?"
_VOID = ("cancelled", "canceled", "refunded", "voided", "failed", "returned", "expired")
_QUANTITY, _STATUS, _CANCELLED_AT, _ORDER, _TITLE = (
    "quantity", "status", "cancelled_at", "order_id", "title",
)  # fmt: skip
# Normalized names of the columns that say what became of a line.
_OTHERS = {
    _QUANTITY: ("lineitemquantity", "quantity", "qty", "itemquantity", "itemqty"),
    _STATUS: ("financialstatus", "orderstatus", "status"),
    _CANCELLED_AT: ("cancelledat", "canceledat"),
    _ORDER: ("invoiceno", "invoice", "ordernumber", "orderid", "order", "name"),
    _TITLE: ("lineitemname", "description", "productname", "itemname", "title"),
}


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
    for column, known in _OTHERS.items():
        for stored in names:
            normalized = "".join(filter(str.isalnum, stored.lower()))
            if normalized in known and stored not in mapping.values():
                mapping.setdefault(column, stored)
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
    void_orders: set[str] = set()  # Shopify states an order's status on its first line alone
    for batch in source.read(name, [*columns, *labels], mapping):
        if _TITLE in batch.column_names:
            pairs = zip(batch["item_id"].to_pylist(), batch[_TITLE].to_pylist(), strict=True)
            titles |= {item: title for item, title in pairs if item and title}
        table = without_nulls(_without_void(batch, void_orders, left_out), left_out)
        yield table.select(list(_REQUIRED))


def _without_void(table: pa.Table, void_orders: set[str], left_out: Counter[str]) -> pa.Table:
    """The lines that were bought and kept."""
    false = pa.chunked_array([pa.repeat(False, len(table))])
    void = false
    if _STATUS in table.column_names:
        status = pc.fill_null(pc.utf8_lower(table[_STATUS]), "")
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
