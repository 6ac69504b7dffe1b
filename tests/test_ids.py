"""Ids of large catalogues and of all users, whose text may exceed 2 GiB."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features import feature_identity, write_features
from tests.training import provenance
from visrec.evaluation.data import EvaluationInputs, prepare_evaluation
from visrec.features.decode import PictureLimits
from visrec.features.planning import plan_extraction
from visrec.ids import id_array, index_in, is_in, nearest_id
from visrec.interactions.split import SplitConfig
from visrec.models import MODELS
from visrec.models.artifact import Artifact, load_artifact, save_artifact
from visrec.recommend.inputs import ScoringInputs, prepare_scoring
from visrec.retrieval.rules import RulesConfig
from visrec.sources.images import PictureSource
from visrec.sources.interactions import InteractionsConfig
from visrec.sources.items import read_items
from visrec.storage.input_table import InputTable
from visrec.storage.schemas import HELD_OUT
from visrec.storage.store import Store
from visrec.training.data import TrainingData, TrainingInputs, load_training_data

IDENTITY = feature_identity(4)
ITEMS = [f"i{n}" for n in range(12)]
ROWS = [(f"u{u}", ITEMS[(u + 5 * n) % 12], 100 * n) for u in range(6) for n in range(3)]
VALUES = ["b", "a", "c"]
STRING_TYPES = [pa.string(), pa.large_string()]


# ------------------------------------------------------------------------------- ids of either type


@pytest.mark.parametrize("value_type", STRING_TYPES, ids=str)
@pytest.mark.parametrize("id_type", STRING_TYPES, ids=str)
@pytest.mark.parametrize("chunked", [False, True])
def test_ids_of_both_string_types_are_found(id_type: Any, value_type: Any, chunked: bool) -> None:
    ids, values = pa.array(["a", None, "x", "b"], id_type), pa.array(VALUES, value_type)
    if chunked:
        ids, values = (
            pa.chunked_array([ids[:1], ids[1:]]),
            pa.chunked_array([values[:2], values[2:]]),
        )
    assert index_in(ids, values).tolist() == [1, -1, -1, 0]
    assert is_in(ids, values).to_pylist() == [True, False, False, True]
    assert id_array(ids).equals(pa.array(["a", None, "x", "b"], pa.large_string()))


def test_array_of_the_right_type_is_not_copied() -> None:
    ids = pa.array(VALUES, pa.large_string())
    assert id_array(ids).buffers()[2].address == ids.buffers()[2].address


# ------------------------------------------------------------------ ids passed between the stages


def texts(value: Any, name: str) -> Iterator[tuple[str, pa.DataType]]:
    """Name and type of every text column inside a value, found recursively."""
    if isinstance(value, pa.Table):
        for column in value.column_names:
            yield from texts(value[column], f"{name}.{column}")
    elif isinstance(value, pa.Array | pa.ChunkedArray):
        if pa.types.is_string(value.type) or pa.types.is_large_string(value.type):
            yield name, value.type
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from texts(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from texts(each, f"{name}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, each in enumerate(value):
            yield from texts(each, f"{name}.{number}")


class Shop:
    """A small workspace whose tables contain plain strings, as other tools write them."""

    def __init__(self, folder: Path) -> None:
        self.store, self.folder = Store.at(str(folder / "features")), folder
        feature_ND = np.random.default_rng(0).normal(size=(len(ITEMS), 4)).astype(np.float16)
        write_features(self.store, ITEMS, feature_ND, rows_per_part=6)
        users, items, times = map(list, zip(*ROWS, strict=True))
        self.log = self.put("log", user_id=users, item_id=items, timestamp=times)
        kinds = [f"k{n % 3}" for n in range(len(ITEMS))]
        items = self.put("items", item_id=ITEMS, artist_id=kinds, category=kinds)
        self.items = InputTable(uri=items, key="items")
        users = self.put("users", user_id=["u0", "visitor"])
        self.users = InputTable(uri=users, key="users")
        self.blocked = self.put("blocked", item_id=ITEMS[:2], user_id=["u1", "u2"])
        self.images = self.put("images", item_id=ITEMS, uri=[f"/{item}.jpg" for item in ITEMS])

    def put(self, name: str, **columns: list[Any]) -> str:
        path = self.folder / f"{name}.parquet"
        table = pa.table(columns)
        assert pa.large_string() not in table.schema.types
        pq.write_table(table, path)
        return str(path)

    def training(self) -> TrainingData:
        traits = MODELS["deepstyle"].traits
        return load_training_data(
            TrainingInputs(
                features=self.store, interactions=InteractionsConfig(), interactions_uri=self.log,
                items_table=self.items, split=SplitConfig(), traits=traits, sampling=None,
            )
        )  # fmt: skip

    def model(self) -> Store:
        """A model with item ids, user ids and held-out rows."""
        data, config = self.training(), MODELS["deepstyle"].Config()
        model = MODELS["deepstyle"](config, data.sizes)
        store = Store.at(str(self.folder / "model"))
        artifact = Artifact(
            name="deepstyle", model=model, config=config, sizes=data.sizes, metrics={},
            item_ids=data.item_ids, user_ids=data.user_ids, provenance=provenance(data.provenance),
            model_id="m", held_out=data.test_pairs, categories=data.categories,
        )  # fmt: skip
        save_artifact(artifact, store)
        return store


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


def test_no_stage_holds_ids_with_32_bit_offsets(shop: Shop) -> None:
    model = shop.model()
    scoring = ScoringInputs(
        model=model, features=shop.store, interactions=InteractionsConfig(),
        interactions_uri=shop.log, items_table=shop.items, users_table=shop.users,
        rules=RulesConfig(cap=2, near_duplicate=0.99, blocked=shop.blocked),
    )  # fmt: skip
    evaluation = EvaluationInputs(
        models={"": model}, features=shop.store, interactions=InteractionsConfig(),
        interactions_uri=shop.log, items_table=shop.items, truth=None,
    )  # fmt: skip
    plan = plan_extraction(PictureSource(shop.images), shop.store, IDENTITY, PictureLimits())
    held = {
        "training": shop.training(),
        "artifact": load_artifact(model),
        "items": read_items(shop.items, pa.array(ITEMS)),
        "items without a table": read_items(None, pa.array(ITEMS)),
        "users": prepare_scoring(scoring, 2, "user_to_item", 3)[0],
        "neighbours": prepare_scoring(scoring, 2, "item_to_item", 3)[0],
        "evaluation": prepare_evaluation(evaluation),
        "listing": plan.listing,
        "stored": plan.stored,
    }
    found = dict(texts(held, "held"))
    assert {name for name, kind in found.items() if kind != pa.large_string()} == set()
    ids = ("item_ids", "user_ids", "query_ids", "item_id", "user_id", "artist_N", "uri", "digest")
    assert all(any(name.endswith(f".{each}") for name in found) for each in ids)
    assert len(found) >= 20


def test_id_files_contain_plain_strings(shop: Shop) -> None:
    model = shop.model()
    for name in ("item_ids", "user_ids", "held_out"):
        assert set(model.read_table(f"{name}.parquet").schema.types) == {pa.string()}
    assert model.read_table("held_out.parquet").schema.equals(HELD_OUT)
    for name in [entry.name for entry in shop.store.list("part-")]:
        assert shop.store.read_table(name).schema.field("item_id").type == pa.string()


def test_table_without_arrow_schema_is_read_as_plain_strings(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    store.write_table("x.parquet", pa.table({"id": id_array(pa.array(VALUES))}), store_schema=False)
    table = store.read_table("x.parquet")
    assert table["id"].type == pa.string()
    assert table["id"].to_pylist() == VALUES


@pytest.mark.parametrize(
    ("found", "meant"),
    [
        ("U17", "u17"),
        (" u17", "u17"),
        ("007", "7"),
        ("ann@shop.og", "ann@shop.org"),
        ("user-00398", "user-0398"),
        ("zebra", None),
        ("", None),
    ],
)
def test_nearest_id_is_what_was_meant(found: str, meant: str | None) -> None:
    known = pa.chunked_array([["u17", "7", None], ["ann@shop.org", "bob@shop.org", "user-0398"]])
    assert nearest_id(found, known) == ("" if meant is None else f"; did you mean {meant!r}?")
