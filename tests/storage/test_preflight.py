"""A sound store passes all checks, each fault fails its own check, and nothing is left behind.

The stores are real: a directory, SeaweedFS, and `rclone serve s3` if rclone is installed. A store
with one fault is one of these with the fault planted in one method.
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
from visrec.errors import StorageError
from visrec.storage import preflight
from visrec.storage import s3_clients as clients
from visrec.storage.preflight import (
    FOLDER,
    RACERS,
    WRITABLE,
    Finding,
    check_store,
    clean_up,
    probe_error,
    scratch_store,
)
from visrec.storage.s3 import S3Backend
from visrec.storage.store import Store

CONDITIONS = {"create if absent", "replace if unchanged", f"race of {RACERS} creators"}


def examine(workspace: Store) -> dict[str, Finding]:
    """The findings by name, with that of the clean-up if anything could be written."""
    scratch = scratch_store(workspace)
    try:
        findings = check_store(workspace, scratch)
    finally:
        cleaned_up = clean_up(scratch)
    found = {finding.name: finding for finding in findings}
    return {**found, cleaned_up.name: cleaned_up} if WRITABLE in found else found


def failed(findings: dict[str, Finding]) -> set[str]:
    """The names of the checks that failed."""
    return {name for name, finding in findings.items() if not finding.passed}


def open_uploads(store: Store) -> list[Any]:
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)
    bucket = store.root.removeprefix("s3://").partition("/")[0]
    found: list[Any] = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return found


def test_sound_store_passes_all_checks_and_is_left_as_it_was(store: Store) -> None:
    store.write("kept", b"x")
    findings = examine(store)
    assert not failed(findings)
    assert len(findings) == 9
    assert all(len(name) <= 22 for name in findings)  # the width of a summary's first column
    assert everything_below(store) == {"kept"}
    if store.is_s3:
        assert not open_uploads(store)
    else:
        assert not (Path(store.root) / FOLDER).exists()


# Stores with one fault.


@pytest.mark.s3
def test_store_that_ignores_conditions_fails_those_checks_only(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    make = Session.create_client

    def ignoring_conditions(session: Session, *args: Any, **options: Any) -> Any:
        made: Any = make(session, *args, **options)
        put = made.put_object

        def put_unconditionally(**request: Any) -> Any:
            kept = {k: v for k, v in request.items() if k not in ("IfNoneMatch", "IfMatch")}
            return put(**kept)

        made.put_object = put_unconditionally
        return made

    monkeypatch.setattr(Session, "create_client", ignoring_conditions)
    clients.forget_credentials()
    store = Store.at(f"{s3_env}/shop")
    findings = examine(store)
    assert failed(findings) == CONDITIONS
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


def all_racers_win(create: Method) -> Method:
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
    """A file system that reads back other bytes than were written."""

    open_output_stream = pafs.LocalFileSystem().open_output_stream

    def open_input_stream(self, *_: object, **__: object) -> Any:
        return pafs.LocalFileSystem().open_input_stream(os.devnull)


def uploads_garbled(_: Method) -> Method:
    return lambda store: (OtherBytes(), store.root)


FAULTS: dict[str, tuple[str, Callable[[Method], Method], set[str]]] = {
    "overwrite": ("write", first_write_stays, {"write and read"}),
    "replace": ("replace", no_replacement, {"replace if unchanged"}),
    "create": (
        *("create", no_creation),
        {"create if absent", f"race of {RACERS} creators"},
    ),
    "race": ("create", all_racers_win, {f"race of {RACERS} creators"}),
    "listing": ("list", lists_late, {"list after write", "unusual names"}),
    "deletion": ("list", lists_what_is_deleted, {"list after write"}),
    "names": ("write", decodes_names, {"unusual names"}),
    "upload": ("arrow_filesystem", uploads_garbled, {"multipart upload"}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_its_own_checks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    method, broken, names = FAULTS[fault]
    monkeypatch.setattr(Store, method, broken(getattr(Store, method)))
    store = Store.at(str(tmp_path))
    findings = examine(store)
    assert failed(findings) == names
    for name in names:
        assert findings[name].found != findings[name].expected
        assert str(findings[name]).startswith("FAIL")
    assert not everything_below(store)


@pytest.mark.s3
def test_store_that_deletes_nothing_fails_the_clean_up(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    def refuse(_: S3Backend, name: str) -> None:
        raise StorageError(f"Could not delete {name}: access denied.", reason="access denied.")

    monkeypatch.setattr(S3Backend, "delete", refuse)
    scratch = scratch_store(Store.at(s3_env))
    scratch.write("x", b"x")
    cleaned_up = clean_up(scratch)
    assert cleaned_up.passed is False
    assert "Access denied." in cleaned_up.advice
    assert scratch.root in cleaned_up.advice


# Stores that refuse.


def try_with(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], workspace: str
) -> dict[str, Finding]:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    clients.forget_credentials()
    return examine(Store.at(workspace))


@pytest.mark.s3
def test_read_only_bucket_fails_the_write_check_only(
    monkeypatch: pytest.MonkeyPatch, s3: SeaweedFS, s3_env: str
) -> None:
    findings = try_with(monkeypatch, s3.readonly_env(), s3_env)
    assert failed(findings) == {"write and read"}
    assert findings["list"].passed
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
    assert findings["list"].passed is False
    assert findings["list"].found == f"an error ({code})"
    assert variable in findings["list"].advice
    assert s3.secret_key not in findings["list"].complaint + findings["list"].advice


@pytest.mark.s3
@pytest.mark.usefixtures("s3_env")
def test_missing_bucket_is_named_and_not_created(s3: SeaweedFS) -> None:
    findings = examine(Store.at("s3://no-such-bucket/shop"))
    assert failed(findings) == findings.keys() == {"list"}
    assert "no such bucket" in findings["list"].advice
    # SeaweedFS would create it upon the first write.
    assert "no-such-bucket" not in {b["Name"] for b in s3.client().list_buckets()["Buckets"]}
    assert "--workspace" in findings["list"].advice


@pytest.mark.s3
def test_upload_that_failed_half_way_is_aborted(
    monkeypatch: pytest.MonkeyPatch, s3_env: str
) -> None:
    """pyarrow leaves an upload of which a part is refused: started, and absent from listings."""
    store = Store.at(f"{s3_env}/shop")
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)

    def begin(scratch: Store) -> Any:
        client.create_multipart_upload(
            Bucket=s3_env.removeprefix("s3://"),
            Key=f"{scratch.root.removeprefix(f'{s3_env}/')}/big",
        )
        assert open_uploads(store)
        raise OSError("part refused")

    monkeypatch.setattr(Store, "arrow_filesystem", begin)
    assert "part refused" in refusal(lambda: preflight._upload(scratch_store(store)))
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
def test_rclone_fails_the_conditional_checks(rclone: str) -> None:
    store = Store.at(f"{rclone}/shop")
    findings = examine(store)
    # It does not accept pyarrow's uploads either.
    assert failed(findings) == {*CONDITIONS, "multipart upload"}
    assert findings["create if absent"].found == "the second writer let in"
    assert not everything_below(store)
    assert not open_uploads(store)


# What other machines see.


def test_another_machine_reads_the_probe_or_says_why_not(tmp_path: Path) -> None:
    scratch = scratch_store(Store.at(str(tmp_path)))
    assert probe_error(scratch) == "an error (FileNotFoundError)"
    check_store(Store.at(str(tmp_path)), scratch)
    assert probe_error(scratch) == ""
