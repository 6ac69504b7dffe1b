"""Reads the written files of a run back and checks them, because they are what readers will get.

This module compares files with their hashes, and finds out what each should hold; what is wrong
with the lists of one table is counted by `visrec.publication.verify`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.ids import is_in
from visrec.models.arrays import ItemArrays
from visrec.publication.list_tables import Lists, read_lists
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.publication.verify import Expected, ListChecks, check_shard
from visrec.recommend.inputs import ScoringData
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.rescore import Rescorer
from visrec.retrieval.similar import Kind
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import read_batches

_SAMPLE = 10_000  # queries compared with the last publication: enough for shares to half a percent


@dataclass(frozen=True)
class WrittenRun:
    """A run whose lists have been written.

    Attributes:
        spec: the run.
        sha256: of each file of lists, as it was written.
        last: the publication that the gates compare it with, if any.
    """

    spec: RunSpec
    sha256: Mapping[str, str]
    last: PublishedRun | None = None


def check_files(
    data: ScoringData, written: WrittenRun, shards: Sequence[int], rescorer: Rescorer | None = None
) -> ListChecks:
    """Checks some shards of a run, with one file in memory at a time.

    If the last publication has another number of shards, any of its files may hold queries of a
    shard. Then all of them are read for each shard, until `_SAMPLE` queries have been compared.

    Args:
        data: the input of the scoring.
        written: the run.
        shards: numbers of the shards.
        rescorer: scores a sample of the lists again.
    """
    spec, last = written.spec, written.last
    total = ListChecks(listed_N=np.zeros(len(data.item_ids), np.int64))
    same_shards = last is not None and len(last.parts) == spec.shards
    compared = damaged = 0
    for shard in shards:
        name = spec.part(shard)
        content = spec.run.read(name)
        expected = shard_expectation(data, spec, shard)
        if hashlib.sha256(content).hexdigest() != written.sha256[name]:
            total += _damaged_shard(expected)
            continue
        file = pq.ParquetFile(pa.BufferReader(content))
        metadata = {**spec.metadata, "visrec.shard": str(shard)}
        is_altered = not has_metadata(file.schema_arrow, metadata)
        last_lists = None
        if last is not None and (same_shards or compared < _SAMPLE):
            compared += len(expected.query_ids)
            names = [last.parts[shard]] if same_shards else last.parts
            last_lists, unusable = _read_last_lists(last, spec.kind, names, expected.query_ids)
            damaged += unusable
        table = file.read()
        checks = check_shard(table, expected, last_lists)
        total += replace(checks, altered_files=int(is_altered))
        if rescorer is not None and (lists := read_lists(table, spec.kind)) is not None:
            rescorer.add_shard(shard, lists)
    total = replace(total, damaged_last_files=damaged)
    return total if rescorer is None else total + rescorer.checks()


def check_and_rescore(
    data: ScoringData, arrays: ItemArrays, model: Store, written: WrittenRun, shards: Sequence[int]
) -> ListChecks:
    """As `check_files`, with a sample of the lists scored again by the model."""
    spec = written.spec
    # The seed depends on the run alone, so that every check samples the same lists.
    identity = str(sorted(spec.metadata.items())).encode()
    seed = int(hashlib.sha256(identity).hexdigest()[:15], 16)
    rescorer = Rescorer(data, arrays, model, spec.kind, spec.k, seed)
    return check_files(data, written, shards, rescorer)


def shard_expectation(data: ScoringData, spec: RunSpec, shard: int) -> Expected:
    """What a shard's table should hold, from the input of the scoring."""
    start, stop = map(int, data.shard_offsets[shard : shard + 2])
    return Expected(
        item_ids=data.item_ids,
        available_N=data.available_N,
        query_ids=data.query_ids.slice(start, stop - start),
        consumed=data.profiles.slice(start, stop),
        blocked=data.blocked.slice(start, stop),
        cold_U=data.cold_U[start:stop],
        k=spec.k,
        layout=spec.layout,
        kind=spec.kind,
        rules=data.rules,
    )


def _damaged_shard(expected: Expected) -> ListChecks:
    """The counts of a file that is not what was written; its content is not checked."""
    return ListChecks(
        listed_N=np.zeros(len(expected.item_ids), np.int64),
        files=1,
        altered_files=1,
        queries_expected=len(expected.query_ids),
    )


def _read_last_lists(
    last: PublishedRun, kind: Kind, names: Sequence[str], query_ids: pa.Array
) -> tuple[Lists | None, int]:
    """The last publication's lists of some queries, and how many files cannot be used.

    The gates compare with the lists of the other files; without any, the lists are None.

    Args:
        last: the publication.
        kind: user_to_item or item_to_item.
        names: the files that may hold these queries; one file if both publications have the same
            number of shards, because queries are dealt to shards by their ids.
        query_ids: the queries.
    """
    tables: list[pa.Table] = []
    unusable = 0
    for name in names:
        table = last.read_table(name)
        if table is None:
            unusable += 1
            continue
        if len(names) == 1 or read_lists(table.slice(0, 0), kind) is None:
            tables.append(table)
        else:
            tables.append(table.filter(is_in(table[0], query_ids)))
    if not tables or any(not table.schema.equals(tables[0].schema) for table in tables):
        return None, unusable
    return read_lists(pa.concat_tables(tables), kind), unusable


def count_items_without_feature(
    items_table: InputTable | None, item_ids: pa.Array
) -> tuple[int, int]:
    """How many items the items table calls available, and how many of them have no feature."""
    available = missing = 0
    if items_table is not None:
        for batch in read_batches(items_table, schemas.ITEMS):
            if "available" in batch.column_names:
                batch = batch.filter(pc.fill_null(batch["available"], True))
            available += len(batch)
            has_feature = is_in(batch["item_id"], item_ids)
            missing += len(batch) - int(pc.sum(has_feature).as_py() or 0)
    return available, missing
