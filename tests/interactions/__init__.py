"""What the tests of sampling share."""

import dataclasses

from visrec.sampling.triples import SamplingConfig


def sampling(**changes: object) -> SamplingConfig:
    """Random sampling, whatever the defaults are."""
    base = SamplingConfig(
        guidelines={"random": 1.0},
        negatives="drawn",
        popularity=0.0,
        keep_positive_in_profile=False,
        sub_profiles=True,
        max_profile=20,
    )
    return dataclasses.replace(base, **changes)
