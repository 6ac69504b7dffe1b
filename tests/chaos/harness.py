"""Shared by the tests of the promises: how much they do, what they count, runs and processes.

Counts of these names are summed over all promises: `faults_<kind>` for injected faults,
`rows_acknowledged`, `rows_lost`, `rows_doubled`, `polls`, `partial_reads`, `bad_inputs`, `crashes`,
`mutants_tried`, `mutants_held_back`. A count of any other name is shown only with its own promise.
"""

import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import warnings
from collections.abc import Mapping
from multiprocessing.context import SpawnContext
from pathlib import Path

import pytest

from tests.publication.runs import PASSED, draft_manifest, write_files
from visrec.features.decode import PictureError, PictureLimits, Preprocessing, decode
from visrec.publication.completion import finish_run
from visrec.publication.manifest import RunManifest
from visrec.publication.run_spec import run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

FULL, LOG = "VISREC_CHAOS", "VISREC_CHAOS_LOG"
PATIENCE = 5  # seconds that one hostile picture may take
# Not fork: the process of the tests may hold Ray's and pyarrow's threads.
PROCESSES: SpawnContext = multiprocessing.get_context("spawn")


def is_full() -> bool:
    """Whether this is `make chaos`, and not `make test`."""
    return os.environ.get(FULL) == "full"


def amount(short: int, full: int) -> int:
    """How many repetitions: `full` in `make chaos`, `short` in `make test`."""
    return full if is_full() else short


def on_ray_at_full_length() -> list[pytest.MarkDecorator]:
    """Marks of tests that take minutes on Ray: in `make test` their jobs run without it."""
    return [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")] if is_full() else []


def measured(promise: int, **counts: int) -> None:
    """Reports to `make chaos` what a test counted for a promise; counts of one name add up."""
    if log := os.environ.get(LOG):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        line = json.dumps({"promise": promise, "test": test, "counts": counts})
        with open(log, "a") as file:
            file.write(line + "\n")


def adopt(env: Mapping[str, str]) -> None:
    """Sets the environment with which a process that a test started finds the store."""
    os.environ.update(env)
    forget_credentials()


def write_draft(run: Store, contents: Mapping[str, bytes], writer: str = "") -> RunManifest:
    """Writes the files of a run; returns the draft of its manifest, with the writer as model id."""
    run_id = run.name.removeprefix("run=")
    return draft_manifest(run_id=run_id, model_id=writer, files=write_files(run, contents))


def run_contents(run_id: str, shards: int = 2, size: int = 20_000) -> dict[str, bytes]:
    """Files that differ from run to run and are the same each time a run is tried."""
    stem = hashlib.sha256(run_id.encode()).digest()
    return {f"part-{n:05}.parquet": (stem + bytes([n])) * (size // 33) for n in range(shards)}


def make_complete_run(lists: Store, run_id: str, writer: str = "") -> RunManifest:
    """Writes the files and the manifest of a run; the pointer does not move."""
    run = run_store(lists, run_id)
    return finish_run(run, write_draft(run, run_contents(run_id), writer), [PASSED])[0]


def damaged_files(run: Store, manifest: RunManifest) -> list[str]:
    """The files of a run that are not those of its manifest."""
    return [
        name
        for name, sha256 in manifest.sha256_by_file.items()
        if hashlib.sha256(run.read(name)).hexdigest() != sha256
    ]


class Witness(Store):
    """A store that records the conditional writes that were acknowledged to it."""

    def create(self, name: str, data: bytes) -> bool:
        return self._noted(name, data, super().create(name, data))

    def replace(self, name: str, data: bytes, version: str) -> bool:
        return self._noted(name, data, super().replace(name, data, version))

    @property
    def commits(self) -> list[tuple[str, bytes]]:
        found: list[tuple[str, bytes]] = self.__dict__.setdefault("_commits", [])
        return found

    def _noted(self, name: str, data: bytes, done: bool) -> bool:
        if done:
            self.commits.append((name, data))
        return done


def tried(
    files: Mapping[str, bytes],
    preprocessing: Preprocessing,
    limits: PictureLimits,
    room: int,
    patience: float = PATIENCE,
) -> dict[str, tuple[str, str]]:
    """Decodes each picture: ("pixels", their digest), or (the reason, the detail) of the error.

    Call it in a separate process. If one picture takes longer than `patience` seconds, even inside
    C code, the process ends at once, with the stack on standard error. An allocation of more than
    `room` bytes beyond the present memory of the process raises a MemoryError.
    """
    warnings.simplefilter("ignore")  # unusual metadata cause some
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    found = {}
    for name, data in files.items():
        faulthandler.dump_traceback_later(patience, exit=True)
        try:
            pixels = decode(data, preprocessing, limits)
            assert pixels.shape == preprocessing.shape
            found[name] = ("pixels", hashlib.sha256(pixels.tobytes()).hexdigest())
        except PictureError as error:
            found[name] = (error.reason, error.detail)
        finally:
            faulthandler.cancel_dump_traceback_later()
    return found
