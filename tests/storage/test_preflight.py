"""A fit store is found fit, each fault is found under its own name, and nothing is left behind.

The stores are real: a directory, SeaweedFS, `rclone serve s3` where that program is installed. A
store with a single fault is one of these with that fault planted.
"""

import os
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow.fs as pafs
import pytest
from botocore.session import Session

from tests import servers
from tests.conftest import NO_AWS_CONFIG
from tests.servers import SeaweedFS
from tests.storage.test_store import everything_below, refusal
from visrec.capacity import FILE, Size, room, shards_for
from visrec.errors import StorageError
from visrec.storage import preflight
from visrec.storage import s3_clients as clients
from visrec.storage.preflight import (
    FOLDER,
    RACERS,
    WRITABLE,
    Finding,
    sees,
    sweep,
    trial_of,
    try_store,
)
from visrec.storage.store import Store

CONDITIONS = {"create if absent", "replace if unchanged", f"race of {RACERS} creators"}


def examine(workspace: Store) -> dict[str, Finding]:
    """The findings by name; where something could be written, also that of cleaning up."""
    trial = trial_of(workspace)
    try:
        findings = try_store(workspace, trial)
    finally:
        swept = sweep(trial)
    found = {finding.name: finding for finding in findings}
    return {**found, swept.name: swept} if WRITABLE in found else found


def unfit(findings: dict[str, Finding]) -> set[str]:
    return {name for name, finding in findings.items() if not finding.fit}


def open_uploads(store: Store) -> list[Any]:
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)
    bucket = store.path.partition("/")[0]
    found: list[Any] = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return found


def test_fit_store_is_fit_and_keeps_nothing_but_its_own(store: Store) -> None:
    store.write("kept", b"x")
    findings = examine(store)
    assert not unfit(findings)
    assert len(findings) == 9
    assert all(len(name) <= 22 for name in findings)  # the width of a summary's first column
    assert everything_below(store) == {"kept"}
    if store.is_s3:
        assert not open_uploads(store)
    else:
        assert not (Path(store.root) / FOLDER).exists()


# Stores with one fault.


@pytest.mark.s3
def test_store_that_ignores_conditions_is_unfit_for_that_alone(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    make = Session.create_client

    def deaf(session: Session, *args: Any, **options: Any) -> Any:
        made: Any = make(session, *args, **options)
        put = made.put_object

        def put_whatever_is_there(**request: Any) -> Any:
            kept = {k: v for k, v in request.items() if k not in ("IfNoneMatch", "IfMatch")}
            return put(**kept)

        made.put_object = put_whatever_is_there
        return made

    monkeypatch.setattr(Session, "create_client", deaf)
    clients.forget_credentials()
    store = Store.at(f"{s3_env}/shop")
    findings = examine(store)
    assert unfit(findings) == CONDITIONS
    assert findings["create if absent"].found == "the second writer let in"
    assert findings["replace if unchanged"].found == "a late writer let in"
    assert findings[f"race of {RACERS} creators"].found == f"{RACERS} to win"
    for name in CONDITIONS:
        assert "If-None-Match" in findings[name].advice
        assert "--workspace" in findings[name].advice
    assert not everything_below(store)


Method = Callable[..., Any]


def first_write_stays(write: Method) -> Method:
    def broken(store: Store, name: str, data: bytes) -> None:
        if not store.exists(name):
            write(store, name, data)

    return broken


def no_replacement(_: Method) -> Method:
    return lambda *_: False


def no_creation(_: Method) -> Method:
    return lambda *_: False


def racers_all_told_they_won(create: Method) -> Method:
    return lambda store, name, data: create(store, name, data) or name == "race"


def lists_late(_: Method) -> Method:
    return lambda *_: iter(())


def lists_what_is_deleted(listed: Method) -> Method:
    known: dict[str, Any] = {}

    def broken(store: Store, prefix: str = "") -> Any:
        known.update({entry.name: entry for entry in listed(store, prefix)})
        return iter([entry for name, entry in known.items() if name.startswith(prefix)])

    return broken


def decodes_names(write: Method) -> Method:
    return lambda store, name, data: write(store, name.replace("%41", "A"), data)


class OtherBytes:
    """A file system that reads back something else."""

    open_output_stream = pafs.LocalFileSystem().open_output_stream

    def open_input_stream(self, _: str) -> Any:
        return pafs.LocalFileSystem().open_input_stream(os.devnull)


def uploads_garbled(_: Method) -> Method:
    return lambda _: OtherBytes()


FAULTS: dict[str, tuple[str, Callable[[Method], Method], set[str]]] = {
    "overwrite": ("write", first_write_stays, {"write and read"}),
    "replace": ("replace", no_replacement, {"replace if unchanged"}),
    "create": (
        *("create", no_creation),
        {"create if absent", f"race of {RACERS} creators"},
    ),
    "race": ("create", racers_all_told_they_won, {f"race of {RACERS} creators"}),
    "listing": ("list", lists_late, {"list after write", "unusual names"}),
    "deletion": ("list", lists_what_is_deleted, {"list after write"}),
    "names": ("write", decodes_names, {"unusual names"}),
    "upload": ("filesystem", uploads_garbled, {"multipart upload"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_under_its_own_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    method, broken, names = FAULTS[fault]
    monkeypatch.setattr(Store, method, broken(getattr(Store, method)))
    store = Store.at(str(tmp_path))
    findings = examine(store)
    assert unfit(findings) == names
    for name in names:
        assert findings[name].found != findings[name].expected
        assert str(findings[name]).startswith("FAIL")
    assert not everything_below(store)


@pytest.mark.s3
def test_store_that_deletes_nothing_is_said_to_keep_it(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    def refuse(store: Store, _: object) -> None:
        raise StorageError(f"Could not delete {store.root}/x: access denied.")

    monkeypatch.setattr(Store, "delete", refuse)
    trial = trial_of(Store.at(s3_env))
    trial.write("x", b"x")
    swept = sweep(trial)
    assert swept.fit is False
    assert "Access denied." in swept.advice
    assert trial.root in swept.advice


# Stores that refuse.


def try_with(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], place: str
) -> dict[str, Finding]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    clients.forget_credentials()
    return examine(Store.at(place))


@pytest.mark.s3
def test_read_only_bucket_is_unfit_to_write_alone(
    monkeypatch: pytest.MonkeyPatch, s3: SeaweedFS, s3_env: str
) -> None:
    findings = try_with(monkeypatch, s3.readonly_env(), s3_env)
    assert unfit(findings) == {"write and read"}
    assert findings["list"].fit
    assert findings["write and read"].found == "an error (AccessDenied)"
    assert "the bucket's policy" in findings["write and read"].advice


@pytest.mark.s3
@pytest.mark.parametrize(
    ("variable", "code"),
    [
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
    ],
)
def test_wrong_key_is_named(
    monkeypatch: pytest.MonkeyPatch, s3: SeaweedFS, s3_env: str, variable: str, code: str
) -> None:
    findings = try_with(monkeypatch, {variable: "wrong"}, s3_env)
    assert findings.keys() == {"list"}
    assert findings["list"].fit is False
    assert findings["list"].found == f"an error ({code})"
    assert variable in findings["list"].advice
    assert s3.secret_key not in findings["list"].complaint + findings["list"].advice


@pytest.mark.s3
@pytest.mark.usefixtures("s3_env")
def test_missing_bucket_is_named_and_not_made(s3: SeaweedFS) -> None:
    findings = examine(Store.at("s3://no-such-bucket/shop"))
    assert unfit(findings) == findings.keys() == {"list"}
    assert "no such bucket" in findings["list"].advice
    # SeaweedFS would make it upon the first write.
    assert "no-such-bucket" not in {b["Name"] for b in s3.client().list_buckets()["Buckets"]}
    assert "--workspace" in findings["list"].advice


@pytest.mark.s3
def test_upload_that_failed_half_way_is_aborted(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    """As pyarrow leaves it where a part is refused: begun, with parts, and unseen in listings."""
    store = Store.at(f"{s3_env}/shop")
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)

    def begin(trial: Store) -> Any:
        client.create_multipart_upload(
            Bucket=s3_env.removeprefix("s3://"), Key=f"{trial.path.partition('/')[2]}/big"
        )
        assert open_uploads(store)
        raise OSError("part refused")

    monkeypatch.setattr(Store, "filesystem", begin)
    assert "part refused" in refusal(lambda: preflight._upload(trial_of(store)))
    assert not open_uploads(store)


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of `rclone serve s3`, which ignores conditions."""
    try:
        program = servers.program("rclone")
    except servers.ServerError:
        pytest.skip("rclone is not installed")
    offered = subprocess.run([program, "serve", "s3", "--help"], capture_output=True, text=True)
    if "rclone serve s3" not in offered.stdout:
        pytest.skip("this rclone is too old to serve S3")
    bucket = f"t-{uuid.uuid4().hex[:8]}"
    (tmp_path / "data" / bucket).mkdir(parents=True)
    (port,) = servers.free_ports(1)
    environment = {
        **NO_AWS_CONFIG,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "visrec",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_DEFAULT_REGION": servers.REGION,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [
        *(program, "serve", "s3", "data", "--addr", f"127.0.0.1:{port}", "--config", os.devnull),
        *("--auth-key", "visrec,not-a-secret"),
    ]
    home = {"HOME": str(tmp_path), "PATH": os.environ.get("PATH", os.defpath)}
    process = servers.spawn(command, tmp_path, home)
    assert process.stdin is not None
    try:
        ready = lambda: not servers.is_free(port)  # noqa: E731
        servers.wait_until(ready, process, tmp_path / "log", seconds=20)
        yield f"s3://{bucket}"
    finally:
        process.stdin.close()  # upon which its guard ends it
        process.wait()


@pytest.mark.s3
def test_rclone_is_refused(rclone: str) -> None:
    store = Store.at(f"{rclone}/shop")
    findings = examine(store)
    # Nor does it take what pyarrow uploads.
    assert unfit(findings) == {*CONDITIONS, "multipart upload"}
    assert findings["create if absent"].found == "the second writer let in"
    assert not everything_below(store)
    assert not open_uploads(store)


# What other machines see, and what a run takes.


def test_another_machine_sees_the_probe_or_says_why_not(tmp_path: Path) -> None:
    trial = trial_of(Store.at(str(tmp_path)))
    assert sees(trial) == "an error (FileNotFoundError)"
    try_store(Store.at(str(tmp_path)), trial)
    assert sees(trial) == ""


@pytest.mark.parametrize(
    ("nodes", "each", "places"),
    [
        ([{"CPU": 4}], {"CPU": 2}, 2),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 2),  # 6 CPUs, and no process is split
        ([{"CPU": 16}, {"CPU": 4, "GPU": 2}], {"CPU": 1, "GPU": 1}, 2),
        ([{"CPU": 1, "GPU": 8}], {"CPU": 2, "GPU": 1}, 0),
        ([{"CPU": 4}], {"CPU": 1, "GPU": 0}, 4),
        ([], {"CPU": 1}, 0),
    ],
)
def test_processes_have_room_only_whole(
    nodes: list[dict[str, float]], each: dict[str, float], places: int
) -> None:
    assert room(nodes, each) == places


def test_memory_is_that_of_the_scaling_tables() -> None:
    """The rows of docs/scaling.md for 1 M users x 100 k items and 10 M x 1 M, D = 1280."""
    for times in (1, 10):
        users, items = 1_000_000 * times, 100_000 * times
        size = Size(users=users, items=items, interactions=20 * users, feature_dim=1280)
        assert size.vectors == times * 80_000_000
        coded = size.object_store - size.features
        assert coded == times * 96_000_000
        assert size.preparing == pytest.approx(times * 3.0e9, rel=0.05)
    small = Size(users=1_000_000, items=100_000, interactions=20_000_000, feature_dim=64)
    assert small.object_store == 80_000_000 + 96_000_000  # item vectors outweigh such features
    # A process, the items as bytes, 15,625 lists of 100 entries; the same lists of the last night,
    # its items, and a quarter of the items again, in float32 and as bytes.
    parts = (350e6, 20.4e6, 60 * 1_562_500), (80 * 1_562_500, 17e6, 25_000 * 1_004)
    assert small.scoring == pytest.approx(sum(map(sum, parts)))
    assert small.preparing == pytest.approx(2.6e9, rel=0.05)  # measured
    assert small.written == pytest.approx(0.9e9, rel=0.05)


def test_files_follow_the_size_and_their_number_hardly_changes() -> None:
    sizes = [shards_for(owners, 100) for owners in (0, 600, 80_000, 80_001, 10**6, 10**7, 10**8)]
    assert sizes == [8, 8, 8, 16, 64, 512, 4096]
    assert shards_for(10**6, 10_000) == 64 * 64
    for owners in (10**6, 10**7, 10**8):
        assert FILE / 4 < owners * 900 / shards_for(owners, 100) <= FILE
