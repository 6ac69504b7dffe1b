"""One gate: a check before publication, as the manifest records it.

The gates themselves are in `integrity_gates.py`, `judgement_gates.py` and `held_out_gates.py`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from visrec.publication.records import JsonObject
from visrec.text import format_threshold, round_beside

Outcome = Literal["passed", "skipped", "failed", "forced"]


@dataclass(frozen=True)
class Gate:
    """One check before publication.

    Attributes:
        name: what is checked.
        found: what was found; None where the gate was skipped.
        expected: what was expected.
        outcome: `passed`; `failed`, which holds the publication back; `forced`, which failed and
            was overridden; or `skipped`, where too little is known to decide.
        key: the configuration key of the threshold, without dashes; empty for a gate without one.
        note: the numbers behind `found`, or why the gate was skipped.
    """

    name: str
    found: float | str | None
    expected: float | str
    outcome: Outcome
    key: str = ""
    note: str = ""

    @property
    def sentence(self) -> str:
        """What was found, what was expected, which key to change."""
        note = f" ({self.note})" if self.note else ""
        key = f" (--{self.key})" if self.key else ""
        return f"{self.name}: found {self.found}{note}, expected {self.expected}{key}."

    def to_dict(self) -> JsonObject:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: JsonObject) -> "Gate":
        """The gate with these fields; raises TypeError for others."""
        return cls(**data)


def exactly(name: str, found: float, expected: int, note: str = "") -> Gate:
    """A gate without a threshold."""
    outcome: Outcome = "passed" if found == expected else "failed"
    return Gate(name, round_beside(found, expected), expected, outcome, note=note)


def at_least(name: str, found: float, threshold: float, key: str, note: str = "") -> Gate:
    outcome: Outcome = "passed" if found >= threshold else "failed"
    expected = f"at least {format_threshold(threshold)}"
    return Gate(name, round_beside(found, threshold), expected, outcome, key, note)


def at_most(name: str, found: float, threshold: float, key: str, note: str = "") -> Gate:
    outcome: Outcome = "passed" if found <= threshold else "failed"
    expected = f"at most {format_threshold(threshold)}"
    return Gate(name, round_beside(found, threshold), expected, outcome, key, note)


def skipped(name: str, expected: float | str, note: str, key: str = "") -> Gate:
    """A gate for which too little is known: it neither passes nor holds back."""
    return Gate(name, None, expected, "skipped", key, note)
