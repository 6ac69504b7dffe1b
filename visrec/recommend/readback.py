"""A run's files read back and checked: what is published is what was checked."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.ids import is_among
from visrec.models.arrays import Arrays
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.publication.verify import Expected, Lists, ShardFacts, check_shard, read_lists
from visrec.recommend.inputs import ScoringData
from visrec.recommend.rescore import Rescorer
from visrec.storage import schemas
from visrec.storage.store import Store
from visrec.storage.tables import read_batches

_SAMPLE = 10_000  # owners: a share of them is known to half a percent


@dataclass(frozen=True)
class LastPublication:
    """Where the last publication's lists are.

    Args:
        run: its directory.
        sha256: of each of its files.
    """

    run: Store
    sha256: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """The files, by their shards."""
        return sorted(self.sha256)


def check_files(
    data: ScoringData,
    target: RunSpec,
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
    embedding_user_encoder, dealt_alike = 0, last is not None and len(last.names) == target.shards
    damaged = 0
    for shard in shards:
        name = target.part(shard)
        content = target.run.read(name)
        expected = expected_of(data, target, shard)
        if hashlib.sha256(content).hexdigest() != sha256[name]:  # damaged: nothing more is known
            none_N, owners = np.zeros(len(data.item_ids), np.int64), len(expected.query_ids)
            total += ShardFacts(listed_N=none_N, files=1, other_files=1, owners_expected=owners)
            continue
        file = pq.ParquetFile(pa.BufferReader(content))
        other = not has_metadata(file.schema_arrow, {**target.marks, "visrec.shard": str(shard)})
        before = None
        if last is not None and (dealt_alike or embedding_user_encoder < _SAMPLE):
            embedding_user_encoder += len(expected.query_ids)
            names = [last.names[shard]] if dealt_alike else last.names
            before, gone = _before(last, target.kind, names, expected.query_ids)
            damaged += gone
        table = file.read()
        facts = check_shard(table, expected, before)
        total = total + replace(facts, other_files=int(other))
        if rescorer is not None and (lists := read_lists(table, target.kind)) is not None:
            rescorer.take(shard, lists)
    total = replace(total, damaged_of_last=damaged)
    return total if rescorer is None else replace(total, **rescorer.facts())


def check_and_rescore(
    data: ScoringData,
    arrays: Arrays,
    model: Store,
    target: RunSpec,
    sha256: Mapping[str, str],
    last: LastPublication | None,
    shards: Sequence[int],
) -> ShardFacts:
    """As `check_files`, with a sample of the lists scored anew by the model."""
    # The same lists whenever the run is checked.
    seed = int(hashlib.sha256(str(sorted(target.marks.items())).encode()).hexdigest()[:15], 16)
    rescorer = Rescorer(data, arrays, model, target.kind, target.k, seed)
    return check_files(data, target, sha256, last, shards, rescorer)


def expected_of(data: ScoringData, target: RunSpec, shard: int) -> Expected:
    """What a shard's table is held against."""
    first, end = map(int, data.shard_offsets[shard : shard + 2])
    return Expected(
        item_ids=data.item_ids,
        available_N=data.available_N,
        query_ids=data.query_ids.slice(first, end - first),
        consumed=data.profiles.slice(first, end),
        blocked=data.blocked.slice(first, end),
        cold_U=data.cold_U[first:end],
        k=target.k,
        layout=target.layout,
        kind=target.kind,
        rules=data.rules,
    )


def _before(
    last: LastPublication, kind: str, names: Sequence[str], query_ids: pa.Array
) -> tuple[Lists | None, int]:
    """The last publication's lists of these owners, and how many files cannot be used.

    A file that is gone (old runs may have been removed) or is not what was published is left out:
    the gates then compare with less, or with nothing.

    Args:
        last: the publication.
        kind: whose lists they are.
        names: the files that may have these owners: owners are dealt to shards by their ids, so of
            as many shards the same one has them.
        query_ids: whose lists are looked for.
    """
    tables: list[pa.Table] = []
    damaged = 0
    for name in names:
        found = last.run.read_if_exists(name)
        if found is None or hashlib.sha256(found[0]).hexdigest() != last.sha256[name]:
            damaged += 1
            continue
        table = pq.read_table(pa.BufferReader(found[0]))
        if len(names) == 1 or read_lists(table.slice(0, 0), kind) is None:
            tables.append(table)
        else:
            tables.append(table.filter(is_among(table[0], query_ids)))
    if not tables or any(not table.schema.equals(tables[0].schema) for table in tables):
        return None, damaged
    return read_lists(pa.concat_tables(tables), kind), damaged


def without_feature(items_uri: str | None, item_ids: pa.Array) -> tuple[int, int]:
    """Items that the items table calls available, and how many of them have no feature."""
    listed = missing = 0
    if items_uri is not None:
        for batch in read_batches(items_uri, schemas.ITEMS, "items"):
            found = batch
            if "available" in batch.column_names:
                found = batch.filter(pc.fill_null(batch["available"], True))
            listed += len(found)
            known = is_among(found["item_id"], item_ids)
            missing += len(found) - int(pc.sum(known).as_py() or 0)
    return listed, missing
