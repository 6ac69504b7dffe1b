"""A run's files read back and checked: what is published is what was checked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec import schemas
from visrec.models.contract import Arrays
from visrec.scoring.check import Expected, Lists, ShardFacts, check_shard, read_lists
from visrec.scoring.data import ScoringData
from visrec.scoring.rescore import Rescorer
from visrec.scoring.target import Target, has_marks, shard_name
from visrec.sources.tables import read_batches
from visrec.storage import Store

_SAMPLE = 10_000  # owners: a share of them is known to half a percent


@dataclass(frozen=True)
class LastPublication:
    """Where the last publication's lists are.

    Args:
        run: its directory.
        names: of its files.
    """

    run: Store
    names: Sequence[str]


def check_files(
    data: ScoringData,
    target: Target,
    sha256: Mapping[str, str],
    last: LastPublication | None,
    shards: Sequence[int],
    rescorer: Rescorer | None = None,
) -> ShardFacts:
    """The facts of some shards of a run, one file in memory at a time.

    A last publication of another number of shards has the owners of one of these in all of its
    files: all are read until `_SAMPLE` owners have been looked up in them, and no more.

    Args:
        data: what scoring was given.
        target: what it wrote.
        sha256: of each file, as it was written.
        last: the last publication, if there is one.
        shards: their numbers.
        rescorer: scores a sample of the lists anew.
    """
    total = ShardFacts(listed_N=np.zeros(len(data.item_ids), np.int64))
    looked_up, dealt_alike = 0, last is not None and len(last.names) == target.shards
    for shard in shards:
        name = shard_name(shard)
        content = target.run.read(name)
        file = pq.ParquetFile(pa.BufferReader(content))
        ours = has_marks(file.schema_arrow, {**target.marks, "visrec.shard": str(shard)})
        other = hashlib.sha256(content).hexdigest() != sha256[name] or not ours
        expected = expected_of(data, target, shard)
        before = None
        if last is not None and (dealt_alike or looked_up < _SAMPLE):
            looked_up += len(expected.owner_ids)
            before = _before(last, target.kind, shard, expected.owner_ids, dealt_alike)
        table = file.read()
        facts = check_shard(table, expected, before)
        total = total + replace(facts, other_files=int(other))
        if rescorer is not None and (lists := read_lists(table, target.kind)) is not None:
            rescorer.take(shard, lists)
    return total if rescorer is None else replace(total, **rescorer.facts())


def check_and_rescore(
    data: ScoringData,
    arrays: Arrays,
    model: Store,
    target: Target,
    sha256: Mapping[str, str],
    last: LastPublication | None,
    shards: Sequence[int],
) -> ShardFacts:
    """As `check_files`, with a sample of the lists scored anew by the model."""
    # The same lists whenever the run is checked.
    seed = int(hashlib.sha256(str(sorted(target.marks.items())).encode()).hexdigest()[:15], 16)
    rescorer = Rescorer(data, arrays, model, target.kind, target.k, seed)
    return check_files(data, target, sha256, last, shards, rescorer)


def expected_of(data: ScoringData, target: Target, shard: int) -> Expected:
    """What a shard's table is held against."""
    first, end = map(int, data.shard_offsets[shard : shard + 2])
    return Expected(
        item_ids=data.item_ids,
        available_N=data.available_N,
        owner_ids=data.owner_ids.slice(first, end - first),
        consumed=data.profiles.slice(first, end),
        blocked=data.blocked.slice(first, end),
        cold_U=data.cold_U[first:end],
        k=target.k,
        layout=target.layout,
        kind=target.kind,
        rules=data.rules,
    )


def _before(
    last: LastPublication, kind: str, shard: int, owner_ids: pa.Array, dealt_alike: bool
) -> Lists | None:
    """The last publication's lists of these owners.

    Owners are dealt to shards by their ids: of as many shards, the same one has them.
    """
    tables: list[pa.Table] = []
    for name in [shard_name(shard)] if dealt_alike else last.names:
        if last.run.exists(name):  # old runs may have been removed
            table = last.run.read_table(name)
            if dealt_alike or read_lists(table.slice(0, 0), kind) is None:
                tables.append(table)
            else:
                tables.append(table.filter(pc.is_in(table[0], value_set=owner_ids)))
    if not tables or any(not table.schema.equals(tables[0].schema) for table in tables):
        return None
    return read_lists(pa.concat_tables(tables), kind)


def without_feature(items_uri: str | None, item_ids: pa.Array) -> tuple[int, int]:
    """Items that the items table calls available, and how many of them have no feature."""
    listed = missing = 0
    if items_uri is not None:
        for batch in read_batches(items_uri, schemas.ITEMS, "items"):
            found = batch
            if "available" in batch.column_names:
                found = batch.filter(pc.fill_null(batch["available"], True))
            listed += len(found)
            known = pc.is_in(found["item_id"], value_set=item_ids)
            missing += len(found) - int(pc.sum(known).as_py() or 0)
    return listed, missing
