"""Memory and disk that a run needs, estimated as in docs/scaling.md."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from visrec.scratch import MAX_BYTES_IN_MEMORY

DEFAULT_K = 100  # entries of a list
# Of the default model: an item's vector in a list (with activity and EASE) and in a profile.
LISTED_DIM = 200 + 8 + 64
PROFILE_DIM = 200 + 64
SCORING_PROCESS_BYTES = 350_000_000  # Python, Ray and torch, measured with few items
TASK_BYTES = 150_000_000  # Python, Ray and pyarrow
# Of the tasks that read users in partitions (benchmarks/results/recommend_scale_nodes.json).
PARTITION_ROWS = 2_000_000  # at most, when the number of partitions is chosen
BYTES_PER_SORTED_ROW = 200  # of a partition that is sorted
BYTES_PER_SUMMED_ROW = 60  # of a partition whose users are counted
BYTES_PER_SUMMED_ITEM = 150  # of these counts, two of which are added up
BYTES_PER_PREPARED_ITEM = 500  # ids, counts and fingerprints
# Of the task that joins the partitions for training: as parts and joined. Not measured.
BYTES_PER_JOINED_ROW = 24
BYTES_PER_JOINED_USER = 40
BYTES_PER_SHARED_ROW = 20  # of an interaction in training: its item, basket and time
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
    whole files. They are also the unit of work: with up to 640,000 queries, files have at most
    10,000 each; beyond, the size limit decides.
    """
    for_size = queries * k * BYTES_PER_ENTRY / MAX_FILE_BYTES
    for_work = min(64, queries / 10_000)
    return int(2 ** math.ceil(math.log2(max(8, for_size, for_work))))


def partition_count(rows: int) -> int:
    """The number of partitions for so many rows: a power of two, so that it rarely changes."""
    return 1 << max(0, (rows - 1) // PARTITION_ROWS).bit_length()


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
    def _vector_array_bytes(self) -> tuple[int, int]:
        """Bytes of the two arrays of item vectors, in float32."""
        return 4 * self.items * LISTED_DIM, 4 * self.items * PROFILE_DIM

    @property
    def vector_bytes(self) -> int:
        """Bytes of the item vectors."""
        return sum(self._vector_array_bytes)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the scratch files of the task that makes the item vectors."""
        arrays = (self.feature_bytes, *self._vector_array_bytes)
        return sum(arrays) - _in_memory(*arrays)

    @property
    def object_store_bytes(self) -> int:
        """Bytes that the processes of each node share: features in training, vectors in scoring."""
        shared = max(self.feature_bytes, self.vector_bytes)
        return BYTES_PER_SHARED_ROW * self.interactions + 16 * self.users + shared

    @property
    def item_task_bytes(self) -> int:
        """Bytes of the task that makes the item vectors: features and vectors that are not too
        large for memory."""
        in_memory = _in_memory(self.feature_bytes, *self._vector_array_bytes)
        return SCORING_PROCESS_BYTES + in_memory + BYTES_PER_PREPARED_ITEM * self.items

    @property
    def partition_task_bytes(self) -> int:
        """Bytes of the tasks that sort a partition, and of those that count its users' items."""
        rows = self.interactions // partition_count(self.interactions)
        sort = TASK_BYTES + BYTES_PER_SORTED_ROW * rows
        count = BYTES_PER_SUMMED_ROW * rows + BYTES_PER_SUMMED_ITEM * self.items
        return max(sort, SCORING_PROCESS_BYTES + count)

    @property
    def training_task_bytes(self) -> int:
        """Bytes of the task that joins the partitions for training, with the features."""
        log = BYTES_PER_JOINED_ROW * self.interactions + BYTES_PER_JOINED_USER * self.users
        return SCORING_PROCESS_BYTES + _in_memory(self.feature_bytes) + log

    @property
    def prepare_bytes(self) -> int:
        """Bytes of the largest task that prepares something."""
        return max(self.item_task_bytes, self.partition_task_bytes, self.training_task_bytes)

    @property
    def scoring_process_bytes(self) -> int:
        """Bytes of one scoring process: the items packed as bytes, the lists of its shard, the same
        shard and the items of the last publication, and the fresh items packed once more."""
        entries = DEFAULT_K * -(-self.users // shard_count(self.users, DEFAULT_K))
        fresh_item_bytes = int(MAX_FRESH_ITEM_SHARE * self.items) * (5 * LISTED_DIM + 4)
        packed = (LISTED_DIM + 4) * self.items
        reused = (
            BYTES_PER_REUSED_ENTRY * entries + BYTES_PER_REUSED_ITEM * self.items + fresh_item_bytes
        )
        return SCORING_PROCESS_BYTES + packed + BYTES_PER_SCORED_ENTRY * entries + reused

    @property
    def output_bytes(self) -> int:
        """Bytes that one night adds to the workspace."""
        return self.feature_bytes + BYTES_PER_ENTRY * DEFAULT_K * self.users


def _in_memory(*arrays: int) -> int:
    """The bytes of these arrays that are not in scratch files, given the bytes of each array."""
    return sum(size for size in arrays if size <= MAX_BYTES_IN_MEMORY)


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
