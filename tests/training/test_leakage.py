"""Nothing that is held out for the test reaches training, and one seed gives one model.

Some planted marker items occur only in test baskets, others only in validation baskets.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest

from tests.features import write_features
from visrec.interactions.split import SplitConfig
from visrec.jagged import Jagged
from visrec.models.artifact import save_artifact
from visrec.models.base import ModelTraits
from visrec.models.curatornet import CuratorNetConfig
from visrec.sampling.guidelines import GUIDELINES
from visrec.sampling.triples import SamplingConfig
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.training.data import TrainingData, TrainingInputs, load_training_data
from visrec.training.fit import TrainingRecipe, build_trainer, train_to_end, training_metrics
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainTask, build_artifact

USERS, DIM = 40, 6
ITEMS = [f"i{n:02}" for n in range(50)]
# They sort after all other items, so that among items of one moment they are the last.
VALIDATION_MARKERS, TEST_MARKERS = ["y0", "y1"], ["z0", "z1"]
ALL = [*ITEMS, *VALIDATION_MARKERS, *TEST_MARKERS]
By = Literal["basket", "item"]
Row = tuple[str, str, int]

# Together they use everything that training reads: baskets, counts, clusters and artists.
SAMPLINGS = {
    "candidates": SamplingConfig(candidates=20, popularity=0.5),
    "guidelines": SamplingConfig(guidelines=dict.fromkeys(GUIDELINES, 1.0), negatives="drawn"),
    "popular": SamplingConfig(negatives="drawn", popularity=0.5),
}
RECIPE = TrainingRecipe(
    "curatornet",
    CuratorNetConfig(item_width=8, user_width=8),
    TrainConfig(epochs=3, triples_per_epoch=512, batch_size=64),
    SAMPLINGS["candidates"],
)


def planted(by: By) -> tuple[list[Row], list[Row]]:
    """Rows of user, item and time: all others, and those of the test.

    Every fourth user has no validation rows, and every eighth has no test rows.
    """
    random = np.random.default_rng(0)
    train: list[Row] = []
    test: list[Row] = []
    for u in range(USERS):
        user, shuffled = f"u{u:02}", random.permutation(ITEMS)
        baskets = [shuffled[2 * hour :][:2] for hour in range(1 + u % 4)]
        if u % 8 == 0:
            baskets = [shuffled[:1]]
        train += [(user, item, hour) for hour, basket in enumerate(baskets) for item in basket]
        if u % 4:
            train.append((user, VALIDATION_MARKERS[u % 2], 8))
        if u % 8:
            # With a split by item, the two markers share a moment, as rows of one basket do.
            test.append((user, TEST_MARKERS[u // 2 % 2], 8 if by == "item" else 9))
            if by == "basket":
                test += [(user, item, 9) for item in shuffled[10:12]]
    return train, test


def load(folder: Path, rows: list[Row], split: SplitConfig) -> TrainingData:
    """The training data of a workspace with these rows, and features and artists of all items."""
    store = Store.at(str(folder))
    feature_ND = np.random.default_rng(1).normal(size=(len(ALL), DIM)).astype(np.float16)
    write_features(store, ALL, feature_ND)
    user_id, item_id, timestamp = map(list, zip(*rows, strict=True))
    log = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    store.write_table("log.parquet", log)
    artists = [f"a{n % 9}" for n in range(len(ALL))]
    store.write_table("items.parquet", pa.table({"item_id": ALL, "artist_id": artists}))
    return load_training_data(
        TrainingInputs(
            features=store,
            interactions=InteractionsConfig(),
            interactions_uri=store.uri("log.parquet"),
            items_table=InputTable(uri=store.uri("items.parquet"), key="items"),
            split=split,
            traits=ModelTraits(),
            sampling=SAMPLINGS["guidelines"],
        )
    )


def codes(markers: list[str]) -> set[int]:
    return {sorted(ALL).index(marker) for marker in markers}


def item_lists(value: Any) -> Iterator[set[int]]:
    """The items of every list of lists below a dataclass."""
    if isinstance(value, Jagged):
        yield set(value.values.tolist())
    elif dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            yield from item_lists(getattr(value, each.name))


@pytest.mark.parametrize("by", ["basket", "item"])
def test_no_test_item_reaches_training(by: By, tmp_path: Path) -> None:
    other_rows, test = planted(by)
    data = load(tmp_path, other_rows + test, SplitConfig(by=by))
    held_out = sorted((user, item) for user, item, _ in test)
    assert sorted(zip(*data.test_pairs.to_pydict().values(), strict=True)) == held_out
    lists = [*item_lists(data)]
    assert len(lists) >= 3  # training, validation's profiles and its targets
    assert not codes(TEST_MARKERS) & set().union(*lists)
    assert codes(VALIDATION_MARKERS) <= set(data.validation.targets.values.tolist())
    for before in (data.train, data.validation.profiles):
        assert not codes(VALIDATION_MARKERS) & set(before.values.tolist())


@pytest.mark.parametrize("by", ["basket", "item"])
def test_refit_has_the_data_of_a_training_without_validation(by: By, tmp_path: Path) -> None:
    other_rows, test = planted(by)
    held = load(tmp_path / "one", other_rows + test, SplitConfig(by=by))
    all_rows = load(tmp_path / "other", other_rows + test, SplitConfig(by=by, validation=False))
    assert not np.array_equal(held.train.values, all_rows.train.values)
    for name in ("values", "offsets"):
        np.testing.assert_array_equal(
            getattr(held.for_refit.train, name), getattr(all_rows.train, name)
        )
    np.testing.assert_array_equal(held.for_refit.basket_R, all_rows.basket_R)
    assert len(held.for_refit.validation) == 0


def train(data: TrainingData, recipe: TrainingRecipe, folder: Path) -> tuple[bytes, list[Any]]:
    """The bytes of the weights in the artifact, and the metrics of the training."""
    trainer = train_to_end(build_trainer(recipe, data), recipe, data, lambda _: None)
    trainer.model.load_state_dict(trainer.best_weights)
    job: Any = TrainTask(recipe, None, None, "model", "settings", 1, None)  # type: ignore[arg-type]
    save_artifact(build_artifact(job, data, trainer.model, {}), Store.at(str(folder)))
    return (folder / "model.safetensors").read_bytes(), [training_metrics(trainer.progress)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("by", ["basket", "item"])
def test_model_is_the_same_to_the_bit_without_the_test_rows(
    by: By, sampling: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(RECIPE, sampling=SAMPLINGS[sampling])
    other_rows, test = planted(by)
    with_test = load(tmp_path / "with", other_rows + test, SplitConfig(by=by))
    without = load(tmp_path / "without", other_rows, SplitConfig(test=False, by=by))
    assert len(with_test.validation) > 10
    one, other = (
        train(data, recipe, tmp_path / name)
        for name, data in (("one", with_test), ("other", without))
    )
    assert one[0] == other[0]
    assert one[1] == other[1]
    # Proof that this test can fail: with the test rows in training, the model differs.
    leaky = load(tmp_path / "leaky", other_rows + test, SplitConfig(test=False, by=by))
    assert train(leaky, recipe, tmp_path / "leak")[0] != one[0]


def test_one_seed_gives_one_model_to_the_byte(tmp_path: Path) -> None:
    rows, _ = planted("basket")
    data = load(tmp_path, rows, SplitConfig(test=False))
    other = dataclasses.replace(RECIPE, train=dataclasses.replace(RECIPE.train, seed=1))
    runs = [(RECIPE, "one"), (RECIPE, "again"), (other, "other")]
    one, again, other_seed = (train(data, recipe, tmp_path / name) for recipe, name in runs)
    assert one == again
    assert one[0] != other_seed[0]
    files = [{p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("one", "again")]
    assert files[0] == files[1]
