"""Estimates of memory, disk and processes, compared with docs/scaling.md."""

import pytest

from visrec.capacity import MAX_FILE_BYTES, WorkloadSize, processes_that_fit, shard_count


@pytest.mark.parametrize(
    ("nodes", "per_process", "expected"),
    [
        ([{"CPU": 4}], {"CPU": 2}, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 2),  # 6 CPUs, and no process spans nodes
        ([{"CPU": 16}, {"CPU": 4, "GPU": 2}], {"CPU": 1, "GPU": 1}, 2),
        ([{"CPU": 1, "GPU": 8}], {"CPU": 2, "GPU": 1}, 0),
        ([{"CPU": 4}], {"CPU": 1, "GPU": 0}, 4),
        ([], {"CPU": 1}, 0),
    ],
)
def test_processes_that_fit_never_span_nodes(
    nodes: list[dict[str, float]], per_process: dict[str, float], expected: int
) -> None:
    assert processes_that_fit(nodes, per_process) == expected


@pytest.mark.parametrize("factor", [1, 10])
def test_memory_matches_the_scaling_tables(factor: int) -> None:
    """The rows of docs/scaling.md for 1 M users x 100 k items and 10 M x 1 M, D = 1280."""
    users, items = 1_000_000 * factor, 100_000 * factor
    size = WorkloadSize(users=users, items=items, interactions=20 * users, feature_dim=1280)
    assert size.vector_bytes == factor * 214_400_000
    assert size.object_store_bytes - size.feature_bytes == factor * 416_000_000
    # A tenth of the items has arrays that are small enough for memory.
    assert size.scratch_bytes == (0 if factor == 1 else 2_560_000_000 + 2_144_000_000)
    tables = {
        "item_task_bytes": (0.87e9, 0.85e9),
        "partition_task_bytes": (0.44e9, 0.6e9),
        "training_task_bytes": (1.1e9, 5.6e9),
    }
    for task, (one, ten) in tables.items():
        assert getattr(size, task) == pytest.approx(one if factor == 1 else ten, rel=0.1)
    assert size.prepare_bytes == size.training_task_bytes


def test_memory_with_small_features_matches_the_measurement() -> None:
    size = WorkloadSize(users=1_000_000, items=100_000, interactions=20_000_000, feature_dim=64)
    assert size.object_store_bytes == 214_400_000 + 416_000_000  # vectors exceed such features
    # A process, the packed items, 15,625 lists of 100 entries; the same lists of the last night,
    # its items, and a quarter of the items again, in float32 and packed.
    parts = (350e6, 27.6e6, 60 * 1_562_500), (80 * 1_562_500, 17e6, 25_000 * 1_364)
    assert size.scoring_process_bytes == pytest.approx(sum(map(sum, parts)))
    assert size.output_bytes == pytest.approx(0.9e9, rel=0.05)


def test_memory_of_the_task_that_makes_item_vectors_is_within_a_fifth_of_the_measurement() -> None:
    """MB of recommend_scale_hybrid.json."""
    size = WorkloadSize(200_000, 1_000_000, 4_000_000, feature_dim=1280)
    assert size.item_task_bytes / 2**20 == pytest.approx(827, rel=0.2)


@pytest.mark.parametrize(
    ("users", "items", "partition_task"), [(2_000_000, 100_000, 461), (10_000_000, 1_000_000, 695)]
)
def test_memory_of_tasks_on_three_nodes_is_within_a_fifth_of_the_measurement(
    users: int, items: int, partition_task: int
) -> None:
    """MB of recommend_scale_nodes.json."""
    size = WorkloadSize(users, items, 20 * users, feature_dim=64)
    assert size.partition_task_bytes / 2**20 == pytest.approx(partition_task, rel=0.2)


def test_shard_count_follows_the_size_and_rarely_changes() -> None:
    counts = [
        shard_count(queries, 100) for queries in (0, 600, 80_000, 80_001, 10**6, 10**7, 10**8)
    ]
    assert counts == [8, 8, 8, 16, 64, 512, 4096]
    assert shard_count(10**6, 10_000) == 64 * 64


@pytest.mark.parametrize("queries", [10**6, 10**7, 10**8])
def test_shard_count_bounds_the_size_of_a_file(queries: int) -> None:
    assert MAX_FILE_BYTES / 4 < queries * 900 / shard_count(queries, 100) <= MAX_FILE_BYTES
