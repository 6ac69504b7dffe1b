"""Ranking losses against their definitions, computed score by score in float64."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.models.inputs import Candidates, JaggedTensor, TripleBatch
from visrec.models.losses import RankingConfig, loss_from_scores, ranking_loss

LOSSES = ["softmax", "bpr", "bpr_max", "top1", "top1_max"]
every_loss = pytest.mark.parametrize("name", LOSSES)
Example = tuple[float, list[float]]  # the positive's score, and its negatives'


def _config(name: Any, **settings: float) -> RankingConfig:
    return RankingConfig(loss=name, **settings)


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def _loss_of_one(name: str, own: float, negatives: list[float], penalty: float) -> float:
    """An example's loss by its definition; zero without negatives."""
    if not negatives:
        return 0.0
    weights = [math.exp(x) for x in negatives]
    shares = [w / sum(weights) for w in weights]
    both = list(zip(shares, negatives, strict=True))
    match name:
        case "softmax":
            return -math.log(math.exp(own) / (math.exp(own) + sum(weights)))
        case "bpr":
            return sum(-math.log(_sigmoid(own - x)) for x in negatives) / len(negatives)
        case "bpr_max":
            right = sum(s * _sigmoid(own - x) for s, x in both)
            return -math.log(right) + penalty * sum(s * x**2 for s, x in both)
        case "top1":
            return sum(_sigmoid(x - own) + _sigmoid(x**2) for x in negatives) / len(negatives)
    return sum(s * (_sigmoid(x - own) + _sigmoid(x**2)) for s, x in both)


def _loss(name: str, examples: list[Example], penalty: float = 1.0) -> float:
    return sum(_loss_of_one(name, own, xs, penalty) for own, xs in examples) / len(examples)


def _rest(
    own_B: list[float], negative_BJ: list[list[float]], invalid_BJ: list[list[bool]]
) -> list[Example]:
    return [
        (own, [x for x, t in zip(row, taken, strict=True) if not t])
        for own, row, taken in zip(own_B, negative_BJ, invalid_BJ, strict=True)
    ]


def _found(
    config: RankingConfig,
    own_B: list[float],
    negative_BJ: list[list[float]],
    invalid_BJ: list[list[bool]] | None = None,
) -> float:
    positive = torch.tensor(own_B, dtype=torch.float64)
    negative = torch.tensor(negative_BJ, dtype=torch.float64)
    taken = None if invalid_BJ is None else torch.tensor(invalid_BJ)
    return loss_from_scores(positive, negative, taken, config).item()


SCORE = st.floats(-9, 9, width=32)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[list[float], list[list[float]], list[list[bool]]]:
    """Up to 4 examples with up to 5 negatives each; all of a row may be taken."""
    b, j = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    own = draw(st.lists(SCORE, min_size=b, max_size=b))
    row, mask = (st.lists(of, min_size=j, max_size=j) for of in (SCORE, st.booleans()))
    mask = st.one_of(mask, st.just([True] * j))
    return (
        own,
        draw(st.lists(row, min_size=b, max_size=b)),
        draw(st.lists(mask, min_size=b, max_size=b)),
    )


@every_loss
@given(case=_cases(), penalty=st.floats(0, 3))
@settings(max_examples=60)
def test_loss_is_its_definition(name: str, case: Any, penalty: float) -> None:
    own, negatives, _ = case
    expected = _loss(name, list(zip(own, negatives, strict=True)), penalty)
    found = _found(_config(name, score_penalty=penalty), own, negatives)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_loss
@given(case=_cases(), penalty=st.floats(0, 3))
@settings(max_examples=60)
def test_loss_without_taken_items_is_its_definition(name: str, case: Any, penalty: float) -> None:
    expected = _loss(name, _rest(*case), penalty)
    found = _found(_config(name, score_penalty=penalty), *case)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@every_loss
def test_example_without_negatives_counts_as_zero(name: str) -> None:
    config, own, others = _config(name), [0.3, -0.2], [[0.5, 0.1], [1.0, -1.0]]
    alone = _found(config, own[:1], others[:1])
    masks = [[False, False], [True, True]]
    assert _found(config, own, others, masks) == pytest.approx(alone / 2, rel=1e-12)
    assert _found(config, own, others, [[True, True]] * 2) == 0


@every_loss
def test_batch_without_negatives_has_zero_gradients(name: str) -> None:
    positive = torch.tensor([1.0, 2.0], requires_grad=True)
    taken = torch.ones(2, 3, dtype=torch.bool)
    loss_from_scores(positive, torch.zeros(2, 3), taken, _config(name)).backward()
    assert positive.grad is not None
    assert positive.grad.tolist() == [0, 0]


# The losses of a positive at -1000 and a negative at 1000, and vice versa; lambda is 1.
FAR = {
    "softmax": (2000, 0),
    "bpr": (2000, 0),
    "bpr_max": (2000 + 1e6, 1e6),
    "top1": (1 + 1, 0 + 1),
    "top1_max": (1 + 1, 0 + 1),
}


@every_loss
def test_loss_of_distant_scores_is_exact(name: str) -> None:
    for own, other, expected in zip((-1e3, 1e3), (1e3, -1e3), FAR[name], strict=True):
        found = _found(_config(name), [own], [[other]])
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(
    rows=st.lists(
        st.lists(st.sampled_from([-1e3, -1.0, 0.0, 1e-3, 1e3]), min_size=4, max_size=4),
        min_size=1,
        max_size=3,
    ),
    taken=st.integers(0, 7),
)
@settings(max_examples=40)
def test_extreme_scores_give_finite_losses_and_gradients(
    name: str, dtype: torch.dtype, rows: list[list[float]], taken: int
) -> None:
    score = torch.tensor(rows, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[bool(taken >> j & 1) for j in range(3)]] * len(rows))
    for invalid_BJ in (None, mask):
        loss = loss_from_scores(score[:, 0], score[:, 1:].clone(), invalid_BJ, _config(name))
        (gradient,) = torch.autograd.grad(loss, score)
        assert loss.isfinite()
        assert gradient.isfinite().all()


@every_loss
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_finite_differences(name: str, masked: bool) -> None:
    random = torch.Generator().manual_seed(0)
    positive, negative = (
        torch.randn(shape, dtype=torch.float64, generator=random).requires_grad_()
        for shape in ((4,), (4, 5))
    )
    # One example has all negatives, one has none, two have some.
    taken = torch.rand(4, 5, generator=random) < 0.5
    taken[0], taken[1] = False, True

    def loss(positive_B: torch.Tensor, negative_BJ: torch.Tensor) -> torch.Tensor:
        # The loss overwrites its negatives, so it gets a copy.
        config = _config(name, score_penalty=0.7)
        return loss_from_scores(positive_B, negative_BJ.clone(), taken if masked else None, config)

    assert torch.autograd.gradcheck(loss, (positive, negative))


USERS, ITEMS = (
    np.random.default_rng(0).normal(size=(5, 3)) * 1.5,
    np.random.default_rng(1).normal(size=(9, 3)) * 1.5,
)
POSITIVES = [7, 0, 3, 8, 2]


def _batch(
    negative_BK: list[list[int]], candidates: Candidates | None = None, first: Sequence[int] = ()
) -> TripleBatch:
    """The triples over 9 items, the first of which are `first`, the candidates."""
    item_M = [*first, *(item for item in range(9) if item not in first)]
    position_N = np.argsort(item_M)
    return TripleBatch(
        item_M=torch.tensor(item_M),
        feature_MD=torch.zeros(9, 0),
        category_M=torch.full((9,), -1),
        user_B=torch.arange(5),
        profiles=JaggedTensor.from_jagged(jagged_lists([[]] * 5)),
        positive_B=torch.from_numpy(position_N[POSITIVES]),
        negative_BK=torch.from_numpy(position_N[np.array(negative_BK, np.int64)]).view(5, -1),
        candidates=candidates,
    )


def _ranking(batch: TripleBatch, config: RankingConfig) -> float:
    item_Md = torch.from_numpy(ITEMS)[batch.item_M]
    return ranking_loss(torch.from_numpy(USERS), item_Md, batch, config).item()


def _score(user: int, item: int, temperature: float) -> float:
    return sum(float(a) * float(b) for a, b in zip(USERS[user], ITEMS[item], strict=True)) / (
        temperature
    )


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_negatives_of_a_triple_count(name: str, temperature: float) -> None:
    several = [[1, 2, 4], [5, 6, 1], [0, 1, 2], [4, 4, 4], [8, 7, 6]]
    examples = [
        (_score(u, POSITIVES[u], temperature), [_score(u, j, temperature) for j in several[u]])
        for u in range(5)
    ]
    config = _config(name, temperature=temperature, score_penalty=0.5)
    assert _ranking(_batch(several), config) == pytest.approx(_loss(name, examples, 0.5), rel=1e-9)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_in_batch_positives_are_the_diagonal(name: str, temperature: float) -> None:
    """Logits are (B, B); the softmax weights are over the B - 1 others without the positive."""
    candidates = Candidates(torch.eye(5, dtype=torch.bool), torch.zeros(5))
    logits = [[_score(u, i, temperature) for i in POSITIVES] for u in range(5)]
    examples = [(row[u], row[:u] + row[u + 1 :]) for u, row in enumerate(logits)]
    config = _config(name, temperature=temperature, score_penalty=0.5)
    found = _ranking(_batch([[]] * 5, candidates, POSITIVES), config)
    assert found == pytest.approx(_loss(name, examples, 0.5), rel=1e-9)
    # Published code that counts the positive among the negatives computes a different loss.
    wrong = _loss(name, [(row[u], row) for u, row in enumerate(logits)], 0.5)
    assert abs(found - wrong) > 1e-3


@every_loss
def test_log_q_is_subtracted_by_softmax_only(name: str) -> None:
    items, log_q = [1, 2, 4, 6], [-0.1, -2.0, -3.5, -1.0]
    taken = [[u == 4 and i == 2 for i in items] for u in range(5)]
    candidates = Candidates(torch.tensor(taken), torch.tensor(log_q))
    own = [_score(u, i, 1.0) for u, i in enumerate(POSITIVES)]
    correction = log_q if name == "softmax" else [0.0] * 4
    others = [
        [_score(u, i, 1.0) - q for i, q in zip(items, correction, strict=True)] for u in range(5)
    ]
    found = _ranking(_batch([[]] * 5, candidates, items), _config(name))
    assert found == pytest.approx(_loss(name, _rest(own, others, taken)), rel=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("temperature", value) for value in (0.0, -1.0, math.nan)),
        *(("score_penalty", value) for value in (-0.1, math.nan)),
    ],
)
def test_settings_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"--model\.{key} {value}"):
        RankingConfig(**{key: value})  # type: ignore[arg-type]


@every_loss
def test_softmax_with_one_negative_equals_bpr(name: str) -> None:
    same = name in ("softmax", "bpr")
    found, other = (_found(_config(which), [0.5, 2.0], [[1.0], [-0.5]]) for which in (name, "bpr"))
    assert (found == pytest.approx(other, rel=1e-12)) is same
