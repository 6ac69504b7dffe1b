"""The texts of the items table: each item's title and description as one text."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from visrec.errors import InputError, SchemaError
from visrec.ids import TEXT
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.tables import read_batches


def read_texts(table: InputTable) -> Iterator[pa.Table]:
    """The columns `item_id` and `text` of an items table, one batch at a time.

    A text is the title and the description, on a line each; null for an item with neither.

    Args:
        table: where it is.

    Raises:
        InputError: the table cannot be read.
        SchemaError: it has neither a title nor a description column.
    """
    for batch in read_batches(table, schemas.TEXTS):
        present = [name for name in ("title", "description") if name in batch.column_names]
        if not present:
            raise SchemaError(
                f"{table.uri} (--items) has neither a column title nor a column description; "
                "expected one of them to embed as text. Add it, or leave --text.model out.",
                path=table.uri,
                key="items",
                column="title",
            )
        lines = [pc.utf8_trim_whitespace(pc.fill_null(batch[name], "")) for name in present]
        joined = pc.binary_join_element_wise(*lines, pa.scalar("\n", TEXT))
        text = pc.utf8_trim_whitespace(joined)  # without the break beside a missing line
        yield pa.table(
            {"item_id": batch["item_id"], "text": pc.if_else(pc.equal(text, ""), None, text)}
        )


def no_texts(table: InputTable, items: int) -> InputError:
    """The error for an items table of so many items, none of which has a text."""
    return InputError(
        f"None of the {items:,} items of {table.uri} (--items) has a title or a description; "
        "expected some, to embed with --text.model. Add them, or leave it out.",
        path=table.uri,
        key="items",
    )
