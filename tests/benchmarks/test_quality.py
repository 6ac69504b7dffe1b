"""The quality figures on planted taste: who is best, by how much, and over which seeds."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.quality import holm, measure, p_value, table, takers_before
from tests.features import write_features
from tests.training import held_baskets
from visrec.errors import InputError
from visrec.interactions.activity import DAY, Activity
from visrec.jagged import Jagged
from visrec.retrieval.moments import Moments
from visrec.storage.store import Store

ITEMS, USERS, DIM = 120, 40, 8
VARIANTS = {
    "learns": [],
    "stands still": ["--train.learning_rate=1e-12"],
    "mean similarity": ["--model.name=visrank", "--model.mode=mean"],
}


def plant(workspace: Path) -> None:
    """Items of two sides, which one feature among others shows, and users of one side each."""
    random = np.random.default_rng(0)
    side_N = np.where(np.arange(ITEMS) % 2, 1, -1)
    feature_ND = random.normal(size=(ITEMS, DIM)).astype(np.float16)
    feature_ND[:, 0] = 2 * side_N
    ids = [f"i{n:03}" for n in range(ITEMS)]
    write_features(Store.at(str(workspace / "features")), ids, feature_ND)
    log = [
        (f"u{user:02}", ids[int(item)], hour)
        for user in range(USERS)
        for hour, item in enumerate(random.permutation(np.arange(user % 2, ITEMS, 2))[:10])
    ]
    user_id, item_id, timestamp = map(list, zip(*log, strict=True))
    interactions = pa.table({"user_id": user_id, "item_id": item_id, "timestamp": timestamp})
    Store.at(str(workspace)).write_table("interactions.parquet", interactions)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    workspace = tmp_path_factory.mktemp("quality")
    plant(workspace)
    small = ["--model.item_width=16", "--model.user_width=16", "--train.stop_patience=9"]
    steps = ["--train.epochs=8", "--train.triples_per_epoch=4096", "--train.batch_size=128"]
    base = ["--workspace", str(workspace), *steps]
    small += ["--model.ease_rank=0"]  # EASE learns whatever the learning rate
    variants = {name: [*VARIANTS[name], *small] for name in ("learns", "stands still")}
    variants["mean similarity"] = VARIANTS["mean similarity"]
    return measure(base, variants, range(2))


def test_what_learns_is_above_what_does_not_and_surely_so(found: dict[str, Any]) -> None:
    assert (found["users"], found["items"]) == (USERS, ITEMS)
    auc = {label: figures["auc"]["mean"] for label, figures in found["models"].items()}
    assert auc["learns"] > 0.65  # 0.77 where the sides are known and no more
    assert auc["stands still"] < 0.65
    difference = found["paired"]["stands still - learns"]["auc"]
    assert difference["mean"] == pytest.approx(auc["stands still"] - auc["learns"])
    assert difference["low"] < difference["mean"] < difference["high"] < 0
    assert p_value(difference["above"]) <= difference["p"] <= 1


def test_a_variant_that_is_a_baseline_differs_from_it_by_nothing(found: dict[str, Any]) -> None:
    models = found["models"]
    for metric, figures in models["visrank-mean"].items():
        same = [figures["mean"]] * 2
        assert models["mean similarity"][metric] == {**figures, "seeds": same, "spread": 0}
    aucs = {name: models[name]["auc"]["mean"] for name in models if name not in VARIANTS}
    assert set(aucs) == {
        *("visrank-max", "visrank-mean", "visrank-mean_top_k", "random"),
        *("popularity", "recent-popularity", "ease", "als"),
    }
    best = max(aucs, key=lambda name: aucs[name])
    for name in VARIANTS:
        difference = found["paired"][f"{name} - {best}"]["auc"]["mean"]
        assert difference == pytest.approx(models[name]["auc"]["mean"] - aucs[best])


def test_groups_of_users_and_of_items_add_up_to_the_whole(found: dict[str, Any]) -> None:
    sizes, takers = found["groups"]["profile size"], found["groups"]["takers"]
    for label, metrics in found["models"].items():
        counted = [(group["models"][label]["auc"]) for group in sizes.values()]
        assert sum(figures["n"] for figures in counted) == USERS
        mean = sum(figures["mean"] * figures["n"] for figures in counted) / USERS
        assert mean == pytest.approx(metrics["auc"]["mean"])
        # Each user has one held-out item, and "0-4" is "0" and "1-4" together.
        counted = [group["models"][label]["auc"] for name, group in takers.items() if name != "0-4"]
        assert sum(figures["n"] for figures in counted) == USERS
        mean = sum(figures["mean"] * figures["n"] for figures in counted) / USERS
        assert mean == pytest.approx(metrics["auc"]["mean"])
    pair = takers["0-4"]["paired"]["learns - popularity"]["auc"]
    models = takers["0-4"]["models"]
    assert pair["mean"] == pytest.approx(
        models["learns"]["auc"]["mean"] - models["popularity"]["auc"]["mean"]
    )


def jagged(*lists: list[int]) -> Jagged:
    return Jagged.join([Jagged(np.array(one, np.int64), np.array([0, len(one)])) for one in lists])


@pytest.mark.parametrize("name", ["ease", "als", "popularity"])
def test_variant_with_the_name_of_a_baseline_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"Found the variant {name}"):
        measure([], {"default": [], name: []}, range(1))


def test_takers_are_counted_before_the_moment() -> None:
    items, times = np.array([0, 0, 0, 2]), np.array([5, DAY, DAY + 1, 3 * DAY])
    held = held_baskets(
        user_E=np.arange(2),
        profiles=jagged([1], [1]),
        targets=jagged([0, 2], [0]),
        time_E=np.array([DAY + 9, 3 * DAY + 1]),
    )
    moments = Moments(held, Activity.from_rows(items, times, 3), by_night=True)
    assert takers_before(moments).tolist() == [1, 0, 3]


def test_seeds_are_seeds_of_training(found: dict[str, Any]) -> None:
    fits = found["fits"]
    assert len(set(fits["learns"]["val_auc"])) == 2
    auc = found["models"]["learns"]["auc"]
    one, other = auc["seeds"]
    assert one != other
    assert auc["mean"] == pytest.approx((one + other) / 2)
    assert auc["spread"] == pytest.approx(abs(one - other) / 2**0.5)
    # Eight epochs to choose by, and the refit's.
    assert all(8 < epochs <= 16 for epochs in fits["learns"]["epochs"])
    assert fits["mean similarity"]["val_auc"] == [None, None]


def test_the_table_has_a_row_for_each_and_a_line_for_each_pair(found: dict[str, Any]) -> None:
    lines = table(found).splitlines()
    starts = [line[: line.find("  ")] for line in lines if line and not line.startswith(" ")]
    assert starts == [*found["models"], *found["paired"]]
    mean = found["models"]["learns"]["auc"]
    assert f"{mean['mean']:.4f} ± {mean['spread']:.4f}" in lines[1]


def test_p_values_are_two_sided_and_never_zero() -> None:
    assert [p_value(above) for above in (0.5, 0.01, 0.99)] == pytest.approx([1, 0.02, 0.02])
    assert p_value(0.0) == p_value(1.0) == 0.002


def test_corrected_p_values_keep_their_order_and_stay_below_one() -> None:
    # Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 and 0.5 x 1.
    assert holm([0.5, 0.01, 0.03, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.6, 0.7]) == [1, 1, 1]
    assert holm([]) == []
