"""The variants of an ablation: each differs from the model in one thing."""

import dataclasses

from visrec.pipelines.ablate import SIX, variants
from visrec.sampling.triples import SamplingConfig

OWN = SamplingConfig(negatives="drawn", max_profile=7)


def test_variants_differ_in_guidelines_or_in_the_positive_alone() -> None:
    found = variants(OWN, SIX)
    assert {*found} == {
        "guidelines",
        *(f"without-{name}" for name in SIX),
        "positive-in-profile",  # and not "random": that is the model itself
    }
    assert found["guidelines"].drawn_by == SIX
    assert found["without-next_basket"].drawn_by == tuple(n for n in SIX if n != "next_basket")
    assert found["positive-in-profile"].keep_positive_in_profile
    for config in found.values():
        same = dataclasses.replace(
            config, guidelines=OWN.guidelines, keep_positive_in_profile=False
        )
        assert same == OWN


def test_guidelines_that_the_data_rule_out_are_in_no_variant() -> None:
    found = variants(OWN, ("own_profile", "single_item"))
    assert found["guidelines"].drawn_by == ("own_profile", "single_item")
    assert {name for name in found if name.startswith("without")} == {
        "without-own_profile",
        "without-single_item",
    }


def test_kept_positive_is_left_out_in_its_variant() -> None:
    paper = dataclasses.replace(
        OWN, guidelines=dict.fromkeys(SIX, 1.0), keep_positive_in_profile=True
    )
    found = variants(paper, SIX)
    assert "guidelines" not in found
    assert found["random"].drawn_by == ("random",)
    assert found["random"].keep_positive_in_profile
    assert not found["positive-out-of-profile"].keep_positive_in_profile
