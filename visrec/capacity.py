"""What a run takes of memory and disk, estimated as in docs/scaling.md."""

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

VECTOR_DIM = 200  # of the models' item vectors, by default
MEMORY_PER_INTERACTION = 125  # as strings and sorted: 2.5 GB measured for 20 M of them
SCORING_PROCESS = 350_000_000  # Python, Ray and torch: measured with few items
BYTES_OF_AN_ENTRY = 9  # of a list in its file, compressed
ENTRY_SCORED = 60  # bytes of an entry of the shard that a process works on: codes, table and file
ENTRY_CARRIED = 80  # the same of the last publication: its file, its ids as text, its rows
ITEM_CARRIED = 170  # bytes of an item of the last publication: its id and its fingerprint
FRESH_SHARE = 0.25  # with more new items than this no list is carried over: a search costs no more
FILE = 32_000_000  # bytes that a file of lists has at most
ENTRIES = 100  # of a list, by default


def shards_for(owners: int, k: int) -> int:
    """How many files the lists of so many owners go into: a power of two.

    So the number hardly ever changes from night to night; where it does, no list can be carried
    over. A file is read whole by who checks it or carries its lists over, which bounds it; and
    processes share the work by files, so there are up to 64 before one has more than 10,000 owners.
    """
    for_size = owners * k * BYTES_OF_AN_ENTRY / FILE
    for_work = min(64, owners / 10_000)
    return int(2 ** math.ceil(math.log2(max(8, for_size, for_work))))


@dataclass(frozen=True)
class Size:
    """How much data a run is for."""

    users: int
    items: int
    interactions: int
    feature_dim: int

    @property
    def features(self) -> int:
        """Bytes of the features, in float16."""
        return 2 * self.items * self.feature_dim

    @property
    def vectors(self) -> int:
        """Bytes of the item vectors, in float32."""
        return 4 * self.items * VECTOR_DIM

    @property
    def object_store(self) -> int:
        """Bytes that every node's processes share: features in training, vectors in scoring."""
        return 4 * self.interactions + 16 * self.users + max(self.features, self.vectors)

    @property
    def preparing(self) -> int:
        """Bytes of the task that puts the data together; features twice while they are sorted."""
        return MEMORY_PER_INTERACTION * self.interactions + 2 * self.features + self.vectors

    @property
    def scoring(self) -> int:
        """Bytes of one scoring process: the items as bytes, a shard's lists and, of the last
        publication, the same shard's and the items; and new items, packed a second time."""
        entries = ENTRIES * -(-self.users // shards_for(self.users, ENTRIES))
        fresh = int(FRESH_SHARE * self.items) * (5 * VECTOR_DIM + 4)
        packed = (VECTOR_DIM + 4) * self.items
        carried = ENTRY_CARRIED * entries + ITEM_CARRIED * self.items + fresh
        return SCORING_PROCESS + packed + ENTRY_SCORED * entries + carried

    @property
    def written(self) -> int:
        """Bytes that a night adds to the workspace."""
        return self.features + BYTES_OF_AN_ENTRY * ENTRIES * self.users


def room(nodes: Iterable[Mapping[str, float]], each: Mapping[str, float]) -> int:
    """How many processes that ask for `each` have a place at once, none of them split.

    Args:
        nodes: what each node has.
        each: what one process asks for.
    """
    if not any(each.values()):
        return sys.maxsize
    wanted = {name: amount for name, amount in each.items() if amount}
    return sum(
        min(int(node.get(name, 0) // amount) for name, amount in wanted.items()) for node in nodes
    )
