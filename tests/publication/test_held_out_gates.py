"""Which model serves: the first of the model, VisRank and popularity that passes its gates."""

from typing import Any

import pytest

from visrec.publication.gate_context import GatesConfig
from visrec.publication.held_out_gates import HeldOutFigures, best_row, explain_choice

IDS = {"model": "curatornet-2026-11-19"}


def figures(**auc: tuple[float, float]) -> HeldOutFigures:
    """An evaluation with these means and upper ends of the AUC, by row."""
    rows = {
        row.replace("visrank_", "visrank-"): {
            "auc": {"mean": mean, "low": 0.0, "high": high, "n": 50}
        }
        for row, (mean, high) in auc.items()
    }
    return HeldOutFigures.from_json({"models": rows, "digests": {"model": "digest"}})


def choice(found: HeldOutFigures, **config: Any) -> tuple[str, str]:
    gates = GatesConfig(**config)
    row = best_row(found, "model", gates)
    ids = {**IDS, row: IDS.get(row, f"{row}-2026-11-19")}
    return row, explain_choice(found, "model", row, gates, ids)


def test_model_above_all_baselines_serves() -> None:
    found = figures(model=(0.9, 0.92), visrank_max=(0.7, 0.71), visrank_mean=(0.8, 0.81),
                    popularity=(0.6, 0.61))  # fmt: skip
    assert choice(found) == (
        "model",
        "curatornet-2026-11-19 serves, because its auc on the held-out set, 0.9000, is above "
        "visrank-mean (0.8000) and popularity (0.6000)",
    )


def test_model_that_reaches_a_baseline_within_its_interval_serves() -> None:
    found = figures(model=(0.79, 0.81), visrank_mean=(0.8, 0.81), popularity=(0.6, 0.61))
    row, why = choice(found)
    assert row == "model"
    assert "0.7900 and up to 0.8100 in the 95 % interval, reaches visrank-mean (0.8000)" in why


def test_best_mode_of_visrank_serves_in_place_of_a_worse_model() -> None:
    found = figures(model=(0.7, 0.72), visrank_max=(0.81, 0.82), visrank_mean=(0.8, 0.81),
                    popularity=(0.6, 0.61))  # fmt: skip
    assert choice(found) == (
        "visrank-max",
        "visrank-max-2026-11-19 serves in place of curatornet-2026-11-19, whose auc on the "
        "held-out set, 0.7000 and up to 0.7200 in the 95 % interval, is below visrank-max (0.8100)",
    )


def test_popularity_serves_where_it_is_above_both_in_a_shop_with_trends() -> None:
    found = figures(model=(0.7, 0.72), visrank_mean=(0.6, 0.62), popularity=(0.8, 0.81))
    row, why = choice(found)
    assert row == "popularity"
    assert "is below popularity (0.8000); visrank-mean has 0.6000 and up to 0.6200" in why


def test_visrank_serves_where_only_it_reaches_popularity() -> None:
    found = figures(model=(0.7, 0.71), visrank_mean=(0.71, 0.74), popularity=(0.73, 0.74))
    assert choice(found)[0] == "visrank-mean"


@pytest.mark.parametrize(("gain", "row"), [(-1.0, "model"), (0.05, "visrank-mean")])
def test_gain_that_the_gates_require_decides(gain: float, row: str) -> None:
    found = figures(model=(0.8, 0.81), visrank_mean=(0.805, 0.81), popularity=(0.8, 0.81))
    chosen, why = choice(found, min_gain=gain)
    assert chosen == row
    assert f"{gain:g}" in why


def test_few_users_decide_nothing() -> None:
    found = figures(model=(0.5, 0.6), visrank_mean=(0.8, 0.81), popularity=(0.6, 0.61))
    assert found.why_undecided("model", GatesConfig()) is None
    few = GatesConfig(min_lists=51)
    assert found.why_undecided("model", few) == (
        "50 users could test it, fewer than gates.min_lists (51)"
    )
    assert best_row(found, "model", few) == "model", "its gates are skipped"


def test_model_without_a_figure_is_left_to_the_gates() -> None:
    nan = float("nan")
    found = figures(model=(nan, nan), visrank_mean=(nan, nan), popularity=(nan, nan))
    assert best_row(found, "model", GatesConfig()) == "model"
