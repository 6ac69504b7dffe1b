"""Checks of a store before a run relies on it.

The checks use the same methods as the jobs, in a scratch folder that `clean_up` removes. They test
what publication needs: without conditional writes, two nights that publish at the same time would
overwrite each other unnoticed.
"""

import hashlib
import os
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from visrec.errors import InputError, StorageError
from visrec.storage.store import Store

FOLDER = "_doctor"
PROBE = "probe"  # the first file written; other machines look for it
WRITABLE = "write and read"  # name of the check
RACERS = 8
# pyarrow uploads parts of at most 10 MiB, and anything smaller in one request.
_UPLOAD_BYTES = 24 << 20
_BLOCK_BYTES = 1 << 20
# Users name their picture files as they like.
_UNUSUAL_NAMES = (
    "two words",
    "übergröße-絵画",
    "50%",
    "%41",
    "a+b&c=d",
    "#?;'",
    "e\u0301=combined",
)
_CONDITIONS_ADVICE = (
    "Jobs that publish at the same time would overwrite each other unnoticed. Point --workspace at "
    "a store that honours If-None-Match and If-Match, as AWS S3 and SeaweedFS do, and look for a "
    "proxy in front of it that drops these headers."
)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the name of the check, at most 22 characters.
        found: what was found.
        expected: what should have been found.
        passed: whether a run can work with it; None if that is unknown or only informative.
        advice: what to change if the check failed.
    """

    name: str
    found: str
    expected: str
    passed: bool | None
    advice: str = ""

    def __str__(self) -> str:
        status = {True: "pass", False: "FAIL", None: "-"}[self.passed]
        return f"{status:<6}{self.found}" + ("" if self.passed else f"; expected {self.expected}")

    @property
    def complaint(self) -> str:
        """The finding as a part of an error message."""
        return f"{self.name}: found {self.found}, expected {self.expected}"


Outcome = tuple[bool, str]  # whether the check passed, and what it found


def check_store(workspace: Store, scratch: Store) -> list[Finding]:
    """Tries everything that jobs do with a store; stops early if it refuses to list or to write.

    Args:
        workspace: the store of the run, which is only listed.
        scratch: where files are written, from `scratch_store`.
    """
    listed = _attempt(workspace, "list", _list, "the names in the workspace")
    if not listed.passed:
        return [listed]  # writing would make SeaweedFS create a missing bucket
    written = _attempt(scratch, WRITABLE, _write, "each read to return what was written last")
    if not written.passed:
        return [listed, written]
    conditions = _CONDITIONS_ADVICE
    return [
        listed,
        written,
        _attempt(scratch, "create if absent", _create, "the second writer refused", conditions),
        _attempt(scratch, "replace if unchanged", _replace, "a late writer refused", conditions),
        _attempt(scratch, f"race of {RACERS} creators", _race, "1 to win", conditions),
        _attempt(
            scratch,
            "list after write",
            _list_again,
            "new files listed at once, and deleted files gone",
            "A run finds the work of an earlier one by listing, so work may be done twice here.",
        ),
        _attempt(
            scratch,
            "multipart upload",
            _upload,
            f"{_UPLOAD_BYTES >> 20} MiB read back with the same hash",
            "Ray writes checkpoints this way, so training would fail at its first checkpoint.",
        ),
        _attempt(
            scratch,
            "unusual names",
            _write_unusual_names,
            f"{len(_UNUSUAL_NAMES)} names written, listed and read back",
            "Pictures whose item ids contain such characters would not be found.",
        ),
    ]


def scratch_store(workspace: Store) -> Store:
    """A new folder in the workspace, used by one check of the store."""
    return workspace / FOLDER / uuid.uuid4().hex


def probe_error(scratch: Store) -> str:
    """Why this machine cannot read the probe that another one wrote; empty if it can."""
    try:
        scratch.read(PROBE)
    except InputError as error:  # an S3 setting of this machine
        return str(error)
    except StorageError as error:
        return _error_code(error)
    return ""


def clean_up(scratch: Store) -> Finding:
    """Removes the scratch folder, also after checks that failed half-way."""
    name, expected = "clean up", "nothing left behind"
    advice = f"Grant the right to delete, and remove {scratch.root} by hand."
    try:
        remaining = scratch.delete_all()
    except StorageError as error:
        return Finding(name, _error_code(error), expected, False, f"{_explain(error)} {advice}")
    return Finding(name, f"{remaining} files left", expected, not remaining, advice)


def _attempt(
    store: Store,
    name: str,
    check: Callable[[Store], Outcome],
    expected: str,
    advice: str = "",
) -> Finding:
    """Runs a check; an error of the store is a finding too."""
    try:
        passed, found = check(store)
    except StorageError as error:
        return Finding(name, _error_code(error), expected, False, f"{_explain(error)} {advice}")
    return Finding(name, found, expected, passed, "" if passed else advice)


def _error_code(error: StorageError) -> str:
    return f"an error ({error.code or type(error).__name__})"


def _explain(error: StorageError) -> str:
    """The reason of an error; the finding's name says which action failed."""
    if error.code == "NoSuchBucket":
        return "There is no such bucket: create it, or change --workspace."
    text = error.reason or str(error)
    return text[:1].upper() + text[1:]


def _list(store: Store) -> Outcome:
    first = next(iter(store.list()), None)  # one page
    return True, "no file yet" if first is None else "its first page"


def _write(store: Store) -> Outcome:
    for data in (b"written", b"written again", b"and again"):
        store.write(PROBE, data)
        if (found := store.read(PROBE)) != data:
            return False, f"{found!r} after a write of {data!r}"
    return True, "each write read back"


def _create(store: Store) -> Outcome:
    if not store.create("once", b"first"):
        return False, "the first writer refused"
    if store.create("once", b"second"):
        return False, "the second writer let in"
    return store.read("once") == b"first", "the second writer refused"


def _replace(store: Store) -> Outcome:
    store.write("pointer", b"one")
    _, old_version = store.read_versioned("pointer")
    store.write("pointer", b"two, by somebody else")
    if store.replace("pointer", b"three", old_version):
        return False, "a late writer let in"
    _, version = store.read_versioned("pointer")
    if not store.replace("pointer", b"four", version):
        return False, "a writer in time refused"
    return store.read("pointer") == b"four", "a late writer refused, one in time let in"


def _race(store: Store) -> Outcome:
    start = threading.Barrier(RACERS)

    def run(number: int) -> bool:
        start.wait()
        return store.create("race", f"by {number}".encode())

    with ThreadPoolExecutor(RACERS) as pool:
        won = list(pool.map(run, range(RACERS)))
    if sum(won) != 1:
        return False, f"{sum(won)} to win"
    stored = store.read("race").decode()
    return stored == f"by {won.index(True)}", f"1 to win, the file {stored}"


def _list_again(store: Store) -> Outcome:
    names = {f"listed/{letter}" for letter in "abc"}
    for name in sorted(names):
        store.write(name, b"x")
    listed = {entry.name for entry in store.list("listed/")}
    if listed != names:
        return False, f"{len(listed & names)} of 3 new files listed"
    store.delete(["listed/a", "listed/a"])  # deleting a missing file is no error
    listed = {entry.name for entry in store.list("listed/")}
    if listed != names - {"listed/a"} or store.exists("listed/a"):
        return False, "a deleted file listed"
    return True, "3 of 3 new files listed, a deleted one gone"


def _upload(store: Store) -> Outcome:
    name, sent, received = "big", hashlib.sha256(), hashlib.sha256()
    try:
        with store.open_output_stream(name) as sink:
            for _ in range(_UPLOAD_BYTES // _BLOCK_BYTES):
                block = os.urandom(_BLOCK_BYTES)
                sent.update(block)
                sink.write(block)
        with store.open_input_stream(name) as source:
            while block := source.read(_BLOCK_BYTES):
                received.update(block)
    except pa.ArrowException as error:
        reason = f"{error}."
        raise StorageError(
            f"Could not upload {store.uri(name)}: {reason}",
            path=store.uri(name),
            code=type(error).__name__,
            reason=reason,
        ) from error
    finally:
        store.abort_uploads()  # an upload that failed half-way keeps its parts, unseen and billed
    same = sent.digest() == received.digest()
    return same, f"{_UPLOAD_BYTES >> 20} MiB with {'the same' if same else 'another'} hash"


def _write_unusual_names(store: Store) -> Outcome:
    names = {f"unusual/{name}" for name in _UNUSUAL_NAMES}
    for name in names:
        store.write(name, name.encode())
    listed = {entry.name for entry in store.list("unusual/")}
    wrong = [name for name in sorted(names) if name not in listed]
    wrong += [name for name in sorted(names & listed) if store.read(name) != name.encode()]
    good = len(names) - len(wrong)
    return not wrong, f"{good} of {len(names)} names" + (f", not {wrong[0]!r}" if wrong else "")
