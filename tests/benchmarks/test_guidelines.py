"""The guidelines' table: which flags each way of sampling has, and what its keys say."""

from typing import Any

import pytest

from benchmarks.guidelines import PUBLISHED, SETTINGS, figures, variants
from visrec.cli.parse import parse
from visrec.pipelines.train import TrainJob


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model", PUBLISHED)
def test_the_two_ways_of_sampling_differ_by_the_guidelines_alone(model: str, settings: str) -> None:
    random, guidelines = (
        parse(TrainJob, flags).sampling for flags in variants(model, settings).values()
    )
    assert random.negatives == guidelines.negatives
    assert random.guidelines == {"random": 1.0}
    assert len(guidelines.guidelines) == (6 if model == "curatornet" else 4)
    assert random.keep_positive_in_profile == guidelines.keep_positive_in_profile


def test_figures_are_flat_and_paired() -> None:
    def metrics(value: float) -> dict[str, Any]:
        names = ("auc", "recall@20", "ndcg@20", "recall@100")
        return {name: {"mean": value, "spread": 0.01} for name in names}

    difference = {"mean": 0.1, "low": 0.05, "high": 0.15, "above": 1.0, "n": 9}
    found = {
        "models": {"vbpr_random": metrics(0.6), "vbpr_guidelines": metrics(0.7)},
        "paired": {"vbpr_guidelines - vbpr_random": {"auc": difference}},
    }
    flat = figures("vbpr", found)
    assert (flat["vbpr_guidelines_auc"], flat["vbpr_random_auc"]) == (0.7, 0.6)
    assert flat["vbpr_guidelines_minus_random_auc"] == 0.1
    assert flat["vbpr_guidelines_minus_random_auc_interval"] == [0.05, 0.15]
