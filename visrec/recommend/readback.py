"""Reads the written files of a run back and checks them, because they are what readers will get.

This module compares files with their hashes, and finds out what each should hold; what is wrong
with the lists of one table is counted by `visrec.publication.verify`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from visrec.ids import is_in
from visrec.models.arrays import ItemArrays
from visrec.publication.gate_context import FeatureCounts
from visrec.publication.list_tables import Lists, read_lists
from visrec.publication.run_spec import RunSpec, has_metadata
from visrec.publication.verify import Expected, ListChecks, count_faults
from visrec.recommend.inputs import ScoringData
from visrec.recommend.popular import PopularLists
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.queries import Queries
from visrec.recommend.rescore import Rescorer, are_fallback_scores
from visrec.retrieval.similar import Kind
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.tables import read_batches

Ints = npt.NDArray[np.int64]
# Queries compared with the last publication: enough to estimate a share to within half a percent.
_COMPARED_QUERIES = 10_000


@dataclass(frozen=True)
class WrittenRun:
    """A run whose lists have been written.

    Attributes:
        spec: the run.
        sha256: SHA-256 of each file of lists, as it was written.
        last: the publication that the gates compare it with, if any.
    """

    spec: RunSpec
    sha256: Mapping[str, str]
    last: PublishedRun | None = None


@dataclass(frozen=True)
class RunChecks:
    """What the gates count over a run. The counts of two sets of shards add up: `a + b`.

    Attributes:
        lists: what is wrong with the lists.
        recounted_N: (N,) in how many profiles each item is, counted here again.
        popular_N: (N,) in how many of the model's own lists each item would be, if they held the
            most popular items instead.
    """

    lists: ListChecks
    recounted_N: Ints
    popular_N: Ints

    @staticmethod
    def none(items: int) -> "RunChecks":
        """The counts of no shard."""
        zeros_N = np.zeros(items, np.int64)
        return RunChecks(ListChecks(listed_N=zeros_N), zeros_N, zeros_N)

    def __add__(self, other: "RunChecks") -> "RunChecks":
        return RunChecks(
            self.lists + other.lists,
            self.recounted_N + other.recounted_N,
            self.popular_N + other.popular_N,
        )

    def total_lists(self, fallback_N: npt.NDArray[np.float32]) -> ListChecks:
        """What is wrong with the lists of all shards.

        If `fallback_N` does not follow from the profiles, every rescored fallback list counts as
        wrong.

        Args:
            fallback_N: (N,) the scores of the fallback lists.
        """
        if are_fallback_scores(fallback_N, self.recounted_N):
            return self.lists
        return replace(self.lists, not_most_popular=self.lists.rescored_fallbacks)


def read_back_shards(
    data: ScoringData, written: WrittenRun, shards: Sequence[int], rescorer: Rescorer | None = None
) -> RunChecks:
    """Checks some shards of a run, with one shard in memory at a time.

    If the last publication has another number of shards, any of its files may hold queries of a
    shard. Then all of them are read for each shard, until `_COMPARED_QUERIES` queries have been
    compared.

    Args:
        data: the input of the scoring.
        written: the run.
        shards: numbers of the shards.
        rescorer: scores a sample of the lists again.
    """
    spec, last = written.spec, written.last
    total = RunChecks.none(len(data.item_ids))
    popular = PopularLists(data, spec.k)
    same_shards = last is not None and len(last.parts) == spec.shards
    compared = damaged = 0
    for shard in shards:
        queries = data.queries.read(shard)
        last_lists = None
        if last is not None and (same_shards or compared < _COMPARED_QUERIES):
            compared += len(queries)
            names = [last.parts[shard]] if same_shards else last.parts
            last_lists, unusable = _read_last_lists(last, spec.kind, names, queries.query_ids)
            damaged += unusable
        total += RunChecks(
            _read_back_shard(data, queries, written, shard, last_lists, rescorer),
            np.bincount(queries.profiles.values, minlength=len(data.item_ids)),
            popular.counts(queries),
        )
    lists = replace(total.lists, damaged_last_files=damaged)
    if rescorer is not None:
        lists += rescorer.checks()
    return replace(total, lists=lists)


def _read_back_shard(
    data: ScoringData,
    queries: Queries,
    written: WrittenRun,
    shard: int,
    last_lists: Lists | None,
    rescorer: Rescorer | None,
) -> ListChecks:
    """The counts of one shard's file."""
    spec = written.spec
    name = written.spec.part(shard)
    content = spec.run.read(name)
    expected = expected_shard(data, queries, spec)
    if hashlib.sha256(content).hexdigest() != written.sha256[name]:
        return _damaged_shard(expected)
    file = pq.ParquetFile(pa.BufferReader(content))
    is_altered = not has_metadata(file.schema_arrow, {**spec.metadata, "visrec.shard": str(shard)})
    table = file.read()
    if rescorer is not None and (lists := read_lists(table, spec.kind)) is not None:
        rescorer.add_shard(shard, queries, lists)
    return replace(count_faults(table, expected, last_lists), altered_files=int(is_altered))


def read_back_and_rescore(
    data: ScoringData, arrays: ItemArrays, model: Store, written: WrittenRun, shards: Sequence[int]
) -> RunChecks:
    """As `read_back_shards`, with a sample of the lists scored again by the model."""
    spec = written.spec
    # The seed depends on the run alone, so that every check samples the same lists.
    identity = str(sorted(spec.metadata.items())).encode()
    seed = int(hashlib.sha256(identity).hexdigest()[:15], 16)
    rescorer = Rescorer(data, arrays, model, spec.kind, spec.k, seed)
    return read_back_shards(data, written, shards, rescorer)


def expected_shard(data: ScoringData, queries: Queries, spec: RunSpec) -> Expected:
    """What the table of some queries should hold, from the input of the scoring."""
    return Expected(
        item_ids=data.item_ids,
        available_N=data.available_N,
        query_ids=queries.query_ids,
        consumed=queries.profiles,
        blocked=queries.blocked,
        cold_U=queries.cold_U,
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
            number of shards, because queries are assigned to shards by their ids.
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
) -> FeatureCounts:
    """How many items the items table calls available, and how many of them have no feature."""
    available = missing = 0
    if items_table is not None:
        for batch in read_batches(items_table, schemas.ITEMS):
            if "available" in batch.column_names:
                batch = batch.filter(pc.fill_null(batch["available"], True))
            available += len(batch)
            has_feature = is_in(batch["item_id"], item_ids)
            missing += len(batch) - int(pc.sum(has_feature).as_py() or 0)
    return FeatureCounts(available, missing)
