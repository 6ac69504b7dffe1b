"""The hybrid against its formula, written out in float64."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.interactions import features_at
from tests.models.formulas import FEATURES, ORDER, ROW, SEEN, SIZES, TRAINED, WORLD
from tests.training import jagged_lists
from visrec.interactions.activity import DAY, Activity
from visrec.models.dropout import keep_items
from visrec.models.ease import Ease, EaseConfig
from visrec.models.hybrid import EASE_BUFFERS, HALF_LIVES, Hybrid, HybridConfig
from visrec.models.inputs import ActivityBatch, Candidates, JaggedTensor, TripleBatch
from visrec.models.low_rank_ease import profile_vectors

Floats = npt.NDArray[np.float64]

NOW = 50 * DAY
PROFILES = [[0, 5, 8], [2], [1, 11, 7, 3, 4, 6], [], [10, 9]]  # items; 9 to 11 are new
_RANDOM = np.random.default_rng(3)
ACTIVITY = Activity.from_rows(
    _RANDOM.integers(0, 10, 60), _RANDOM.integers(0, NOW + 5 * DAY, 60), 12
)


def _model(**changes: float) -> Hybrid:
    torch.manual_seed(0)
    model = Hybrid(HybridConfig(item_width=3, user_width=4, temperature=2.0, **changes), SIZES)
    model.fit(SEEN, jagged_lists([[*range(TRAINED)]] * 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return model.eval()


class Formula:
    """x_ui(t) = u . v_i + temperature w(u) . g_i(t), all in float64."""

    def __init__(self, model: Hybrid) -> None:
        self.weights = {n: w.double().numpy() for n, w in model.state_dict().items()}

    def tower(self, name: str, x: Floats) -> Floats:
        layers = sorted({key.split(".")[1] for key in self.weights if key.startswith(name)})
        for layer in layers:
            weight, bias = (self.weights[f"{name}.{layer}.{part}"] for part in ("weight", "bias"))
            x = torch.nn.functional.selu(torch.from_numpy(weight @ x + bias)).numpy()
        return x

    def vectors(self, item: int) -> tuple[Floats, Floats]:
        """v and p."""
        seen_D = FEATURES[:TRAINED].astype(np.float64)
        scaled = (FEATURES[item].astype(np.float64) - seen_D.mean(0)) / seen_D.std(0)
        own = self.weights["items.weight"][item] if item < TRAINED else np.zeros(6)
        seen = self.tower("item_tower", scaled)
        return seen + own[:3], seen + own[3:]

    def user(self, profile: list[int]) -> Floats:
        pools = np.zeros((2 + len(HALF_LIVES), 3))
        if profile:
            taken = np.array([self.vectors(item)[1] for item in profile])
            pools[:2] = taken.max(0), taken.mean(0)
            for pool, half_life in zip(pools[2:], HALF_LIVES, strict=True):
                weight = 2.0 ** (-np.arange(len(profile))[::-1] / half_life)
                pool[:] = weight @ taken / weight.sum()
        return self.tower("user_tower", pools.ravel())

    def score(self, profile: list[int], item: int, known_K: Floats) -> float:
        user = self.user(profile)
        weight = self.weights["activity_weights.weight"] @ user
        weight = weight + self.weights["activity_weights.bias"]
        return float(user @ self.vectors(item)[0] + 2.0 * weight @ known_K)


def test_scores_equal_the_formula_with_new_items_and_empty_profiles() -> None:
    model, known_NK = _model(), features_at(ACTIVITY, NOW)
    catalogue = replace(WORLD, activity_NA=known_NK[ORDER])
    scorer = model.scorer(model.item_arrays(catalogue))
    lists = jagged_lists([[int(ROW[item]) for item in profile] for profile in PROFILES])
    state = scorer.prepare(JaggedTensor.from_jagged(lists), torch.full((5,), -1))
    formula = Formula(model)
    expected = [
        [formula.score(profile, int(i), known_NK[i].astype(np.float64)) for i in ORDER]
        for profile in PROFILES
    ]
    np.testing.assert_allclose(scorer.tile(state, 0, 12).detach(), expected, rtol=1e-4, atol=1e-4)


def _scores_of(model: Hybrid | Ease) -> Floats:
    """(profiles, 12) scores of the world's items by their rows; NaN for the items of a profile."""
    catalogue = replace(WORLD, activity_NA=features_at(ACTIVITY, NOW)[ORDER])
    scorer = model.scorer(model.item_arrays(catalogue))
    lists = jagged_lists([[int(ROW[item]) for item in profile] for profile in PROFILES])
    state = scorer.prepare(JaggedTensor.from_jagged(lists), torch.full((5,), -1))
    scores = scorer.tile(state, 0, 12).detach().double().numpy()
    scores[lists.row_ids, lists.values] = np.nan
    return scores


def test_ease_of_full_rank_adds_the_scores_of_the_ease_model() -> None:
    train = jagged_lists([[0, 1, 2, 5], [2, 0, 5, 7], [8, 3, 7, 1], [3, 4, 6, 8, 0], [4, 6]])
    model, ease = _model(), Ease(EaseConfig(), SIZES)
    ease.fit(SEEN, train)
    before = _scores_of(model)
    assert model.fit_added_score(train)
    np.testing.assert_array_equal(_scores_of(model), before)
    model.set_added_score_weight(3.0)
    added = _scores_of(model) - before
    expected = _scores_of(ease) / np.sqrt([[max(len(profile), 1)] for profile in PROFILES])
    expected *= np.nanstd(added) / np.nanstd(expected)
    np.testing.assert_allclose(added, expected, atol=1e-4)
    # Those of the training's users: the weight times the temperature.
    profiles = JaggedTensor.from_jagged(train)
    assert model.ease_profile is not None
    assert model.ease_listed is not None
    user_Ur = profile_vectors(model.ease_profile, profiles)
    variance_U = (user_Ur @ model.ease_listed.T).var(dim=1, correction=0)
    assert float(variance_U.mean().sqrt()) == pytest.approx(3.0 * 2.0, rel=1e-4)


def test_stored_weights_tell_whether_ease_is_added() -> None:
    model, other = _model(), _model()
    plain = model.state_dict()
    assert not plain.keys() & {*EASE_BUFFERS}
    model.fit_added_score(jagged_lists([[0, 1, 2], [0, 1, 2]]))
    model.set_added_score_weight(4.0)
    other.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(_scores_of(other), _scores_of(model))
    for name in EASE_BUFFERS:  # no memory is shared
        assert getattr(other, name) is not getattr(model, name)
    other.load_state_dict(plain)
    np.testing.assert_array_equal(_scores_of(other), _scores_of(_model()))
    model.set_added_score_weight(0.0)
    assert model.state_dict().keys() == plain.keys()


def test_no_ease_is_added_without_rank_or_without_company() -> None:
    together = jagged_lists([[0, 1], [0, 1]])
    assert not _model(ease_rank=0).fit_added_score(together)
    assert not _model().fit_added_score(jagged_lists([[0, 1], [2, 3]]))
    assert _model().fit_added_score(together)


def test_loss_is_that_of_scores_at_each_example_s_own_moment() -> None:
    model, formula = _model(), Formula(_model())
    items = np.array([3, 0, 7, 5, 1, 8])  # of the batch; the first four are candidates
    place = {int(item): m for m, item in enumerate(items)}
    examples = [([1, 8], 5, 1), ([5], 1, 0), ([], 0, 1)]  # profile, positive, moment
    moments = np.array([20, 50]) * DAY
    known_GMK = ACTIVITY.features(moments, items)
    invalid_BC = np.array([[items[c] == i for c in range(4)] for _, i, _ in examples])
    batch = TripleBatch(
        item_M=torch.from_numpy(items),
        feature_MD=torch.from_numpy(FEATURES[items]),
        category_M=torch.full((6,), -1),
        user_B=torch.zeros(3, dtype=torch.int64),
        profiles=JaggedTensor.from_jagged(
            jagged_lists([[place[i] for i in profile] for profile, _, _ in examples])
        ),
        positive_B=torch.tensor([place[i] for _, i, _ in examples]),
        negative_BK=torch.zeros(3, 0, dtype=torch.int64),
        candidates=Candidates(torch.from_numpy(invalid_BC), torch.zeros(4)),
        ordered_profiles=True,
        activity=ActivityBatch(
            group_B=torch.tensor([g for _, _, g in examples]),
            candidate_GCA=torch.from_numpy(known_GMK[:, :4].copy()),
            positive_BA=torch.from_numpy(
                np.stack([known_GMK[g, place[i]] for _, i, g in examples])
            ),
        ),
    )
    losses = []
    for (profile, positive, g), invalid_C in zip(examples, invalid_BC, strict=True):
        scores = [
            formula.score(profile, int(items[c]), known_GMK[g, c].astype(np.float64)) / 2.0
            for c in [place[positive], *np.flatnonzero(~invalid_C)]
        ]
        losses.append(np.log(np.exp(scores).sum()) - scores[0])
    np.testing.assert_allclose(float(model(batch).detach()), np.mean(losses), rtol=1e-4)


def test_dropped_vectors_and_activity_change_nothing_of_other_items() -> None:
    known_NK = features_at(ACTIVITY, NOW)
    catalogue = replace(SEEN, activity_NA=known_NK[:TRAINED])
    without = _model(vector_dropout=1.0, activity_dropout=1.0)
    arrays = without.item_arrays(catalogue)
    width = arrays["profile"].shape[1]
    np.testing.assert_array_equal(arrays["vectors"][:, :width], arrays["profile"])
    scorer, lists = without.scorer(arrays), jagged_lists([[0, 3]])
    state = scorer.prepare(JaggedTensor.from_jagged(lists), torch.tensor([-1]))
    bare = without.scorer(without.item_arrays(SEEN))  # nothing is known of any item
    other = bare.prepare(JaggedTensor.from_jagged(lists), torch.tensor([-1]))
    torch.testing.assert_close(scorer.tile(state, 0, 9), bare.tile(other, 0, 9))


def test_arrays_of_a_model_that_does_not_read_the_activity_stay_the_same_overnight() -> None:
    model = _model(activity_dropout=1.0)
    nights = [replace(SEEN, activity_NA=features_at(ACTIVITY, NOW)[:TRAINED]), SEEN]
    tonight, other = (model.item_arrays(catalogue) for catalogue in nights)
    assert tonight.keys() == other.keys() == {"vectors", "profile"}
    for name, array in tonight.items():
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_items_are_kept_whole_at_the_given_rate(rate: float) -> None:
    kept_M = keep_items(torch.arange(20_000), 17, rate)
    assert abs(float(kept_M.mean()) - (1 - rate)) < 0.02
    torch.testing.assert_close(kept_M[5000:5100], keep_items(torch.arange(5000, 5100), 17, rate))


def test_items_of_a_single_taker_get_no_vectors_of_their_own() -> None:
    model = Hybrid(HybridConfig(item_width=3, user_width=4), SIZES)
    model.fit(SEEN, jagged_lists([[0, 1, 2], [2, 0, 5]]))
    items = torch.arange(TRAINED)
    batch = TripleBatch(
        item_M=items,
        feature_MD=torch.from_numpy(FEATURES[:TRAINED]),
        category_M=torch.full((TRAINED,), -1),
        user_B=torch.zeros(1, dtype=torch.int64),
        profiles=JaggedTensor.from_jagged(jagged_lists([[*range(TRAINED - 1)]])),
        positive_B=torch.tensor([TRAINED - 1]),
        negative_BK=torch.zeros(1, 0, dtype=torch.int64),
        candidates=Candidates(torch.zeros(1, TRAINED, dtype=torch.bool), torch.zeros(TRAINED)),
    )
    model.eval()(batch).backward()
    gradient_IE = model.items.weight.grad.to_dense()
    assert gradient_IE.any(dim=1).nonzero().flatten().tolist() == [0, 2]
