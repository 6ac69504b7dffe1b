"""Whether a place is fit for a run: what its store does when it is tried, what a run will take.

The store is tried by the methods that the jobs use, below a folder of its own that `sweep` removes.
What is asked of it is what publication relies on: without conditional writes two nights that
publish at once overwrite each other, and nothing says so.
"""

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from botocore.exceptions import BotoCoreError, ClientError

from visrec.errors import InputError, StorageError
from visrec.storage.s3_clients import translated
from visrec.storage.store import Store

FOLDER = "_doctor"
PROBE = "probe"  # left by the first write, for other machines to look for
WRITABLE = "write and read"  # the name of the finding
RACERS = 8
# pyarrow sends parts of at most 10 MiB, and anything smaller in one request.
_BIG = 24 << 20
_BLOCK = 1 << 20
# What picture files are called is their owner's choice.
_UNUSUAL = ("two words", "übergröße-絵画", "50%", "%41", "a+b&c=d", "#?;'", "e\u0301=combined")
_CONDITIONS = (
    "Jobs that publish at once would overwrite each other without a word. Point --workspace at a "
    "store that honours If-None-Match and If-Match, as AWS S3 and SeaweedFS do, and look for a "
    "proxy in front of it that drops these headers."
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        name: what, in at most 22 characters.
        found: what is there.
        expected: what should be.
        fit: whether a run can do with it; None where that cannot be told or is only of use to know.
        advice: what to change where it is not fit.
    """

    name: str
    found: str
    expected: str
    fit: bool | None
    advice: str = ""

    def __str__(self) -> str:
        mark = {True: "fit", False: "FAIL", None: "-"}[self.fit]
        return f"{mark:<6}{self.found}" + ("" if self.fit else f"; expected {self.expected}")

    @property
    def complaint(self) -> str:
        """The same as a part of an error."""
        return f"{self.name}: found {self.found}, expected {self.expected}"


# The store.

Outcome = tuple[bool, str]


def try_store(workspace: Store, trial: Store) -> list[Finding]:
    """Tries all that jobs do with a store, as far as it lets in.

    Args:
        workspace: only listed.
        trial: where files are written, as `trial_of` names it.
    """
    listed = _attempt(workspace, "list", _list, "the names in the workspace")
    if not listed.fit:
        return [
            listed
        ]  # SeaweedFS makes a bucket that is not there when something is written to it
    written = _attempt(trial, WRITABLE, _write, "each read to give what was written last")
    if not written.fit:
        return [listed, written]
    return [
        listed,
        written,
        _attempt(trial, "create if absent", _create, "the second writer refused", _CONDITIONS),
        _attempt(trial, "replace if unchanged", _replace, "a late writer refused", _CONDITIONS),
        _attempt(trial, f"race of {RACERS} creators", _race, "1 to win", _CONDITIONS),
        _attempt(
            trial,
            "list after write",
            _list_again,
            "what is there at once, and what is deleted gone",
            "A run looks for what an earlier one left by listing: expect work done twice here.",
        ),
        _attempt(
            trial,
            "multipart upload",
            _upload,
            f"{_BIG >> 20} MiB read back with the same hash",
            "Ray writes checkpoints this way: training would fail at its first.",
        ),
        _attempt(
            trial,
            "unusual names",
            _unusual,
            f"{len(_UNUSUAL)} names written, listed and read back",
            "Pictures whose item ids have such characters would not be found.",
        ),
    ]


def trial_of(workspace: Store) -> Store:
    """A folder in the workspace that nobody else has."""
    return workspace / FOLDER / uuid.uuid4().hex


def sees(trial: Store) -> str:
    """What another machine finds of a probe that was left: nothing to complain of, or why not."""
    try:
        trial.read(PROBE)
    except InputError as error:  # of its settings
        return str(error)
    except StorageError as error:
        return _reason(error)
    return ""


def sweep(trial: Store) -> Finding:
    """Removes what the trials left; also after some of them failed half-way."""
    name, expected = "clean up", "nothing left behind"
    advice = f"Grant the right to delete, and remove {trial.root} by hand."
    try:
        if trial.is_s3:
            trial.delete([entry.name for entry in trial.list()])
            left = sum(1 for _ in trial.list())
        else:
            shutil.rmtree(trial.root, ignore_errors=True)
            left = int(Path(trial.root).exists())
            with suppress(OSError):  # another doctor may be at work beside
                Path(trial.root).parent.rmdir()
    except StorageError as error:
        return Finding(name, _reason(error), expected, False, f"{_explained(error)} {advice}")
    return Finding(name, f"{left} files left", expected, not left, advice)


def _attempt(
    store: Store,
    name: str,
    check: Callable[[Store], Outcome],
    expected: str,
    advice: str = "",
) -> Finding:
    """A check as a finding; what the store refuses is one too."""
    try:
        fit, found = check(store)
    except StorageError as error:
        return Finding(name, _reason(error), expected, False, f"{_explained(error)} {advice}")
    return Finding(name, found, expected, fit, "" if fit else advice)


def _reason(error: StorageError) -> str:
    """What it was in a few words."""
    cause = error.__cause__
    if isinstance(cause, ClientError):
        return f"an error ({cause.response.get('Error', {}).get('Code', 'without a code')})"
    return f"an error ({type(cause or error).__name__})"


def _explained(error: StorageError) -> str:
    """The error without what was done to which file: the finding's name says it."""
    text = str(error).partition(": ")[2] or str(error)
    if "no such bucket" in text:
        return "There is no such bucket: make it, or change --workspace."
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
    _, seen = store.read_versioned("pointer")
    store.write("pointer", b"two, by somebody else")
    if store.replace("pointer", b"three", seen):
        return False, "a late writer let in"
    _, now = store.read_versioned("pointer")
    if not store.replace("pointer", b"four", now):
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
    kept = store.read("race").decode()
    return kept == f"by {won.index(True)}", f"1 to win, the file {kept}"


def _list_again(store: Store) -> Outcome:
    names = {f"listed/{letter}" for letter in "abc"}
    for name in sorted(names):
        store.write(name, b"x")
    found = {entry.name for entry in store.list("listed/")}
    if found != names:
        return False, f"{len(found & names)} of 3 new files listed"
    store.delete(["listed/a", "listed/a"])  # what is gone already is no error
    found = {entry.name for entry in store.list("listed/")}
    if found != names - {"listed/a"} or store.exists("listed/a"):
        return False, "a deleted file listed"
    return True, "3 of 3 new files listed, a deleted one gone"


def _upload(store: Store) -> Outcome:
    path = f"{store.path}/big"
    sent, read = hashlib.sha256(), hashlib.sha256()
    try:
        with translated("upload", store.uri("big")):
            files = store.filesystem()
            with files.open_output_stream(path) as stream:
                for _ in range(_BIG // _BLOCK):
                    block = os.urandom(_BLOCK)
                    sent.update(block)
                    stream.write(block)
            with files.open_input_stream(path) as stream:
                while block := stream.read(_BLOCK):
                    read.update(block)
    except pa.ArrowException as error:
        raise StorageError(f"Could not upload {store.uri('big')}: {error}.") from error
    finally:
        _abort_uploads(store)
    same = sent.digest() == read.digest()
    return same, f"{_BIG >> 20} MiB with {'the same' if same else 'another'} hash"


def _abort_uploads(store: Store) -> None:
    """An upload that failed half-way keeps its parts, unseen and paid for, until it is aborted."""
    if not store.is_s3:
        return
    bucket, _, prefix = store.path.partition("/")
    client = store._s3()
    with suppress(ClientError, BotoCoreError):  # a store that cannot do so has nothing to abort
        found = client.list_multipart_uploads(Bucket=bucket, Prefix=f"{prefix}/")
        for upload in found.get("Uploads", []):
            where = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
            client.abort_multipart_upload(Bucket=bucket, **where)


def _unusual(store: Store) -> Outcome:
    names = {f"unusual/{name}" for name in _UNUSUAL}
    for name in names:
        store.write(name, name.encode())
    listed = {entry.name for entry in store.list("unusual/")}
    wrong = [name for name in sorted(names) if name not in listed]
    wrong += [name for name in sorted(names & listed) if store.read(name) != name.encode()]
    good = len(names) - len(wrong)
    return not wrong, f"{good} of {len(names)} names" + (f", not {wrong[0]!r}" if wrong else "")
