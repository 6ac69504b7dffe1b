"""What the rest of a workspace adds to the report of an evaluation."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from visrec.config import nan_if_null
from visrec.errors import VisrecError
from visrec.evaluation.report_content import (
    HeldBackRun,
    Publication,
    RejectedPicture,
    RejectedPictures,
    SweepSummary,
    SweepTrial,
    TrainingCurve,
    WorkspaceFacts,
)
from visrec.features.table import Manifest, read_manifest
from visrec.interactions.log import ReadReport
from visrec.models.artifact import read_training_record
from visrec.models.provenance import DataProvenance
from visrec.publication.gate import Gate
from visrec.publication.manifest import HELD_BACK, RunManifest, read_run_manifest
from visrec.publication.pointer import Pointer, read_published
from visrec.publication.run_spec import run_store
from visrec.storage.store import Store

_SHOWN_REJECTIONS = 50
_SHOWN_SWEEPS = 5
_TRIAL_COLUMNS = ("trial", "best_val_auc", "epochs", "status", "seconds", "error")


@dataclass(frozen=True, kw_only=True)
class FactSources:
    """Where the facts are.

    Attributes:
        models: the trained models' directories, by label.
        features: the features directory.
        sweeps: the searches for settings.
        recommendations: the runs of lists.
        summaries: the summaries of the jobs.
    """

    models: Mapping[str, Store]
    features: Store
    sweeps: Store
    recommendations: Store
    summaries: Store


def read_facts(sources: FactSources, report: ReadReport, job: str) -> WorkspaceFacts:
    """Reads what exists, leaves out what does not, and names what is damaged.

    Args:
        sources: where to read.
        report: what became of the rows of the interactions.
        job: the running job, whose last summary is out of date.
    """
    manifest = read_manifest(sources.features)
    facts = WorkspaceFacts(
        data=_data_facts(next(iter(sources.models.values())), manifest, report),
        rejected=_read_rejected(sources.features, manifest),
    )
    # A damaged file of another job must not cost an evaluation its report.
    parts = {
        "training curves": _read_curves,
        "publications": _read_publications,
        "sweeps": _read_sweeps,
        "summaries of jobs": _read_seconds,
    }
    for name, read in parts.items():
        try:
            facts = replace(facts, **read(sources, job))
        except (VisrecError, KeyError, TypeError) as error:
            text = f"The {name} could not be read: {type(error).__name__}: {error}"
            facts = replace(facts, unreadable=[*facts.unreadable, text])
    return facts


def _data_facts(model: Store, manifest: Manifest, report: ReadReport) -> dict[str, str]:
    data = read_training_record(model)[0].data
    left_out = ", ".join(f"{n:,} {why}" for why, n in report.left_out.items() if n)
    return {
        "Interactions read": f"{report.rows:,}",
        "Rows left out": left_out or "none",
        **_interaction_facts(data),
        "Items with a feature": f"{manifest.rows:,}",
        "Backbone": str(manifest.identity),
        "Held out": _held_out(data),
    }


def _held_out(data: DataProvenance) -> str:
    """What the training held out for test, in words."""
    if data.split.at:
        return f"what was taken from {data.split.at} on of each user"
    if data.interactions.has_marked_test_rows:
        return "the rows that the evaluation column marks"
    return f"the last {'item' if data.split.by == 'item' else 'basket'} of each user"


def _interaction_facts(data: DataProvenance) -> dict[str, str]:
    interactions = data.interactions
    facts = {}
    if interactions.last_timestamp is not None:
        last = datetime.fromtimestamp(interactions.last_timestamp, UTC)
        facts["Training data until"] = f"{last:%Y-%m-%d %H:%M} UTC"
    if interactions.min_rating is not None:
        facts["Rows count from the rating"] = f"{interactions.min_rating:g}"
    return facts


def _read_curves(sources: FactSources, _: str) -> dict[str, Any]:
    """How each model was trained."""
    return {"curves": [_read_curve(label, store) for label, store in sources.models.items()]}


def _read_curve(label: str, model: Store) -> TrainingCurve:
    metrics = read_training_record(model)[1]
    history = metrics["history"]
    return TrainingCurve(
        model=label,
        val_auc=[nan_if_null(epoch["val_auc"]) for epoch in history],
        loss=[nan_if_null(epoch["loss"]) for epoch in history],
        best_epoch=metrics.get("best_epoch"),
    )


def _read_sweeps(sources: FactSources, _: str) -> dict[str, Any]:
    """The sweeps that have a table of trials, by name."""
    sweeps = sources.sweeps
    names = sorted(e.name for e in sweeps.list() if e.name.endswith("/trials.parquet"))
    summaries = []
    for name in names[:_SHOWN_SWEEPS]:
        trials = [_trial(row) for row in sweeps.read_table(name).to_pylist()]
        summaries.append(SweepSummary(name=name.removesuffix("/trials.parquet"), trials=trials))
    return {"sweeps": summaries}


def _trial(row: Mapping[str, Any]) -> SweepTrial:
    """A row of the table, whose searched keys have values of any type."""
    auc = row["best_val_auc"]
    values = {
        key: f"{value:.3g}" if isinstance(value, float) else str(value)
        for key, value in row.items()
        if key not in _TRIAL_COLUMNS
    }
    return SweepTrial(
        number=row["trial"],
        values=values,
        auc=None if auc is None or math.isnan(auc) else auc,
        status=row["status"],
    )


def _read_publications(sources: FactSources, _: str) -> dict[str, Any]:
    """What is published, and what gates held back."""
    pointer, run = read_published(sources.recommendations)
    return {
        "publication": _read_publication(sources.recommendations, pointer, run),
        "held_back": _read_held_back(sources.recommendations, pointer),
    }


def _read_publication(
    recommendations: Store, pointer: Pointer, run: RunManifest | None
) -> Publication | None:
    if run is None:
        return None
    before = None
    if pointer.previous_run_id is not None:
        before = read_run_manifest(run_store(recommendations, pointer.previous_run_id))
    return Publication(published_at=str(pointer.published_at), run=run, before=before)


def _read_held_back(recommendations: Store, pointer: Pointer) -> HeldBackRun | None:
    """The last run that gates held back; None if a run was published since."""
    runs = []
    for entry in recommendations.list():
        if entry.name.endswith(f"/{HELD_BACK}"):
            record = recommendations.read_json(entry.name)
            runs.append((str(record["held_back_at"]), entry.name, record["gates"]))
    if not runs:
        return None
    held_back_at, name, gates = max(runs)
    if pointer.published_at is not None and held_back_at < pointer.published_at:
        return None
    return HeldBackRun(
        run_id=name.removeprefix("run=").removesuffix(f"/{HELD_BACK}"),
        held_back_at=held_back_at,
        gates=[gate for gate in map(Gate.from_dict, gates) if gate.outcome == "failed"],
    )


def _read_rejected(features: Store, manifest: Manifest) -> RejectedPictures | None:
    if manifest.identity.is_imported:
        return None
    by_reason: Counter[str] = Counter()
    examples: list[RejectedPicture] = []
    for name in sorted(manifest.rejected):
        table = features.read_table(name, ["item_id", "reason", "detail"])
        by_reason.update(_counts(table["reason"]))
        rows = table.slice(0, _SHOWN_REJECTIONS - len(examples)).to_pylist()
        examples += [RejectedPicture(**row) for row in rows]
    return RejectedPictures(by_reason=dict(by_reason), examples=examples)


def _counts(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def _read_seconds(sources: FactSources, job: str) -> dict[str, Any]:
    """Wall time by job and by phase, of all jobs but the running one."""
    summaries = sources.summaries
    seconds = {}
    for name in sorted(entry.name for entry in summaries.list() if entry.name.endswith(".json")):
        if name != f"{job}.json":
            seconds[name.removesuffix(".json")] = summaries.read_json(name)["wall_s"]
    return {"seconds": seconds}
