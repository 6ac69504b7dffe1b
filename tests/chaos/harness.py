"""What the suites of the promises share: how much they do, what they counted, and odd processes.

A count is named by what is summed in the end: `faults_<kind>` for what was injected,
`rows_acknowledged`, `rows_lost`, `rows_doubled`, `polls`, `partial_reads`, `bad_inputs`, `crashes`,
`mutants_tried`, `mutants_held_back`; any other name is shown at its own promise alone.
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
from typing import Any

from visrec.features.decode import PictureError, PictureLimits, Preprocessing, decode
from visrec.publication.run import Gate, complete, run_store
from visrec.storage.s3_clients import forget_credentials
from visrec.storage.store import Store

FULL, LOG = "VISREC_CHAOS", "VISREC_CHAOS_LOG"
PASSED = Gate(name="users with a list", found=1, expected="at least 1", outcome="passed")
PATIENCE = 5  # seconds that one hostile picture may take
# Not fork: the process of the tests may hold Ray's and pyarrow's threads.
PROCESSES: SpawnContext = multiprocessing.get_context("spawn")


def amount(short: int, full: int) -> int:
    """How often: `full` in `make chaos`, `short` in `make test`."""
    return full if os.environ.get(FULL) == "full" else short


def measured(promise: int, **counts: int) -> None:
    """Tells `make chaos` what a test counted for a promise; counts of one name add up."""
    if log := os.environ.get(LOG):
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]
        line = json.dumps({"promise": promise, "test": test, "counts": counts})
        with open(log, "a") as file:
            file.write(line + "\n")


def adopt(env: Mapping[str, str]) -> None:
    """What a process that a test started does first: it finds the store by these variables."""
    os.environ.update(env)
    forget_credentials()


def shards_of(run: Store, contents: Mapping[str, bytes], writer: str = "") -> dict[str, Any]:
    """Writes a run's files and describes them as scoring does, one row each."""
    files = {}
    for name, data in contents.items():
        run.write(name, data)
        facts = {"rows": 1, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        files[name] = facts
    return {"files": files, "writer": writer}


def contents_of(run_id: str, shards: int = 2, size: int = 20_000) -> dict[str, bytes]:
    """Files that differ from run to run and are the same each time a run is tried."""
    stem = hashlib.sha256(run_id.encode()).digest()
    return {f"part-{n:05}.parquet": (stem + bytes([n])) * (size // 33) for n in range(shards)}


def completed(lists: Store, run_id: str, writer: str = "") -> Mapping[str, Any]:
    """A run's files and its manifest; the pointer stays."""
    run = run_store(lists, run_id)
    return complete(run, shards_of(run, contents_of(run_id), writer), [PASSED])[0]


def damage(run: Store, manifest: Mapping[str, Any]) -> list[str]:
    """The files of a run that are not what its manifest says."""
    return [
        name
        for name, facts in manifest["files"].items()
        if hashlib.sha256(run.read(name)).hexdigest() != facts["sha256"]
    ]


class Witness(Store):
    """A store that remembers what it was told that it committed."""

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
    """What becomes of each picture: ("pixels", their digest) or (the reason, the detail).

    To be called in a process of its own. It ends at once, with the stack on standard error, if one
    picture takes too long, even inside C code; what wants more than `room` bytes of memory beyond
    what the process has gets a MemoryError.
    """
    warnings.simplefilter("ignore")  # of odd metadata
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
