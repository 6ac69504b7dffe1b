"""Memory and disk that a run needs, estimated as in docs/scaling.md."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEFAULT_K = 100  # entries of a list
VECTOR_DIM = 200  # of item vectors, the default of most models
BYTES_PER_INTERACTION = 125  # as strings while they are sorted: 2.5 GB measured for 20 M
SCORING_PROCESS_BYTES = 350_000_000  # Python, Ray and torch, measured with few items
BYTES_PER_ENTRY = 9  # of a list in its file, compressed
BYTES_PER_SCORED_ENTRY = 60  # of the shard that a process works on: codes, table and file
BYTES_PER_REUSED_ENTRY = 80  # of the same shard of the last publication: file, ids, rows
BYTES_PER_REUSED_ITEM = 170  # of an item of the last publication: id and fingerprint
MAX_FRESH_ITEM_SHARE = 0.25  # with more, scoring all users costs no more than reusing lists
MAX_FILE_BYTES = 32_000_000  # of a file of lists


def shard_count(queries: int, k: int) -> int:
    """Number of files for the lists of all queries: a power of two.

    Lists can be reused only while this number stays the same, so it rarely changes from night to
    night. The files bound the memory of a process that verifies or reuses lists, since it reads
    whole files. They are also the unit of work, so up to 64 are made before a file has more than
    10,000 queries.
    """
    for_size = queries * k * BYTES_PER_ENTRY / MAX_FILE_BYTES
    for_work = min(64, queries / 10_000)
    return int(2 ** math.ceil(math.log2(max(8, for_size, for_work))))


@dataclass(frozen=True)
class WorkloadSize:
    """How much data a run processes."""

    users: int
    items: int
    interactions: int
    feature_dim: int

    @property
    def feature_bytes(self) -> int:
        """Bytes of the features, in float16."""
        return 2 * self.items * self.feature_dim

    @property
    def vector_bytes(self) -> int:
        """Bytes of the item vectors, in float32."""
        return 4 * self.items * VECTOR_DIM

    @property
    def object_store_bytes(self) -> int:
        """Bytes that the processes of each node share: features in training, vectors in scoring."""
        shared = max(self.feature_bytes, self.vector_bytes)
        return 4 * self.interactions + 16 * self.users + shared

    @property
    def prepare_bytes(self) -> int:
        """Bytes of the task that joins the data; it holds the features twice to sort them."""
        log = BYTES_PER_INTERACTION * self.interactions
        return log + 2 * self.feature_bytes + self.vector_bytes

    @property
    def scoring_process_bytes(self) -> int:
        """Bytes of one scoring process: the items packed as bytes, the lists of its shard, the same
        shard and the items of the last publication, and the fresh items packed once more."""
        entries = DEFAULT_K * -(-self.users // shard_count(self.users, DEFAULT_K))
        fresh_items = int(MAX_FRESH_ITEM_SHARE * self.items) * (5 * VECTOR_DIM + 4)
        packed = (VECTOR_DIM + 4) * self.items
        reused = BYTES_PER_REUSED_ENTRY * entries + BYTES_PER_REUSED_ITEM * self.items + fresh_items
        return SCORING_PROCESS_BYTES + packed + BYTES_PER_SCORED_ENTRY * entries + reused

    @property
    def output_bytes(self) -> int:
        """Bytes that one night adds to the workspace."""
        return self.feature_bytes + BYTES_PER_ENTRY * DEFAULT_K * self.users


def processes_that_fit(
    nodes: Iterable[Mapping[str, float]], per_process: Mapping[str, float]
) -> int:
    """How many processes can run at once, each on one node.

    Args:
        nodes: resources of each node.
        per_process: resources that one process requests.
    """
    requested = {name: amount for name, amount in per_process.items() if amount}
    if not requested:
        return sys.maxsize
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in requested.items())
        for node in nodes
    )
