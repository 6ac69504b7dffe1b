"""Loading: training rows in their baskets; clusters and artists only if a guideline uses them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.features import write_features
from tests.interactions import assert_equal, prepared_root
from visrec.errors import InputError
from visrec.interactions.log import ReadReport
from visrec.interactions.split import SplitConfig
from visrec.models.base import ModelTraits
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.training import data as training_data
from visrec.training.data import TrainingData, TrainingInputs, load_training_data

IDS = [f"i{n:02}" for n in range(40)]
# User, item, time: the last basket of a user is for the test, the one before for validation.
ROWS = [
    *(("a", 5, 10), ("a", 3, 10), ("a", 9, 20), ("a", 8, 30), ("a", 7, 30), ("a", 1, 40)),
    *(("a", 2, 50), ("b", 4, 10), ("c", 6, 10), ("c", 0, 20), ("c", 11, 30), ("c", 12, 40)),
]
ALL_ROWS = InteractionsConfig()
NEXT = SamplingConfig(guidelines={"next_basket": 1.0}, negatives="drawn")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Features, interactions, and an items table in which every third item has no artist."""
    store = Store.at(str(tmp_path))
    feature_ND = np.random.default_rng(0).normal(size=(len(IDS), 4)).astype(np.float16)
    write_features(store, IDS, feature_ND)
    user_id, item, timestamp = map(list, zip(*ROWS, strict=True))
    item_id = [IDS[n] for n in item]
    log = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    store.write_table("log.parquet", log)
    artist_id = [f"artist {n % 3}" if n % 3 else None for n in range(len(IDS))]
    items = {"item_id": IDS, "artist_id": artist_id, "category": ["hat"] * len(IDS)}
    store.write_table("items.parquet", pa.table(items))
    return store


def _load(
    store: Store, interactions: InteractionsConfig = ALL_ROWS, **changes: Any
) -> TrainingData:
    fields: dict[str, Any] = {
        "features": store,
        "interactions": interactions,
        "interactions_uri": store.uri("log.parquet"),
        "items_table": InputTable(uri=store.uri("items.parquet"), key="items"),
        "split": SplitConfig(),
        "traits": ModelTraits(),
        "sampling": NEXT,
    }
    return load_training_data(TrainingInputs(**{**fields, **changes}))


def test_training_rows_are_in_time_order_with_their_baskets(store: Store) -> None:
    data = _load(store)
    assert [data.train[user].tolist() for user in range(3)] == [[3, 5, 9, 7, 8], [4], [6, 0]]
    assert data.basket_R.tolist() == [0, 0, 1, 2, 2, 0, 0, 1]
    assert data.sampling_index.basket_range_R[0].tolist() == [0, 0, 2, 3, 3, 5, 6, 7]
    assert data.sampling_index.basket_range_R[1].tolist() == [2, 2, 3, 5, 5, 6, 7, 8]


@pytest.mark.parametrize("partitions", [1, 3, 17])
def test_prepared_interactions_give_the_same_data(store: Store, partitions: int) -> None:
    root = prepared_root(store, ALL_ROWS, store.uri("log.parquet"), partitions)
    assert_equal(_load(store, prepared=root), _load(store))


@pytest.mark.parametrize("is_marked", [True, False])
def test_provenance_tells_whether_a_column_marked_the_test_rows(
    store: Store, is_marked: bool
) -> None:
    if is_marked:
        log = store.read_table("log.parquet")
        flags = [time > 30 for time in log["timestamp"].to_pylist()]
        store.write_table("log.parquet", log.append_column("evaluation", [flags]))
    assert _load(store).provenance.interactions.has_marked_test_rows == is_marked


def test_clusters_and_artists_are_loaded_for_guidelines_that_use_them(store: Store) -> None:
    data = _load(store)
    assert data.clusters is not None
    assert data.clusters.count == 4  # of ten items each on average
    assert len(data.clusters.cluster_N) == len(IDS)
    assert data.artist_N is not None
    assert data.artist_N.tolist() == [[-1, 0, 1][n % 3] for n in range(len(IDS))]
    assert [*store.list("_clusters-")]


@pytest.mark.parametrize("sampling", [None, SamplingConfig(guidelines={"random": 1.0})])
def test_clusters_and_artists_are_not_loaded_if_no_guideline_uses_them(
    store: Store, sampling: SamplingConfig | None
) -> None:
    data = _load(store, sampling=sampling)
    assert data.clusters is None
    assert data.artist_N is None
    assert not [*store.list("_clusters-")]


def test_artists_are_none_without_an_items_table(store: Store) -> None:
    data = _load(store, items_table=None)
    assert data.artist_N is None
    assert data.clusters is not None


@pytest.mark.parametrize(("required", "names"), [(True, ("hat",)), (False, ())])
def test_categories_are_loaded_only_for_a_model_that_requires_them(
    store: Store, required: bool, names: tuple[str, ...]
) -> None:
    data = _load(store, traits=ModelTraits(requires_categories=required))
    assert data.categories == names
    assert data.category_N is not None
    assert set(data.category_N.tolist()) == {0 if required else -1}


def test_items_without_categories_are_refused_for_a_model_that_requires_them(store: Store) -> None:
    items = store.read_table("items.parquet")
    store.write_table("items.parquet", items.set_column(2, "category", [[" "] * len(items)]))
    _load(store)
    with pytest.raises(
        InputError, match=r"None of the 40 items .* has a category in .* \(--items\)"
    ):
        _load(store, traits=ModelTraits(requires_categories=True))


def test_empty_parts_of_the_split_are_noted_and_rows_are_counted(store: Store) -> None:
    assert _load(store).notes == ()
    assert _load(store).read_report == ReadReport(len(ROWS), {})
    log = store.read_table("log.parquet")
    log = log.set_column(2, "timestamp", pa.array([0] * len(ROWS)))
    store.write_table("log.parquet", log.append_column("rating", pa.array([5.0] * 11 + [1.0])))
    data = _load(store, interactions=InteractionsConfig(min_rating=4))
    assert [note[:23] for note in data.notes] == [
        "No user has 3 baskets, ",
        "No user has 2 baskets, ",
    ]
    assert data.read_report == ReadReport(len(ROWS), {"rated below min_rating": 1})


@pytest.mark.parametrize("name", ["log.parquet", "items.parquet"])
def test_input_that_changes_while_it_is_read_is_refused(
    store: Store, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_items: Any = training_data.read_items

    def read_and_change(*args: Any) -> Any:
        items = read_items(*args)
        table = store.read_table(name)
        store.write_table(name, table.slice(0, len(table) - 1))
        return items

    monkeypatch.setattr(training_data, "read_items", read_and_change)
    with pytest.raises(InputError, match=r"changed while they were read: (items|interactions)"):
        _load(store)
