"""ConvNCF against the paper's formulas, written out as float64 loops, and its lists."""

import numpy as np
import pytest
import torch

from tests.models.formulas import (
    ITEMS,
    ORDER,
    PROFILES,
    ROW,
    SIZES,
    TRIPLES,
    USER_ROWS,
    WORLD,
    Triple,
    affine,
    assert_gradients,
    assert_scores,
    batch_of,
    bpr,
    dot,
    loss_of,
    randomized,
    row_of,
    weights_of,
)
from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.models import convncf
from visrec.models.convncf import ConvNcf, ConvNcfConfig
from visrec.retrieval import topk

Map = list[list[list[float]]]  # channel, row, column


def _model(width: int = 4, candidates: int = 200, **settings: float) -> ConvNcf:
    torch.manual_seed(0)
    config = ConvNcfConfig(width=width, channels=3, candidates=candidates, loss="bpr", **settings)
    model: ConvNcf = randomized(ConvNcf(config, SIZES))
    with torch.no_grad():  # otherwise the scores would be mostly biases
        model.users.weight.mul_(3)
        model.items.weight.mul_(3)
    return model


class Paper:
    """E_0 = p_u q_i^T, E_l = ReLU(2 x 2 convolution of stride 2), x_ui = w . E_last + c."""

    def __init__(self, model: ConvNcf) -> None:
        self.weights = weights_of(model)
        names = [name for name in self.weights if name.startswith("layers.")]
        self.layers = sorted({int(name.split(".")[1]) for name in names})

    def _vectors(self, user: int, item: int) -> tuple[list[float], list[float]]:
        tables = self.weights
        p, q = row_of(tables["users.weight"], user), row_of(tables["items.weight"], item)
        return [*p], [*q]

    def product(self, user: int, item: int) -> float:
        return dot(*self._vectors(user, item))

    def _convolved(self, layer: int, maps: Map) -> Map:
        weight = self.weights[f"layers.{layer}.weight"]
        bias = self.weights[f"layers.{layer}.bias"]
        half = range(len(maps[0]) // 2)

        def output(out: int, row: int, column: int) -> float:
            total = float(bias[out])
            for channel, values in enumerate(maps):
                for a in range(2):
                    for b in range(2):
                        value_at = values[2 * row + a][2 * column + b]
                        total += float(weight[out, channel, a, b]) * value_at
            return max(0.0, total)

        return [[[output(out, r, c) for c in half] for r in half] for out in range(len(weight))]

    def score(self, user: int, profile: list[int], item: int) -> float:
        del profile
        p, q = self._vectors(user, item)
        maps: Map = [[[a * b for b in q] for a in p]]
        for layer in self.layers:
            maps = self._convolved(layer, maps)
        last = [values[0][0] for values in maps]
        return affine(self.weights["score.weight"], last, self.weights["score.bias"])[0]

    def loss(self, triples: list[Triple], weight: float, temperature: float = 1.0) -> float:
        """The loss by the score, plus the weighted loss by the product."""
        scores, products = [], []
        for user, _, positive, (negative,) in triples:
            scores.append((self.score(user, [], positive), self.score(user, [], negative)))
            products.append((self.product(user, positive), self.product(user, negative)))
        return bpr(scores, temperature) + weight * bpr(products, temperature)


@pytest.mark.parametrize("width", [4, 8])
def test_scores_equal_the_paper_with_new_users_and_items(width: int) -> None:
    model = _model(width)
    paper = Paper(model)
    assert len(paper.layers) == {4: 2, 8: 3}[width]
    assert_scores(model, paper.score)


def test_scores_do_not_depend_on_the_pairs_scored_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convncf, "_PAIRS", 4)
    model = _model()
    assert_scores(model, Paper(model).score)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.0, 1.0), (0.4, 2.5)])
def test_loss_equals_the_paper_plus_that_of_the_products(weight: float, temperature: float) -> None:
    model = _model(product_weight=weight, temperature=temperature)
    expected = Paper(model).loss(TRIPLES, weight, temperature)
    assert loss_of(model, batch_of(TRIPLES)) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_those_of_finite_differences() -> None:
    assert_gradients(_model(), batch_of(TRIPLES))


def _best(
    paper: Paper, user: int, excluded: set[int], available: set[int], c: int, k: int
) -> list[int]:
    """Rows of the k best by the score of the c best by the product, ties to the lower row."""
    rows = [r for r in range(ITEMS) if r not in excluded and r in available]
    rows = sorted(rows, key=lambda r: (-paper.product(user, int(ORDER[r])), r))[:c]
    # Products with zero vectors tie exactly, so their scores must tie, too.
    score = {r: round(paper.score(user, [], int(ORDER[r])), 6) for r in rows}
    return sorted(rows, key=lambda r: (-score[r], r))[:k]


@pytest.mark.parametrize(("candidates", "k"), [(5, 3), (4, 4), (2, 6), (200, 20)])
def test_lists_are_the_best_of_the_proposed_items(candidates: int, k: int) -> None:
    model = _model(8, candidates).eval()
    paper = Paper(model)
    scorer = model.scorer(model.item_arrays(WORLD))
    taken = jagged_lists([sorted(ROW[profile].tolist()) for profile in PROFILES])
    available_N = np.ones(ITEMS, bool)
    available_N[[2, 7]] = False
    found = topk.top_k(scorer, taken, np.array(USER_ROWS), taken, available_N, k)
    for b, user in enumerate(USER_ROWS):
        # At least as many items are proposed as the list is long.
        proposed, available = max(candidates, k), set(np.flatnonzero(available_N).tolist())
        expected = _best(paper, user, set(taken[b].tolist()), available, proposed, k)
        assert found.row_BK[b, : len(expected)].tolist() == expected
        assert (found.row_BK[b, len(expected) :] == -1).all()
        scores = [paper.score(user, [], int(ORDER[row])) for row in expected]
        np.testing.assert_allclose(found.score_BK[b, : len(expected)], scores, rtol=1e-5, atol=1e-5)


def test_proposals_change_the_lists() -> None:
    # Otherwise the test above would pass without a proposer.
    paper = Paper(_model(8))
    every = set(range(ITEMS))
    few, all_of_them = ([_best(paper, u, set(), every, c, 3) for u in range(5)] for c in (5, 12))
    assert few != all_of_them


@pytest.mark.parametrize("width", [0, 2, 6, 63])
def test_width_that_is_not_a_power_of_two_is_refused(width: int) -> None:
    with pytest.raises(InputError, match=r"model\.width"):
        ConvNcfConfig(width=width)
