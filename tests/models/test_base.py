"""The contract of every model in `MODELS`, on data with a planted right answer."""

import dataclasses
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.training import checkerboard, jagged_lists, provenance
from visrec.jagged import Jagged
from visrec.models import MODELS
from visrec.models.artifact import Artifact, load_artifact, save_artifact
from visrec.models.base import Catalogue, ModelTraits, Sizes
from visrec.models.convncf import ConvNcfConfig
from visrec.models.inputs import JaggedTensor
from visrec.models.scorers import Scorer
from visrec.retrieval import topk
from visrec.retrieval.metrics import per_user
from visrec.retrieval.ranks import rank_targets
from visrec.sampling.triples import SamplingConfig
from visrec.storage.store import Store
from visrec.training.batch_sources import SOURCES
from visrec.training.distributed import WorkerContext
from visrec.training.loop import TrainConfig, Trainer

DATA = checkerboard(noise=0.5)
NEW_ITEMS = 7
BASELINES = {"popularity", "random", "recent_popularity"}  # they see neither pictures nor profiles
# The paper's network takes minutes, a smaller one takes seconds.
SMALL = {"convncf": ConvNcfConfig(width=8, channels=16, candidates=30)}
every_model = pytest.mark.parametrize("name", sorted(MODELS))


def _config(name: str) -> Any:
    return SMALL.get(name) or MODELS[name].Config()


@cache
def _model(name: str) -> Any:
    """Built from its default config, fitted, and trained for 300 steps if it trains."""
    torch.manual_seed(0)
    model = MODELS[name](_config(name), DATA.sizes)
    model.fit(DATA.catalogue, DATA.train)
    if model.trains_on != "nothing":
        overrides = model.default_overrides.to_dict()
        config = TrainConfig(epochs=3, triples_per_epoch=6400, batch_size=64, **overrides)
        trainer = Trainer(model, DATA, config, SamplingConfig(), WorkerContext())
        trainer.run(lambda _: None)
        model.load_state_dict(trainer.best_weights)
    return model.eval()


def _catalogue(name: str) -> Catalogue:
    """The items of training, and new ones if the model supports them."""
    new = NEW_ITEMS if MODELS[name].traits.supports_new_items else 0
    features = np.concatenate([DATA.feature_ND, DATA.feature_ND[:new] + np.float16(0.01)])
    return Catalogue(features, np.append(np.arange(len(DATA.item_ids)), np.full(new, -1)))


def _scorer(name: str) -> Scorer:
    model = _model(name)
    scorer: Scorer = model.scorer(model.item_arrays(_catalogue(name)))
    return scorer


def _many_users(count: int) -> tuple[Jagged, npt.NDArray[np.int64]]:
    """Profiles of 1 to 40 items, and users' rows in training."""
    random = np.random.default_rng(0)
    sizes = random.integers(1, 41, count)
    rows = [random.choice(len(DATA.item_ids), n, replace=False).tolist() for n in sizes]
    return jagged_lists(rows), np.arange(count) % len(DATA.user_ids)


@every_model
def test_traits_and_batch_kind_are_declared(name: str) -> None:
    assert isinstance(MODELS[name].traits, ModelTraits)
    assert MODELS[name].trains_on in {"nothing", *SOURCES}


@every_model
def test_model_is_built_for_data_of_other_sizes(name: str) -> None:
    sizes = Sizes(items=11, users=5, feature_dim=3)
    model = MODELS[name](_config(name), sizes)
    catalogue = Catalogue(np.random.default_rng(0).normal(size=(11, 3)), np.arange(11))
    model.fit(catalogue, jagged_lists([[0, 1], [2], [], [3, 4, 10], [5]]))
    scorer = model.eval().scorer(model.item_arrays(catalogue))
    best = topk.top_k(
        scorer, jagged_lists([[0, 1]]), np.array([0]), jagged_lists([[0, 1]]), None, 20
    )
    assert sorted(best.row_BK[0, :9].tolist()) == list(range(2, 11))


@every_model
def test_item_arrays_have_one_row_per_item(name: str) -> None:
    catalogue = _catalogue(name)
    arrays = _model(name).item_arrays(catalogue)
    assert arrays
    assert {len(array) for array in arrays.values()} == {len(catalogue)}
    scorer = _model(name).scorer(arrays)
    assert scorer.num_items == len(catalogue)
    assert scorer.space_Nd is None or len(scorer.space_Nd) == len(catalogue)


@every_model
def test_item_arrays_may_be_read_only(name: str) -> None:
    # Arrays in the object store, which the workers of a node share, are read-only.
    arrays = _model(name).item_arrays(_catalogue(name))
    for array in arrays.values():
        array.flags.writeable = False
    profiles, user_B = _many_users(3)
    best = topk.top_k(_model(name).scorer(arrays), profiles, user_B, profiles, None, 5)
    assert (best.row_BK >= 0).all()


@every_model
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 17), (17, 33), (5, 60)])
@torch.inference_mode()
def test_tile_equals_a_slice_of_a_wider_tile(name: str, start: int, stop: int) -> None:
    scorer = _scorer(name)
    profiles, user_B = _many_users(9)
    state = scorer.prepare(JaggedTensor.from_jagged(profiles), torch.from_numpy(user_B))
    wide = scorer.tile(state, 0, scorer.num_items)
    tile = scorer.tile(state, start, stop)
    assert wide.shape == (9, scorer.num_items)
    assert wide.dtype == torch.float32
    torch.testing.assert_close(tile, wide[:, start:stop], rtol=1e-4, atol=1e-5)


@every_model
@pytest.mark.parametrize("columns", [16, 8192])
def test_lists_do_not_depend_on_the_batch_of_users(
    name: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topk, "ITEM_COLUMNS", columns)
    scorer = _scorer(name)
    profiles, user_B = _many_users(300)

    def lists(start: int, stop: int) -> topk.TopKResult:
        part = profiles.slice(start, stop)
        return topk.top_k(scorer, part, user_B[start:stop], part, None, 10)

    whole = lists(0, 300)
    for start, stop in [
        *((b, b + 7) for b in range(0, 293, 7)),
        *((b, b + 1) for b in (0, 1, 299)),
    ]:
        part = lists(start, stop)
        np.testing.assert_array_equal(part.row_BK, whole.row_BK[start:stop])
        np.testing.assert_array_equal(part.score_BK, whole.score_BK[start:stop])


@every_model
def test_every_tensor_with_a_row_for_each_item_is_an_item_table(name: str) -> None:
    items = 977
    with torch.device("meta"):
        model = MODELS[name](_config(name), dataclasses.replace(DATA.sizes, items=items))
    tables = {key for key, tensor in model.state_dict().items() if items in tensor.shape}
    assert tables <= set(model.item_tables)


@every_model
def test_saved_model_scores_the_same_without_its_item_tables(name: str, tmp_path: Any) -> None:
    model, store = _model(name), Store.at(str(tmp_path / "model"))
    save_artifact(
        Artifact(
            name=name,
            model=model,
            config=_config(name),
            sizes=DATA.sizes,
            item_ids=DATA.item_ids,
            user_ids=None if model.traits.supports_new_users else DATA.user_ids,
            provenance=provenance(),
            metrics={},
            model_id="m1",
            held_out=DATA.test_pairs,
        ),
        store,
    )
    loaded = load_artifact(store).model
    arrays = loaded.item_arrays(_catalogue(name))
    scorer = loaded.without_item_tables().scorer(arrays)
    weights = loaded.state_dict()
    assert not any(tensor.is_meta for tensor in (*weights.values(), *loaded.buffers()))
    assert not any(weights[table].numel() for table in model.item_tables if table in weights)
    profiles, user_B = _many_users(20)
    before = topk.top_k(_scorer(name), profiles, user_B, profiles, None, 10)
    after = topk.top_k(scorer, profiles, user_B, profiles, None, 10)
    np.testing.assert_array_equal(after.row_BK, before.row_BK)
    np.testing.assert_array_equal(after.score_BK, before.score_BK)


@every_model
@pytest.mark.parametrize("lists", [[[]], [[], []], [[], [3, 5], []]])
def test_empty_profiles_get_finite_scores(name: str, lists: list[list[int]]) -> None:
    profiles, user_B = jagged_lists(lists), np.full(len(lists), -1)
    best = topk.top_k(_scorer(name), profiles, user_B, profiles, None, 5)
    assert (best.row_BK >= 0).all()
    assert np.isfinite(best.score_BK).all()


@every_model
def test_planted_taste_is_found(name: str) -> None:
    model = _model(name)
    scorer = model.scorer(model.item_arrays(DATA.catalogue))
    held = DATA.validation
    auc = per_user(rank_targets(scorer, held.profiles, held.user_E, held.targets))["auc"].mean()
    if name in BASELINES:
        assert auc < 0.7
    else:
        assert auc > 0.95


SEES_NEW_PICTURES = [
    n for n, m in MODELS.items() if m.traits.supports_new_items and m.traits.requires_features
]


@pytest.mark.parametrize("name", SEES_NEW_PICTURES)
def test_new_items_are_ranked_by_their_pictures(name: str) -> None:
    data, random = DATA, np.random.default_rng(5)
    centres = [data.feature_ND[side::2].mean(axis=0, dtype=np.float64) for side in (0, 1)]
    new = np.array([centres[n % 2] + 0.5 * random.normal(size=8) for n in range(20)])
    catalogue = Catalogue(
        np.concatenate([data.feature_ND, new.astype(np.float16)]),
        np.append(np.arange(60), np.full(20, -1)),
    )
    model = _model(name)
    targets = jagged_lists([[60 + n for n in range(user % 2, 20, 2)] for user in range(40)])
    scorer = model.scorer(model.item_arrays(catalogue))
    # New users who took three items, unless the model only supports users of training.
    rows = np.full(40, -1) if MODELS[name].traits.supports_new_users else np.arange(40)
    profiles = jagged_lists([data.train[user][:3].tolist() for user in range(40)])
    known = jagged_lists([list(range(60))] * 40)
    best = topk.top_k(scorer, profiles, rows, known, None, 10)
    right = [set(best.row_BK[user]) & set(targets[user]) for user in range(40)]
    assert sum(map(len, right)) > 0.95 * 400
