"""Lists in PostgreSQL. A shop reads the view `visrec_recommendations`, or `visrec_similar_items`.

    SELECT items FROM visrec_recommendations WHERE user_id = 'u1'

Rows are added and removed, and no table is ever replaced or truncated: those would be visible to a
transaction that began before the switch, and would wait for readers and make readers wait.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from visrec.errors import InputError
from visrec.exports.batches import ListBatch, require_short_ids
from visrec.exports.state import ExportState

ERRORS = (psycopg.Error,)
_CONNECT_TIMEOUT_S = 10
_ID_BYTES = 2600  # an entry of an index has 2,704 bytes at most, with its headers
_NUL = "\\u0000"  # as JSON has it

_CREATE = """
CREATE TABLE IF NOT EXISTS visrec_exports (
    name text PRIMARY KEY,
    generation bigint NOT NULL,
    since bigint NOT NULL,
    run_id text,
    record text NOT NULL
);
CREATE TABLE IF NOT EXISTS {lists} (
    {id} text NOT NULL,
    generation bigint NOT NULL,
    items jsonb,
    cold boolean,
    PRIMARY KEY ({id}, generation)
);
CREATE VIEW {view} AS
SELECT lists.{id}, lists.items, lists.cold, present.run_id
FROM {lists} AS lists
JOIN visrec_exports AS present
  ON present.name = {name} AND lists.generation BETWEEN present.since AND present.generation
WHERE lists.items IS NOT NULL
  AND NOT EXISTS (
    SELECT FROM {lists} AS newer
    WHERE newer.{id} = lists.{id}
      AND newer.generation > lists.generation
      AND newer.generation <= present.generation
  );
"""
_INSERT_STATE = """
INSERT INTO visrec_exports (generation, since, run_id, record, name)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO NOTHING
"""
_UPDATE_STATE = """
UPDATE visrec_exports SET generation = %s, since = %s, run_id = %s, record = %s
WHERE name = %s AND record = %s
"""
_SWEEP = """
DELETE FROM {lists} AS lists
WHERE lists.generation NOT BETWEEN %(since)s AND %(generation)s
  OR lists.items IS NULL
  OR EXISTS (
    SELECT FROM {lists} AS newer
    WHERE newer.{id} = lists.{id}
      AND newer.generation > lists.generation
      AND newer.generation <= %(generation)s
  )
"""


def is_valid_url(url: str) -> bool:
    """Whether the client library understands a URL; of several hosts each may have a port."""
    try:
        ports = conninfo_to_dict(url).get("port") or ""
    except psycopg.Error:
        return False
    return all(re.fullmatch("[0-9]{0,5}", port) for port in str(ports).split(","))


@dataclass(frozen=True)
class PostgresStore:
    """Lists of one kind in one database.

    Attributes:
        connection: to the database; psycopg, which is optional, has no types here.
        name: the name of the lists.
        id_column: the id column of the view.
    """

    connection: Any
    name: str
    id_column: str

    @classmethod
    @contextmanager
    def open(cls, url: str, name: str, id_column: str) -> Iterator["PostgresStore"]:
        """Connects, and creates tables and view where they are missing."""
        options = {"connect_timeout": _CONNECT_TIMEOUT_S, "application_name": "visrec export"}
        with psycopg.connect(url, autocommit=True, **options) as connection:
            store = cls(connection, name, id_column)
            store._create()
            yield store

    def read_state(self) -> bytes | None:
        query = "SELECT record FROM visrec_exports WHERE name = %s"
        found = self.connection.execute(query, [self.name]).fetchone()
        return None if found is None else str(found[0]).encode()

    def swap_state(self, before: bytes | None, after: ExportState) -> bool:
        run_id = after.run and after.run.run_id
        values = [after.generation, after.since, run_id, after.to_json().decode(), self.name]
        if before is None:
            return bool(self.connection.execute(_INSERT_STATE, values).rowcount == 1)
        values.append(before.decode())
        return bool(self.connection.execute(_UPDATE_STATE, values).rowcount == 1)

    def transaction(self) -> AbstractContextManager[object]:
        transaction: AbstractContextManager[object] = self.connection.transaction()
        return transaction

    def write(self, generation: int, batches: Iterable[ListBatch]) -> None:
        """Copies the entries; inside a transaction with the record, so that none is there twice."""
        copy = self._compose("COPY {lists} ({id}, generation, items, cold) FROM STDIN")
        with self.connection.cursor() as cursor, cursor.copy(copy) as rows:
            for batch in batches:
                _require_storable(batch)
                for id, items, cold in zip(batch.ids, batch.items, batch.cold, strict=True):
                    rows.write_row((id, generation, items, cold))

    def clean_up(self, state: ExportState) -> int:
        bounds = {"since": state.since, "generation": state.generation}
        return int(self.connection.execute(self._compose(_SWEEP), bounds).rowcount)

    def _create(self) -> None:
        # Only if it is missing: a role that may only write rows can export, too.
        query = "SELECT to_regclass(%s) IS NOT NULL"
        if self.connection.execute(query, [f"visrec_{self.name}"]).fetchone()[0]:
            return
        with self.connection.transaction():
            self.connection.execute(self._compose(_CREATE))

    def _compose(self, text: str) -> Any:
        """The statement with the names of this kind's table, view and column."""
        return sql.SQL(text).format(
            lists=sql.Identifier(f"visrec_{self.name}_lists"),
            view=sql.Identifier(f"visrec_{self.name}"),
            id=sql.Identifier(self.id_column),
            name=sql.Literal(self.name),
        )


def _require_storable(batch: ListBatch) -> None:
    """Refuses what PostgreSQL has no type for.

    Raises:
        InputError: an id is too long, or has a NUL character.
    """
    require_short_ids(batch, _ID_BYTES, "the index of PostgreSQL")
    for id, items in zip(batch.ids, batch.items, strict=True):
        # After another backslash it is the text of an id.
        if "\0" in id or (items and _NUL in items and _NUL in items.replace("\\\\", "")):
            raise InputError(
                f"Found a NUL character in the id {id!r} or in an id of its list; expected ids "
                "without it, which PostgreSQL cannot store. Nothing of this export is visible. "
                "Export to another target, or change the id in the inputs.",
                key="to",
            )
