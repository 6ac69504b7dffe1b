"""CuratorNet against the paper's formulas, written out as float64 loops."""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.func import functional_call

from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.models.base import Catalogue, Sizes
from visrec.models.curatornet import CuratorNet, CuratorNetConfig
from visrec.models.inputs import JaggedTensor, TripleBatch

ITEMS, DIM = 60, 10
RANDOM = np.random.default_rng(0)
FEATURES = (RANDOM.normal(size=(ITEMS, DIM)) * 2 + 1).astype(np.float16)
PROFILES = [RANDOM.choice(ITEMS, n, replace=False).tolist() for n in range(1, 41)]
Weights = Mapping[str, npt.NDArray[np.float64]]


def _model(**settings: float) -> CuratorNet:
    """A small fitted network whose biases are not zero."""
    torch.manual_seed(0)
    defaults = {"item_width": 12, "user_width": 14, "feature_dropout": 0.0, "temperature": 1.0}
    config = CuratorNetConfig(**{**defaults, **settings})
    model = CuratorNet(config, Sizes(items=ITEMS, users=0, feature_dim=DIM))
    model.fit(Catalogue(FEATURES, np.arange(ITEMS)), jagged_lists([]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


class Paper:
    """The formulas for one item, one user, one triple."""

    def __init__(self, model: CuratorNet) -> None:
        self.weights: Weights = {
            name: value.double().numpy() for name, value in model.state_dict().items()
        }

    @staticmethod
    def _selu(x: float) -> float:
        alpha, scale = 1.6732632423543772, 1.0507009873554805
        return scale * (x if x > 0 else alpha * (math.exp(x) - 1))

    def _layer(self, name: str, x: list[float]) -> list[float]:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        sums = [sum(w * v for w, v in zip(row, x, strict=True)) for row in weight.tolist()]
        return [self._selu(s + b) for s, b in zip(sums, bias.tolist(), strict=True)]

    def item(self, row: int) -> list[float]:
        exact = FEATURES.astype(np.float64)
        z = ((exact[row] - exact.mean(axis=0)) / exact.std(axis=0)).tolist()
        return self._layer("item_tower.2", self._layer("item_tower.0", z))

    def user(self, profile: list[int]) -> list[float]:
        columns = list(zip(*(self.item(row) for row in profile), strict=True))
        x = [max(column) for column in columns] + [sum(c) / len(c) for c in columns]
        for layer in ("user_tower.0", "user_tower.2", "user_tower.4"):
            x = self._layer(layer, x)
        return x

    def score(self, profile: list[int], row: int) -> float:
        return sum(a * b for a, b in zip(self.user(profile), self.item(row), strict=True))

    def loss(self, triples: list[tuple[list[int], int, int]], temperature: float) -> float:
        terms = []
        for profile, positive, negative in triples:
            x = (self.score(profile, positive) - self.score(profile, negative)) / temperature
            terms.append(-math.log(1 / (1 + math.exp(-x))))
        return sum(terms) / len(terms)


def _batch(triples: list[tuple[list[int], int, int]]) -> TripleBatch:
    """Triples over all items in shuffled order, so that a row and its position differ."""
    order = np.random.default_rng(1).permutation(ITEMS)
    position = np.argsort(order)
    profiles = jagged_lists([position[profile].tolist() for profile, _, _ in triples])
    return TripleBatch(
        item_M=torch.from_numpy(order),
        feature_MD=torch.from_numpy(FEATURES[order].astype(np.float32)),
        category_M=torch.full((ITEMS,), -1),
        user_B=torch.zeros(len(triples), dtype=torch.int64),
        profiles=JaggedTensor.from_jagged(profiles),
        positive_B=torch.from_numpy(position[[positive for _, positive, _ in triples]]),
        negative_BK=torch.from_numpy(position[[[negative] for _, _, negative in triples]]),
    )


def _triples() -> list[tuple[list[int], int, int]]:
    pairs = np.random.default_rng(2).choice(ITEMS, (len(PROFILES), 2))
    return [(p, int(i), int(j)) for p, (i, j) in zip(PROFILES, pairs, strict=True)]


def _loss(model: CuratorNet, batch: TripleBatch) -> float:
    return float(model(batch).detach())


def _scores(
    model: CuratorNet, profiles: Jagged, features: npt.NDArray[np.float16] = FEATURES
) -> npt.NDArray[np.float32]:
    model.eval()
    with torch.no_grad():
        scorer = model.scorer(model.item_arrays(Catalogue(features, np.full(len(features), -1))))
        state = scorer.prepare(JaggedTensor.from_jagged(profiles), torch.full((len(profiles),), -1))
        return scorer.tile(state, 0, len(features)).numpy()


def test_item_vectors_equal_the_paper() -> None:
    model = _model()
    vectors = model.item_arrays(Catalogue(FEATURES, np.arange(ITEMS)))["vectors"]
    paper = Paper(model)
    expected = [paper.item(row) for row in range(ITEMS)]
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-5)


def test_user_vectors_equal_the_paper_for_profiles_of_1_to_40_items() -> None:
    model = _model()
    vectors = model.item_arrays(Catalogue(FEATURES, np.arange(ITEMS)))["vectors"]
    users = model.encode_users(
        torch.from_numpy(vectors), JaggedTensor.from_jagged(jagged_lists(PROFILES))
    )
    paper = Paper(model)
    expected = [paper.user(profile) for profile in PROFILES]
    np.testing.assert_allclose(users.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_scores_equal_the_paper() -> None:
    model = _model()
    paper = Paper(model)
    items = [paper.item(row) for row in range(ITEMS)]
    expected = np.array([paper.user(profile) for profile in PROFILES]) @ np.array(items).T
    np.testing.assert_allclose(
        _scores(model, jagged_lists(PROFILES)), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 3.5, 14.0])
def test_loss_equals_the_paper(temperature: float) -> None:
    model, triples = _model(temperature=temperature), _triples()
    assert _loss(model, _batch(triples)) == pytest.approx(
        Paper(model).loss(triples, temperature), rel=1e-5, abs=1e-5
    )


def test_loss_of_one_or_two_triples_equals_the_paper() -> None:
    # With B of 1 or 2, a wrong broadcast of (B,) with (B, 1) would raise no error.
    model = _model()
    for triples in ([_triples()[7]], _triples()[30:32]):
        assert _loss(model, _batch(triples)) == pytest.approx(
            Paper(model).loss(triples, 1.0), rel=1e-5
        )


def test_item_may_be_positive_and_in_several_profiles() -> None:
    model = _model()
    triples = [([1, 2, 3], 1, 4), ([1], 1, 2), ([4, 1], 3, 1)]
    assert _loss(model, _batch(triples)) == pytest.approx(Paper(model).loss(triples, 1.0), rel=1e-5)


def test_scores_do_not_depend_on_the_order_of_the_profile() -> None:
    one, other = _scores(_model(), jagged_lists([[5, 9, 30, 2], [30, 2, 5, 9]]))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_empty_profile_has_finite_scores_and_changes_no_others() -> None:
    model = _model()
    scores = _scores(model, jagged_lists([[], [7, 8], []]))
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(
        scores[1], _scores(model, jagged_lists([[7, 8]]))[0], rtol=1e-5, atol=1e-5
    )


def test_new_items_and_users_are_scored_without_training() -> None:
    model = _model()
    new = np.random.default_rng(3).normal(size=(5, DIM)).astype(np.float16)
    scores = _scores(model, jagged_lists([[ITEMS, 3]]), np.concatenate([FEATURES, new]))
    # The same picture under a new row gets the same score.
    repeated = _scores(
        model, jagged_lists([[ITEMS, 3]]), np.concatenate([FEATURES, new, FEATURES[:4]])
    )
    assert scores.shape == (1, ITEMS + 5)
    np.testing.assert_allclose(repeated[:, ITEMS + 5 :], repeated[:, :4], rtol=1e-6)
    np.testing.assert_allclose(repeated[:, : ITEMS + 5], scores, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    model = _model(item_width=3, user_width=4, temperature=2.0).double()
    batch = _batch([([1, 2, 3], 4, 5), ([6], 6, 7), ([8, 9], 1, 2)])
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
    features = batch.feature_MD.double().requires_grad_()

    def loss(feature_MD: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        parts = {**batch.__dict__, "feature_MD": feature_MD}
        named = dict(zip(names, values, strict=True))
        return functional_call(model, named, (TripleBatch(**parts),))

    assert torch.autograd.gradcheck(loss, (features, *weights))


def test_dropout_applies_in_training_only() -> None:
    model, batch = _model(feature_dropout=0.5), _batch(_triples())
    model.train()
    assert _loss(model, batch) != _loss(model, dataclasses.replace(batch, seed=1))
    model.eval()
    expected = Paper(model).loss(_triples(), 1.0)
    assert _loss(model, batch) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(
        _scores(model, jagged_lists(PROFILES)), _scores(_model(), jagged_lists(PROFILES))
    )


def test_default_widths_and_initial_weights_are_the_papers() -> None:
    model = CuratorNet(CuratorNetConfig(), Sizes(items=1, users=0, feature_dim=2048))
    shapes = [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    assert shapes == [(200, 2048), (200, 200), (300, 400), (300, 300), (200, 300)]
    for parameter in model.parameters():
        if parameter.dim() == 1:
            assert (parameter == 0).all()
        else:
            limit = math.sqrt(6 / sum(parameter.shape))  # Glorot and Bengio 2010, equation 16
            assert float(parameter.detach().abs().max()) <= limit
            assert float(parameter.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize(
    "settings", [{"feature_dropout": 1.0}, {"feature_dropout": -0.1}, {"temperature": 0.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        CuratorNetConfig(**settings)
