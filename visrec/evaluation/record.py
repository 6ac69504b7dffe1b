"""`_evaluation.json`: what was evaluated and when, so that the next evaluation can look back.

`metrics.json` has no dates in it, because it is the same for the same inputs.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from visrec.errors import InputError
from visrec.storage.store import Store

RECORD = "_evaluation.json"
VERSION = 1

Means = Mapping[str, float]  # by metric


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord:
    """One evaluation, in short.

    Attributes:
        model_id: the first model of the table.
        digest: the digest of its artifact.
        data_until: Unix seconds of the latest interaction that it was trained on.
        made_at: when it was evaluated, as ISO 8601 in UTC.
        users: number of test users.
        items: number of items that were ranked.
        means: its metrics, those of its lists included.
        rival: the best baseline; None without any.
        rival_means: the metrics of that baseline.
        before: the evaluation before this one, without its own `before`.
        version: the version of this record.
    """

    model_id: str
    digest: str
    data_until: int
    made_at: str
    users: int
    items: int
    means: Means
    rival: str | None = None
    rival_means: Means = field(default_factory=dict)
    before: "EvaluationRecord | None" = None
    version: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "EvaluationRecord":
        """The record with these fields; raises TypeError or KeyError for others."""
        before = fields["before"]
        return cls(**{**fields, "before": before and cls.from_dict(before)})


def find_previous(
    evaluations: Iterable[Store],
    digest: str,
    data_until: int,
    say: Callable[[str], None],
) -> EvaluationRecord | None:
    """The evaluation of another model before this one.

    Of the models whose training data end no later than this one's, it is the one with the latest
    end; among equals, the one evaluated last.

    Args:
        evaluations: directories of evaluations, the own one included, before anything is written.
        digest: the digest of the model that is evaluated now.
        data_until: where its training data end.
        say: gets a message about a record that cannot be read, which counts as absent.
    """
    records = []
    for store in evaluations:
        try:
            record = read_evaluation(store)
        except InputError as error:
            say(str(error))
            continue
        records += [] if record is None else [record]
    records += [record.before for record in records if record.before is not None]
    others = [r for r in records if r.digest != digest and r.data_until <= data_until]
    latest = max(others, key=lambda record: (record.data_until, record.made_at), default=None)
    return latest and dataclasses.replace(latest, before=None)


def read_evaluation(store: Store) -> EvaluationRecord | None:
    """The record of an evaluation.

    Returns:
        None if there is none, or another version of visrec wrote it: it only serves to look back.

    Raises:
        InputError: it is not JSON.
    """
    if not store.exists(RECORD):
        return None
    fields = store.read_json(RECORD)
    if not isinstance(fields, dict) or fields.get("version") != VERSION:
        return None
    try:
        return EvaluationRecord.from_dict(fields)
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{store.uri(RECORD)} is not the record that visrec wrote ({error}). Remove it: the "
            "report then compares with no earlier evaluation.",
            path=store.uri(RECORD),
        ) from error
