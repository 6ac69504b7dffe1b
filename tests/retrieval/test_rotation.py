"""Rotated vectors keep their products, and are used where few items pass by the lead."""

import numpy as np
import numpy.typing as npt
import pytest

from tests.retrieval import COMPILED, select_kernel
from visrec.jagged import Jagged
from visrec.retrieval import kernel
from visrec.retrieval.kernel import PackedItems
from visrec.retrieval.rotation import choose_rotation, users_before_choice

Floats = npt.NDArray[np.float32]


def _vectors(
    decay: float, items: int = 9000, users: int = 130, d: int = 64
) -> tuple[Floats, Floats]:
    """Items and users whose variances fall with the dimension, mixed by a rotation."""
    random = np.random.default_rng(0)
    spectrum_d = np.arange(1, d + 1) ** -decay
    mixed_dd = np.linalg.qr(random.normal(size=(d, d)))[0]
    item_Nd, user_Bd = (
        (random.normal(size=(n, d)) * spectrum_d @ mixed_dd).astype(np.float32)
        for n in (items, users)
    )
    return item_Nd + np.float32(0.3), user_Bd


def test_rotation_keeps_products_and_orders_dimensions() -> None:
    item_Nd, user_Bd = _vectors(1.5)
    rotation = choose_rotation(item_Nd, user_Bd, 10)
    assert rotation is not None
    assert rotation.lead < 64
    products_BN = (user_Bd @ rotation.user_dd) @ (item_Nd @ rotation.item_dd).T
    np.testing.assert_allclose(products_BN, user_Bd @ item_Nd.T, atol=1e-4)
    lead_BN = (user_Bd @ rotation.user_dd)[:, : rotation.lead] @ (item_Nd @ rotation.item_dd)[
        :, : rotation.lead
    ].T
    assert (products_BN - lead_BN).std() < 0.05 * products_BN.std()


@pytest.mark.parametrize("decay", [0.0, 1.5])
def test_vectors_without_a_few_strong_dimensions_are_not_rotated(decay: float) -> None:
    item_Nd, user_Bd = _vectors(decay)
    assert (choose_rotation(item_Nd, user_Bd, 10) is not None) == (decay > 0)
    assert choose_rotation(item_Nd, user_Bd[:3], 10) is None  # few users to judge by
    assert choose_rotation(0 * item_Nd, user_Bd, 10) is None
    assert choose_rotation(item_Nd, 0 * user_Bd, 10) is None


def test_rotation_is_chosen_only_after_users_that_it_can_pay_for() -> None:
    assert users_before_choice(20_000, 200) == pytest.approx(8000)
    assert users_before_choice(4000, 200) is None  # few items
    assert users_before_choice(20_000, 32) is None  # nothing to leave out


@pytest.mark.parametrize("isa", COMPILED)
@pytest.mark.parametrize("best_first", [False, True])
def test_lists_of_rotated_vectors_equal_those_in_float64(
    isa: str, best_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the best items come first, so that every guess of the k-th score is too high."""
    select_kernel(monkeypatch, isa)
    item_Nd, user_Bd = _vectors(1.5)
    item_Nd[100:140] = item_Nd[100]  # ties
    user_Bd[1:] += user_Bd[0]  # alike, so that one order suits all
    exact_BN = user_Bd.astype(np.float64) @ item_Nd.astype(np.float64).T
    if best_first:
        monkeypatch.setattr(kernel, "_order", lambda _: np.argsort(-exact_BN.mean(axis=0)))
    available_N = np.random.default_rng(1).random(len(item_Nd)) < 0.9
    excluded = np.argsort(-exact_BN, axis=1)[:, :40:2]
    monkeypatch.setattr(kernel, "users_before_choice", lambda *_: len(user_Bd) + 1)
    packed = PackedItems(item_Nd, available_N, kernel.load_kernel())  # type: ignore[arg-type]
    lists = Jagged(excluded.ravel(), np.arange(len(user_Bd) + 1) * excluded.shape[1])
    plain_rows, plain_scores = packed.top_k(user_Bd, lists, 50)
    assert packed._packed
    assert packed._packed.lead == item_Nd.shape[1]
    rows, scores = packed.top_k(user_Bd, lists, 50)
    assert packed._packed.lead < item_Nd.shape[1]
    np.testing.assert_array_equal(rows, plain_rows)
    np.testing.assert_array_equal(scores, plain_scores)
    np.put_along_axis(exact_BN, excluded, -np.inf, axis=1)
    exact_BN[:, ~available_N] = -np.inf
    expected = np.argsort(-exact_BN.astype(np.float32), axis=1, kind="stable")[:, :50]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(exact_BN, expected, axis=1), rtol=1e-6)
