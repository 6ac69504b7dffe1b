"""What a model takes: pictures, texts or both, and what an item without a text has."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.features import write_features
from visrec.errors import InputError
from visrec.features.item_features import FeatureTables, load_item_features
from visrec.jagged import Jagged
from visrec.models.base import Catalogue, Sizes
from visrec.models.visrank import VisRank, VisRankConfig
from visrec.storage.store import Store

PICTURES, TEXTS = ["a", "b", "c", "d", "e"], ["z", "e", "c", "a"]


def random(rows: int, dim: int, seed: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).normal(3, 2, (rows, dim)).astype(np.float16)


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Store, Store]:
    pictures, text = (Store.at(str(tmp_path / name)) for name in ("features", "text_features"))
    write_features(pictures, PICTURES, random(5, 6, 0))
    write_features(text, TEXTS, random(4, 3, 1))
    return pictures, text


def test_one_table_is_loaded_as_it_is(stores: tuple[Store, Store]) -> None:
    pictures = load_item_features(FeatureTables.of("pictures", *stores))
    assert pictures.item_ids.to_pylist() == PICTURES
    np.testing.assert_array_equal(pictures.feature_ND, random(5, 6, 0))
    text = load_item_features(FeatureTables.of("text", *stores))
    assert text.item_ids.to_pylist() == sorted(TEXTS)
    np.testing.assert_array_equal(text.feature_ND, random(4, 3, 1)[[3, 2, 1, 0]])
    assert (pictures.visual_dim, text.visual_dim) == (6, 3)


def test_both_are_side_by_side_and_a_missing_text_is_zero_once_scaled(
    stores: tuple[Store, Store],
) -> None:
    both = load_item_features(FeatureTables.of("both", *stores))
    assert both.item_ids.to_pylist() == PICTURES
    assert (both.visual_dim, both.without_text) == (6, 2)
    np.testing.assert_array_equal(both.feature_ND[:, :6], random(5, 6, 0))
    np.testing.assert_array_equal(both.feature_ND[[0, 2, 4], 6:], random(4, 3, 1)[[3, 2, 1]])
    model = VisRank(VisRankConfig(), Sizes(items=5, users=0, feature_dim=9))
    model.fit(Catalogue(both.feature_ND, np.arange(5)), Jagged.empty(0))
    scaled_ND = model.feature_scale(torch.from_numpy(both.feature_ND).float())
    assert scaled_ND[[1, 3], 6:].abs().max() < 5e-3  # what rounding to float16 leaves
    assert scaled_ND[[0, 2, 4], 6:].abs().min() > 1e-2


def test_missing_text_stays_what_it_was_in_training(
    stores: tuple[Store, Store], tmp_path: Path
) -> None:
    trained = load_item_features(FeatureTables.of("both", *stores))
    more = Store.at(str(tmp_path / "more"))
    write_features(more, [*PICTURES, "z"], random(6, 6, 0))
    tables = FeatureTables.of("both", more, stores[1])
    tonight = load_item_features(tables, trained.mean_text_T)
    assert trained.mean_text_T is not None
    np.testing.assert_array_equal(tonight.feature_ND[[1, 3], 6:], [trained.mean_text_T] * 2)
    np.testing.assert_array_equal(tonight.feature_ND[5, 6:], random(4, 3, 1)[0])
    assert not np.array_equal(load_item_features(tables).mean_text_T, trained.mean_text_T)


def test_texts_of_other_items_are_refused(stores: tuple[Store, Store], tmp_path: Path) -> None:
    other = Store.at(str(tmp_path / "other"))
    write_features(other, ["A.jpg", "B.jpg"], random(2, 3, 1))
    with pytest.raises(InputError, match=r"None of the 5 items.*--text_features"):
        load_item_features(FeatureTables.of("both", stores[0], other))


@pytest.mark.parametrize("kind", ["text", "both"])
def test_missing_texts_are_refused(stores: tuple[Store, Store], kind: str) -> None:
    with pytest.raises(InputError, match="--text_features"):
        FeatureTables.of(kind, stores[0], None)  # type: ignore[arg-type]
