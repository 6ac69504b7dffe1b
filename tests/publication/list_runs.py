"""Runs with real files of lists, whose items tell the run; and readers as users have them.

The readers are those of other projects: deltalake, pyiceberg, DuckDB.
"""

import hashlib
import os
import re
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable
from pyiceberg.table import StaticTable

from tests.conftest import CHECKOUT
from tests.publication.runs import PASSED, draft_manifest, write_files
from visrec.publication.completion import finish_run
from visrec.publication.iceberg_table import ICEBERG
from visrec.publication.list_tables import Layout, lists_file, lists_table, similar_table
from visrec.publication.manifest import RunManifest, ShardFile, read_run_manifest
from visrec.publication.pointer import TableFormat
from visrec.publication.run_spec import run_store
from visrec.publication.symlink_manifest import SYMLINK_MANIFEST
from visrec.retrieval.similar import Kind
from visrec.storage.store import Store

FORMATS: tuple[TableFormat, ...] = ("delta", "iceberg", "manifest")
USERS, K, SHARDS = 6, 2, 3


def complete_lists(
    lists: Store,
    run_id: str,
    kind: Kind = "user_to_item",
    layout: Layout = "nested",
    cutoff: float | None = None,
) -> RunManifest:
    """A complete run, whose item ids begin with its id."""
    run = run_store(lists, run_id)
    digest = hashlib.sha256(run_id.encode()).hexdigest()[:12]
    contents = {
        f"part-{shard:05}-of-{SHARDS:05}-{digest}.parquet": lists_file(
            _shard(run_id, kind, layout, shard)
        )
        for shard in range(SHARDS)
    }
    rows = USERS // SHARDS * (K if layout == "long" else 1)
    files = {
        name: ShardFile(rows, file.bytes, file.sha256)
        for name, file in write_files(run, contents).items()
    }
    draft = draft_manifest(
        run_id=run_id, kind=kind, layout=layout, files=files, cutoff_timestamp=cutoff
    )
    return finish_run(run, draft, [PASSED])[0]


def _shard(run_id: str, kind: Kind, layout: Layout, shard: int) -> pa.Table:
    count = USERS // SHARDS
    queries = pa.array([f"q{shard * count + n}" for n in range(count)], pa.large_string())
    items = pa.array([f"{run_id}/{n}" for n in range(K + 1)], pa.large_string())
    row_BK = np.tile(np.arange(K), (count, 1))
    score_BK = row_BK[:, ::-1].astype(np.float32) / 8
    if kind == "item_to_item":
        return similar_table(queries, items, row_BK, score_BK, layout)
    reason_BK = np.tile([K, -1], (count, 1))
    cold_B = np.arange(count) == 0
    return lists_table(queries, items, row_BK, score_BK, reason_BK, cold_B, layout)


def rows_of_run(lists: Store, run_id: str) -> list[dict[str, Any]]:
    """The rows in the files of a run, as pyarrow reads them one by one."""
    run = run_store(lists, run_id)
    manifest = read_run_manifest(run)
    assert manifest is not None
    return in_order(pa.concat_tables(run.read_table(name) for name in manifest.files))


def rows_of_table(lists: Store, table: TableFormat) -> list[dict[str, Any]]:
    """The rows that a reader of the table sees."""
    return in_order(_READERS[table](lists))


def runs_seen(lists: Store, table: TableFormat) -> set[str]:
    """The runs whose rows a reader of the table sees, who must see all rows of a run."""
    rows = rows_of_table(lists, table)
    runs = {entry["item_id"].partition("/")[0] for row in rows for entry in row["items"]}
    assert [row["user_id"] for row in rows] == [f"q{n}" for n in range(USERS)], (table, runs)
    return runs


def in_order(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.to_pylist()
    query = table.schema.names[0]
    return sorted(rows, key=lambda row: (row[query], row.get("rank", 0)))


def open_delta(lists: Store, version: int | None = None) -> DeltaTable:
    options = {"AWS_ENDPOINT_URL": lists.endpoint, "AWS_ALLOW_HTTP": "true"} if lists.is_s3 else {}
    return DeltaTable(lists.root, version=version, storage_options=options)


def open_iceberg(lists: Store) -> StaticTable:
    keys = {
        "s3.endpoint": lists.endpoint,
        "s3.access-key-id": os.environ.get("AWS_ACCESS_KEY_ID"),
        "s3.secret-access-key": os.environ.get("AWS_SECRET_ACCESS_KEY"),
        "s3.region": "us-east-1",
    }
    return StaticTable.from_metadata(f"{lists.root}/{ICEBERG}", keys if lists.is_s3 else {})


def _read_manifest(lists: Store) -> pa.Table:
    if not lists.is_s3:
        return duckdb_manifest(lists)
    uris = lists.read(SYMLINK_MANIFEST).decode().split()
    filesystem, _ = lists.arrow_filesystem()
    paths = [uri.removeprefix("s3://") for uri in uris]
    return pa.concat_tables(pq.read_table(path, filesystem=filesystem) for path in paths)


def duckdb_by_pointer(lists: Store) -> pa.Table:
    """By the statements of docs/operations.md for readers without a table."""
    page = (CHECKOUT / "docs" / "operations.md").read_text()
    [statements] = re.findall(r"```sql\n(.*?_latest\.json.*?)\n\n", page, re.DOTALL)
    with duckdb.connect() as connection:
        statements = statements.replace("shop/recommendations", lists.root)
        return connection.sql(statements).to_arrow_table()


def duckdb_manifest(lists: Store) -> pa.Table:
    """As docs/operations.md tells readers."""
    with duckdb.connect() as connection:
        connection.sql(
            f"SET VARIABLE files = (SELECT list(uri) FROM read_csv('{lists.uri(SYMLINK_MANIFEST)}',"
            " header = false, columns = {'uri': 'VARCHAR'}))"
        )
        return connection.sql(
            "FROM read_parquet(getvariable('files'), hive_partitioning = false)"
        ).to_arrow_table()


_READERS = {
    "delta": lambda lists: open_delta(lists).to_pyarrow_table(),
    "iceberg": lambda lists: open_iceberg(lists).scan().to_arrow(),
    "manifest": _read_manifest,
}
