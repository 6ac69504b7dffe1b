"""What is published, as metrics for Prometheus' textfile collector.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/. docs/grafana.json is a
dashboard of these metrics.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime

from visrec.publication.gate import Gate
from visrec.publication.manifest import RunManifest
from visrec.publication.pointer import Pointer, read_published
from visrec.storage.store import Store

Sample = tuple[Mapping[str, str], float]  # labels, value

_HELP = {
    "visrec_published_timestamp_seconds": "When the published run became the published one.",
    "visrec_cutoff_timestamp_seconds": "The published run knows interactions before this moment.",
    "visrec_published_info": "The published run and its model; always 1.",
    "visrec_lists": "Lists of the published run.",
    "visrec_cold_lists": "Fallback lists of the published run: users whom the model cannot score.",
    "visrec_rows": "Rows of the published run.",
    "visrec_available_items": "Items that the published run may list.",
    "visrec_gate_value": "What a gate of the published run found.",
    "visrec_gate_passed": "1 if a gate of the published run passed, 0 if it was overridden.",
    "visrec_phase_seconds": "Seconds of a phase of the published run.",
    "visrec_last_exit_code": "Exit code of the last job: 3 was held back by a gate.",
    "visrec_last_end_timestamp_seconds": "When the last job ended.",
    "visrec_last_seconds": "Wall time of the last job.",
}


def metrics_text(
    recommendations: Store, *, job: str, exit_code: int, ended_at: float, seconds: float
) -> str:
    """The metrics after a job, whether it published, was held back, or failed.

    Args:
        recommendations: where the runs are.
        job: name of the job, such as nightly.
        exit_code: the job's exit code.
        ended_at: when the job ended, in seconds since 1970.
        seconds: wall time of the job.

    Raises:
        InputError: the pointer is damaged.
    """
    label = {"job": job}
    samples: dict[str, list[Sample]] = {
        "visrec_last_exit_code": [(label, exit_code)],
        "visrec_last_end_timestamp_seconds": [(label, ended_at)],
        "visrec_last_seconds": [(label, seconds)],
    }
    pointer, manifest = read_published(recommendations)
    if manifest is not None:
        samples |= _run_samples(manifest, pointer)
    return "".join(_lines(samples))


def _run_samples(run: RunManifest, pointer: Pointer) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {
        "visrec_published_info": [({"run_id": run.run_id, "model_id": run.model_id}, 1)],
        "visrec_lists": [({}, run.queries)],
        "visrec_cold_lists": [({}, run.cold_users)],
        "visrec_rows": [({}, run.rows)],
        "visrec_available_items": [({}, run.available)],
        "visrec_phase_seconds": [({"phase": name}, s) for name, s in run.seconds.items()],
        "visrec_gate_value": [
            ({"gate": gate.name}, float(gate.found))
            for gate in run.gates
            if isinstance(gate.found, int | float)
        ],
        "visrec_gate_passed": [
            ({"gate": gate.name}, _passed(gate)) for gate in run.gates if gate.outcome != "skipped"
        ],
    }
    if pointer.published_at is not None:
        moment = datetime.fromisoformat(pointer.published_at).timestamp()
        samples["visrec_published_timestamp_seconds"] = [({}, moment)]
    if run.cutoff_timestamp is not None:
        samples["visrec_cutoff_timestamp_seconds"] = [({}, run.cutoff_timestamp)]
    return samples


def _passed(gate: Gate) -> float:
    return 1.0 if gate.outcome == "passed" else 0.0


def _lines(samples: Mapping[str, list[Sample]]) -> Iterator[str]:
    for name, text in _HELP.items():
        if not samples.get(name):
            continue
        yield f"# HELP {name} {text}\n# TYPE {name} gauge\n"
        for labels, value in samples[name]:
            inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
            yield f"{name}{{{inside}}} {value!r}\n" if inside else f"{name} {value!r}\n"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
