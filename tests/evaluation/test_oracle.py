"""The oracle scores with the planted vectors, in the order of the catalogue."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.evaluation.oracle import InterestCurves, Oracle, oracle_at, read_oracle
from visrec.interactions.activity import DAY
from visrec.retrieval.topk import top_k
from visrec.storage.store import Store

ITEM_VECTORS = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [2.0, 2.0], "d": [-1.0, 3.0]}
USER_VECTORS = {"u": [1.0, 0.5], "v": [-1.0, 2.0], "w": [0.0, -1.0]}


def _table(kind: str, vectors: dict[str, list[float]]) -> pa.Table:
    values = pa.array(list(vectors.values()), pa.list_(pa.float32(), 2))
    return pa.table({f"{kind}_id": list(vectors), "vector": values})


@pytest.fixture
def truth(tmp_path: Path) -> Store:
    store = Store.at(str(tmp_path))
    store.write_table("items.parquet", _table("item", ITEM_VECTORS))
    store.write_table("users.parquet", _table("user", USER_VECTORS))
    return store


def _scores(
    truth: Store, items: list[str], users: list[str], moment: int = 0
) -> npt.NDArray[np.float64]:
    """(B, N) the scores, in the order of `users` and `items`."""
    arrays, user_B = read_oracle(truth, pa.array(items), pa.array(users))
    arrays = oracle_at(arrays, moment, len(items))
    nothing = jagged_lists([[]] * len(users))
    best = top_k(Oracle.scorer(arrays), nothing, user_B, nothing, None, len(items))
    scores = np.empty((len(users), len(items)))
    np.put_along_axis(scores, best.row_BK, best.score_BK.astype(np.float64), axis=1)
    return scores


@pytest.mark.parametrize("items", [["a", "b", "c", "d"], ["d", "b"], ["c", "a", "d"]])
@pytest.mark.parametrize("users", [["u", "v", "w"], ["w", "u"], ["v"]])
def test_scores_are_dot_products_in_the_order_of_the_catalogue(
    truth: Store, items: list[str], users: list[str]
) -> None:
    expected = [[np.dot(USER_VECTORS[u], ITEM_VECTORS[i]) for i in items] for u in users]
    np.testing.assert_allclose(_scores(truth, items, users), expected)


def test_unknown_item_is_refused(truth: Store) -> None:
    with pytest.raises(InputError, match="lacks 1 of 2 items"):
        read_oracle(truth, pa.array(["a", "x"]), pa.array(["u"]))


def test_unknown_users_are_refused(truth: Store) -> None:
    with pytest.raises(InputError, match="lacks 2 of 3 users"):
        read_oracle(truth, pa.array(["a"]), pa.array(["x", "u", "y"]))


@pytest.fixture
def moving_truth(truth: Store) -> Store:
    """The same truth, where interest moves: `c` comes out last."""
    curves = InterestCurves(
        release_time_I=np.array([0, 100, 5000, 0]),
        rise_s_I=np.array([100.0, 200.0, 100.0, 1000.0]),
        peak_I=np.array([2.0, 0.0, 3.0, 1.0]),
        rest_I=np.array([-1.0, -2.0, 0.0, -30.0]),
    )
    items = truth.read_table("items.parquet")
    for name, values in curves.columns().items():
        items = items.append_column(name, pa.array(values))
    truth.write_table("items.parquet", items)
    return truth


def test_scores_at_a_moment_add_the_log_interest(moving_truth: Store) -> None:
    expected = [
        np.dot(USER_VECTORS["v"], ITEM_VECTORS["b"]) + np.log(1.5 * np.exp(-0.5) + np.exp(-2)),
        np.dot(USER_VECTORS["v"], ITEM_VECTORS["a"]) + np.log(4 * np.exp(2 - 3) + np.exp(-1)),
    ]
    found = _scores(moving_truth, ["b", "a"], ["v"], moment=400 + 1 - DAY)
    np.testing.assert_allclose(found, [expected], rtol=1e-6)


def test_item_that_is_not_out_has_no_chance(moving_truth: Store) -> None:
    scores = _scores(moving_truth, ["c", "d"], ["u", "v"], moment=4999 + 1 - DAY)
    assert (scores[:, 0] < -900).all()
    assert (_scores(moving_truth, ["c", "d"], ["u", "v"], moment=5000 + 1 - DAY)[:, 0] > -10).all()
