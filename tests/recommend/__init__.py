"""Scoring data of tests, whose queries are in memory."""

from dataclasses import replace
from typing import Any

import numpy as np

from visrec.jagged import offsets_from_lengths
from visrec.recommend.inputs import ScoringData
from visrec.recommend.queries import QueriesInMemory, read_all_queries


def with_queries(data: ScoringData, **changes: Any) -> ScoringData:
    """The data with other fields of the queries, which stay in their shards."""
    source = data.queries
    lengths = [len(source.read(shard)) for shard in range(source.shards)]
    queries = replace(read_all_queries(source), **changes)
    return replace(data, queries=QueriesInMemory(queries, offsets_from_lengths(np.array(lengths))))
