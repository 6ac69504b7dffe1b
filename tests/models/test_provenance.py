"""Provenance as JSON: it comes back as it was, and other versions are refused."""

import json
from typing import Any

import pytest

from tests.training import provenance
from visrec.features.table import Identity
from visrec.interactions.split import SplitConfig
from visrec.models.provenance import InteractionsProvenance, Provenance

FULL = provenance(
    train={"epochs": 3},
    features_digest="f",
    features_identity=Identity(
        backbone="net",
        weights_digest="w",
        preprocessing={"mean": [0.5, 0.5, 0.5]},
        precision="float32",
        dim=64,
    ),
    interactions=InteractionsProvenance(
        digest="i",
        min_rating=4.0,
        as_of="2026-11-22",
        last_timestamp=1_763_000_000,
        has_marked_test_rows=True,
    ),
    items_digest="t",
    split=SplitConfig(validation=False, by="item"),
)


@pytest.mark.parametrize("made_from", [FULL, provenance()])
def test_provenance_survives_json(made_from: Provenance) -> None:
    fields = json.loads(json.dumps(made_from.to_dict()))
    assert Provenance.from_dict(fields) == made_from
    assert fields["version"] == Provenance.VERSION


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 2}, "version 2; expected 1"),
        ({"interactions": {"digest": "i", "color": "red"}}, "color"),
        ({"split": None}, "NoneType"),
    ],
)
def test_provenance_of_another_version_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Provenance.from_dict({**FULL.to_dict(), **changes})


def test_provenance_without_a_field_is_refused() -> None:
    fields = FULL.to_dict()
    del fields["settings_digest"]
    with pytest.raises(KeyError, match="settings_digest"):
        Provenance.from_dict(fields)
