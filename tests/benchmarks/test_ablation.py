"""The parts of the hybrid that the ablation leaves out: their weights get no gradient."""

import pytest
import torch

from benchmarks.ablation import BY_KEY, BY_WEIGHTS, hybrid_without, variants
from visrec.cli.parse import parse
from visrec.interactions.activity import ACTIVITY_FEATURES, WINDOW_DAYS
from visrec.models import MODELS
from visrec.models.base import Sizes
from visrec.models.hybrid import Hybrid, HybridConfig
from visrec.pipelines.train import TrainJob

WIDTH = 4
SIZES = Sizes(items=5, users=3, feature_dim=6, categories=0)
CONFIG = HybridConfig(item_width=WIDTH, user_width=7)
COUNTS, AGE = set(range(len(WINDOW_DAYS))), len(WINDOW_DAYS)


def without_gradient(model: Hybrid) -> dict[str, torch.Tensor]:
    """Where the gradient of each parameter is 0, if that of the sum of all weights is taken."""
    sum(parameter.sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    return {
        name: parameter.grad == 0
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and (parameter.grad == 0).any()
    }


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("without counts", COUNTS),
        ("without counts of up to 7 days", {n for n in COUNTS if WINDOW_DAYS[n] <= 7}),
        ("without counts of more than 7 days", {n for n in COUNTS if WINDOW_DAYS[n] > 7}),
        ("without age", {AGE}),
    ],
)
def test_left_out_features_of_the_activity_keep_their_weights(
    name: str, features: set[int]
) -> None:
    found = without_gradient(hybrid_without(BY_WEIGHTS[name])(CONFIG, SIZES))
    expected_K = torch.tensor([k in features for k in range(ACTIVITY_FEATURES)])
    assert found.keys() == {"activity_weights.weight", "activity_weights.bias"}
    assert torch.equal(found["activity_weights.bias"], expected_K)
    assert torch.equal(
        found["activity_weights.weight"], expected_K[:, None].expand(ACTIVITY_FEATURES, WIDTH)
    )


def test_without_times_of_the_profile_only_maximum_and_mean_are_read() -> None:
    model = hybrid_without(BY_WEIGHTS["without times of the profile"])(CONFIG, SIZES)
    (frozen_HF,) = without_gradient(model).values()
    assert not frozen_HF[:, : 2 * WIDTH].any()
    assert frozen_HF[:, 2 * WIDTH :].all()


def test_weights_that_do_not_begin_as_0_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="begin as 0"):
        hybrid_without(lambda model: iter([(next(model.parameters()), (slice(None),))]))(
            CONFIG, SIZES
        )


def test_every_row_is_a_configuration_of_the_training_job() -> None:
    known = set(MODELS)
    try:
        rows = variants()
        models = {name: parse(TrainJob, flags).model for name, flags in rows.items()}
    finally:
        for name in MODELS.keys() - known:
            del MODELS[name]
    assert len(rows) == 1 + len(BY_KEY) + len(BY_WEIGHTS)
    assert len({str(model) for model in models.values()}) == len(rows)
