"""Tests the promises of docs/reliability.md at full length and prints what was counted.

`python -m tests.chaos` tests all of them; with paths, only those tests run:
`python -m tests.chaos tests/chaos/test_store_outages.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.harness import FULL, LOG

COMMITS, HOSTILE = "tests/chaos/test_commits.py::", "tests/chaos/test_hostile_models_and_ids.py::"

MAX_SECONDS = 5400  # of one test: ten times the limit of the suite


@dataclass
class Promise:
    """One promise of docs/reliability.md.

    Attributes:
        words: what is promised.
        proofs: the ids of the tests that prove it start with one of these.
        outcomes: how many of these tests passed, failed or were skipped.
        counts: what they counted.
    """

    words: str
    proofs: tuple[str, ...]
    outcomes: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def verdict(self) -> str:
        if self.outcomes["failed"]:
            return "failed"
        return "passed" if self.outcomes["passed"] else "not run"


def promises() -> dict[int, Promise]:
    chaos = "tests/chaos/test_"
    return {
        1: Promise(
            "one publication of a run wins, none is lost",
            (f"{COMMITS}test_one_of_the_processes", f"{COMMITS}test_every_move"),
        ),
        2: Promise(
            "a lost reply is neither a lost nor a second commit",
            (f"{COMMITS}test_fault", "tests/storage/test_conditional_writes.py"),
        ),
        3: Promise("work that is killed or retried appears once", (f"{chaos}kills.py",)),
        4: Promise("a reader never sees half a run", (f"{COMMITS}test_reader",)),
        5: Promise("a rerun does only what is missing", (f"{chaos}reruns.py",)),
        6: Promise(
            "bad rows and pictures are bounded and named",
            ("tests/integration/test_extract.py", f"{chaos}http_pictures.py"),
        ),
        7: Promise("workers, nodes and the driver may die", (f"{chaos}killed_workers.py",)),
        8: Promise(
            "the store may go away",
            (f"{chaos}store_outages.py", "tests/test_servers.py::test_objects_survive"),
        ),
        9: Promise(
            "only checked lists are published",
            (
                "tests/publication/test_gates.py",
                "tests/publication/test_gates_with_rules.py",
            ),
        ),
        10: Promise(
            "hostile pictures do no harm",
            (
                f"{chaos}hostile_pictures.py::test_crafted",
                f"{chaos}hostile_pictures.py::test_mutated",
                f"{chaos}hostile_pictures.py::test_watch",
                "tests/features/test_decode.py",
            ),
        ),
        11: Promise(
            "a model file runs no code",
            (
                f"{HOSTILE}test_no_file",
                f"{HOSTILE}test_a_table",
                f"{HOSTILE}test_a_joblib",
                "tests/models/test_artifact.py",
            ),
        ),
        12: Promise(
            "the cluster accepts nobody without the token",
            (f"{chaos}cluster_access.py", "tests/test_servers.py::test_job_without"),
        ),
        13: Promise(
            "secrets stay out of messages, files and reprs",
            (f"{HOSTILE}test_keys", "tests/storage/test_store.py"),
        ),
        14: Promise("ids cannot steer paths", (f"{HOSTILE}test_ids",)),
        15: Promise(
            "an unsuitable store is refused",
            (
                "tests/pipelines/test_doctor.py",
                "tests/pipelines/test_cluster_checks.py",
                "tests/storage/test_preflight.py",
            ),
        ),
        16: Promise("nights are repeatable", (f"{chaos}nights.py",)),
        # These are proved by the tests that count something for them.
        17: Promise("a published folder holds exactly the files of its manifest", ()),
        18: Promise("rerunning a complete run moves nothing", ()),
        19: Promise("retention never removes what is pointed to or being written", ()),
        20: Promise("a recorded hash is that of the bytes that were written", ()),
        21: Promise("lists are the model's", ()),
        22: Promise(
            "memory depends neither on the scores nor on --k beyond the catalogue",
            (f"{chaos}memory.py",),
        ),
        23: Promise("a date in the future is refused", ()),
        24: Promise("evaluation never uses rows that were trained on", ()),
        25: Promise("every model trains the same with one worker and with several", ()),
        26: Promise("blanks are nulls", ()),
        27: Promise("every client of the store has the same configuration", ()),
        28: Promise("a reader of a table sees the published run or the one before it", ()),
        29: Promise("an export leaves each store with one whole run", (f"{chaos}exports.py",)),
        30: Promise("a forgotten user is in no file, and readers see a whole run meanwhile", ()),
    }


SUMS = (
    *("rows_acknowledged", "rows_lost", "rows_doubled"),
    *("commits_acknowledged", "commits_lost", "commits_doubled"),
    *("polls", "partial_reads", "bad_inputs", "crashes", "mutants_tried", "mutants_held_back"),
)


def outcomes_in(report: Path) -> dict[str, str]:
    """The outcome of each test, by its id."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}"
        kinds = {child.tag for child in case}
        bad, skipped = kinds & {"failure", "error"}, "skipped" in kinds
        found[name] = "failed" if bad else "skipped" if skipped else "passed"
    return found


def proved(outcomes: dict[str, str], lines: list[dict[str, Any]]) -> dict[int, Promise]:
    """The promises with the counts and outcomes of their tests."""
    found = promises()
    # A test that counted something for a promise is one of its tests, whether it is listed or not.
    counted = {(line["promise"], line["test"]) for line in lines}
    for number, promise in found.items():
        for test, outcome in outcomes.items():
            if test.startswith(promise.proofs) or (number, test) in counted:
                promise.outcomes[outcome] += 1
    for line in lines:
        found[line["promise"]].counts.update(line["counts"])
    return found


def summed(found: dict[int, Promise]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for promise in found.values():
        total.update(promise.counts)
    faults = sorted(name for name in total if name.startswith("faults_"))
    return {name: total[name] for name in (*faults, *SUMS) if name in total}


def shown(found: dict[int, Promise], sums: dict[str, int], seconds: float) -> str:
    def counts(values: dict[str, int]) -> str:
        return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in values.items())

    lines = ["| # | promise | outcome | tests | measured |", "|---|---|---|---|---|"]
    for number, promise in found.items():
        tests = ", ".join(f"{count} {what}" for what, count in promise.outcomes.items())
        cells = (str(number), promise.words, promise.verdict, tests, counts(promise.counts))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"In all: {counts(sums)}.", f"{seconds:.0f} s."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", help="tests to run; by default those of all promises")
    parser.add_argument("--json", type=Path, help="file for the same as JSON")
    arguments = parser.parse_args()
    proofs = {proof for promise in promises().values() for proof in promise.proofs}
    outside = {proof.partition("::")[0] for proof in proofs if "tests/chaos/" not in proof}
    paths = arguments.paths or ["tests/chaos", "tests/test_proxy.py", *sorted(outside)]
    # Two at once: most of the time of a night goes to waiting for processes to start.
    pytest = [sys.executable, "-m", "pytest", "-q", "--numprocesses=2", "--dist=loadfile"]
    pytest += ["--no-loadscope-reorder"]  # else test_kills.py, the longest, would be last
    pytest += [f"--timeout={MAX_SECONDS}", "--durations=15"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log, report = Path(folder, "log"), Path(folder, "report.xml")
        log.touch()
        done = subprocess.run(
            [*pytest, f"--junitxml={report}", *paths],
            cwd=Path(__file__).parents[2],
            env={**os.environ, FULL: "full", LOG: str(log)},
            check=False,
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        outcomes = outcomes_in(report) if report.exists() else {}
    found, seconds = proved(outcomes, lines), time.monotonic() - start
    sums = summed(found)
    print(f"\n{shown(found, sums, seconds)}")  # noqa: T201
    if arguments.json is not None:
        table = [
            {
                "number": number,
                "promise": promise.words,
                "outcome": promise.verdict,
                "tests": dict(promise.outcomes),
                "measured": dict(promise.counts),
            }
            for number, promise in found.items()
        ]
        record = {"promises": table, "sums": sums, "seconds": round(seconds, 1)}
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
