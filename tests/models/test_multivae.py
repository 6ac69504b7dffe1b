"""MultiVAE against the paper's formulas, written out as float64 loops."""

import math

import pytest
import torch

from tests.models.formulas import (
    PROFILES,
    SIZES,
    TRAINED,
    affine,
    assert_gradients,
    assert_scores,
    loss_of,
    randomized,
    weights_of,
)
from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.models.inputs import JaggedTensor, UserBatch
from visrec.models.multivae import MultiVae, MultiVaeConfig

WIDTH, HIDDEN, SEED = 2, 4, 7
ROWS = [[0, 3, 5], [2], [8, 1, 6, 4, 0], [3, 7]]


def _model(**settings: float) -> MultiVae:
    torch.manual_seed(0)
    defaults = {"dropout": 0.0, "kl_weight": 0.7, "kl_steps": 4}
    config = MultiVaeConfig(width=WIDTH, hidden=HIDDEN, **{**defaults, **settings})
    model: MultiVae = randomized(MultiVae(config, SIZES))
    return model


def _batch(first: int = 0, stop: int = len(ROWS)) -> UserBatch:
    """One worker's users of a step with all rows."""
    return UserBatch(
        JaggedTensor.from_jagged(jagged_lists(ROWS[first:stop])), first, len(ROWS), SEED
    )


def _noise() -> list[list[float]]:
    """The noise of the batch's seed: WIDTH numbers for each user of the step."""
    random = torch.Generator().manual_seed(SEED)
    return [[float(e) for e in row] for row in torch.randn(len(ROWS), WIDTH, generator=random)]


class Paper:
    """h = tanh(W1 x/|x| + b1); m, log s^2 = W2 h + b2; logits = W4 tanh(W3 z + b3) + b4.

    Loss: -sum over i taken of log softmax(logits)_i + beta KL(N(m, s^2) | N(0, 1)).
    """

    def __init__(self, model: MultiVae) -> None:
        self.weights = weights_of(model)

    def latent(self, items: list[int]) -> tuple[list[float], list[float]]:
        w = self.weights
        row = [1.0 if item in items else 0.0 for item in range(TRAINED)]
        length = math.sqrt(sum(x * x for x in row)) or 1.0
        x = [value / length for value in row]
        h = [math.tanh(a) for a in affine(w["encoder"].T, x, w["encoder_bias"])]
        both = affine(w["latent.weight"], h, w["latent.bias"])
        return both[:WIDTH], both[WIDTH:]

    def logits(self, z: list[float]) -> list[float]:
        w = self.weights
        h = [math.tanh(a) for a in affine(w["hidden.weight"], z, w["hidden.bias"])]
        return affine(w["decoder.weight"], h, w["decoder.bias"])

    def loss_of_one(self, items: list[int], noise: list[float], beta: float) -> float:
        mean, log_variance = self.latent(items)
        z = [m + math.exp(v / 2) * e for m, v, e in zip(mean, log_variance, noise, strict=True)]
        logits = self.logits(z)
        log_normalizer = math.log(sum(math.exp(x) for x in logits))
        kl = sum((m * m + math.exp(v) - v - 1) / 2 for m, v in zip(mean, log_variance, strict=True))
        return -sum(logits[i] - log_normalizer for i in items) + beta * kl

    def loss(self, beta: float, first: int = 0, stop: int = len(ROWS)) -> float:
        pairs = list(zip(ROWS, _noise(), strict=True))[first:stop]
        return sum(self.loss_of_one(items, e, beta) for items, e in pairs) / len(pairs)

    def score(self, user: int, profile: list[int], item: int) -> float:
        del user
        if item >= TRAINED:
            return 0.0
        return self.logits(self.latent(profile)[0])[item]


def test_scores_equal_the_paper_with_new_users_and_empty_profiles() -> None:
    model = _model()
    known = [[item for item in profile if item < TRAINED] for profile in PROFILES]
    assert_scores(model, Paper(model).score, known)


def test_new_items_of_a_profile_are_ignored() -> None:
    model = _model()
    assert_scores(model, Paper(model).score)


def test_loss_equals_the_paper_and_beta_rises_with_the_steps() -> None:
    model = _model()
    model.train()
    paper = Paper(model)
    found = [loss_of(model, _batch()) for _ in range(6)]
    expected = [paper.loss(0.7 * share) for share in (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert abs(expected[0] - expected[3]) > 0.01 * abs(expected[0])


def test_noise_does_not_depend_on_the_number_of_workers() -> None:
    model = _model(kl_steps=1)
    model.train()
    for first, stop in ((0, 2), (2, 4)):
        expected = Paper(model).loss(0.7, first, stop)
        assert loss_of(model, _batch(first, stop)) == pytest.approx(expected, rel=1e-5)


def test_dropout_applies_in_training_only() -> None:
    without, model = _model(), _model(dropout=0.5)
    for one in (without, model):
        one.steps.fill_(3)
    assert loss_of(model.eval(), _batch()) == loss_of(without.eval(), _batch())
    assert loss_of(model.train(), _batch()) != loss_of(without.train(), _batch())


def test_dropout_drops_a_share_of_items_and_scales_the_others() -> None:
    """The one item of a row is dropped, or it has a weight of 1 / (1 - dropout)."""
    model, seen = _model(dropout=0.75).train(), []
    model.latent.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    with torch.no_grad():
        model.encoder.fill_(0.1)
        model.encoder_bias.zero_()
    loss_of(model, UserBatch(JaggedTensor.from_jagged(jagged_lists([[2]] * 2000)), 0, 2000))
    is_dropped = (seen[0] == 0).all(dim=1)
    assert float(is_dropped.double().mean()) == pytest.approx(0.75, abs=0.03)
    kept = seen[0][~is_dropped]
    torch.testing.assert_close(kept, torch.full_like(kept, math.tanh(0.1 * 4)))


def test_gradients_are_those_of_finite_differences() -> None:
    model = _model()
    model.steps.fill_(4)
    model.eval()  # so that beta is constant
    assert_gradients(model, _batch())


def test_dropout_does_not_depend_on_the_number_of_workers() -> None:
    model = _model(dropout=0.5, kl_steps=1).train()
    whole = loss_of(model, _batch())
    assert whole != loss_of(_model(kl_steps=1).train(), _batch())
    # The mean over four users: one worker has one of them, the other three.
    parts = 1 * loss_of(model, _batch(0, 1)) + 3 * loss_of(model, _batch(1, 4))
    assert parts / 4 == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"dropout": 1.0}, {"dropout": -0.1}, {"dropout": math.nan}, {"kl_steps": 0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"model.{next(iter(settings))}"):
        MultiVaeConfig(**settings)  # type: ignore[arg-type]
