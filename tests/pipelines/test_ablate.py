"""The variants of an ablation: each differs from the model in one thing."""

import dataclasses

from visrec.pipelines.ablate import PAPER_GUIDELINES, sampling_variants
from visrec.sampling.triples import SamplingConfig

MODEL_SAMPLING = SamplingConfig(negatives="drawn", max_profile=7)


def test_each_variant_differs_in_guidelines_or_in_the_positive_item_alone() -> None:
    found = sampling_variants(MODEL_SAMPLING, PAPER_GUIDELINES)
    assert {*found} == {
        "guidelines",
        *(f"without-{name}" for name in PAPER_GUIDELINES),
        "positive-in-profile",  # and not "random": that is the model itself
    }
    assert found["guidelines"].active_guidelines == PAPER_GUIDELINES
    assert found["without-next_basket"].active_guidelines == tuple(
        n for n in PAPER_GUIDELINES if n != "next_basket"
    )
    assert found["positive-in-profile"].keep_positive_in_profile
    for config in found.values():
        same = dataclasses.replace(
            config, guidelines=MODEL_SAMPLING.guidelines, keep_positive_in_profile=False
        )
        assert same == MODEL_SAMPLING


def test_guidelines_that_cannot_sample_from_the_data_are_in_no_variant() -> None:
    found = sampling_variants(MODEL_SAMPLING, ("own_profile", "single_item"))
    assert found["guidelines"].active_guidelines == ("own_profile", "single_item")
    assert {name for name in found if name.startswith("without")} == {
        "without-own_profile",
        "without-single_item",
    }


def test_variant_leaves_out_the_positive_item_that_the_model_kept() -> None:
    paper = dataclasses.replace(
        MODEL_SAMPLING,
        guidelines=dict.fromkeys(PAPER_GUIDELINES, 1.0),
        keep_positive_in_profile=True,
    )
    found = sampling_variants(paper, PAPER_GUIDELINES)
    assert "guidelines" not in found
    assert found["random"].active_guidelines == ("random",)
    assert found["random"].keep_positive_in_profile
    assert not found["positive-out-of-profile"].keep_positive_in_profile
