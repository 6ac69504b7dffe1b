"""Every promise of a store, on a local directory and on a real S3 server."""

import errno
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import botocore.endpoint
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.servers import SeaweedFS, free_ports
from visrec.errors import InputError, StorageError
from visrec.storage import s3_clients as clients
from visrec.storage.store import Store, read_uri, to_json

TABLE = pa.table({"item_id": ["a", "b", "c"], "x": [1, 2, 3], "y": [0.5, 1.5, 2.5]})
WEIRD = ("two words.bin", "übergröße-絵画.bin", "50%.bin", "%41.bin", "a+b&c=d.bin", "#?;'.bin")


def names(store: Store, prefix: str = "") -> set[str]:
    return {entry.name for entry in store.list(prefix)}


def everything_below(store: Store) -> set[str]:
    """Every name below a store, hidden ones too, found without visrec."""
    if not store.is_s3:
        return {path.name for path in Path(store.root).rglob("*") if path.is_file()}
    bucket, _, prefix = store.path.partition("/")
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)
    page = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {entry["Key"].rpartition("/")[2] for entry in page.get("Contents", [])}


def refusal(action: Callable[[], Any], kind: type[Exception] = StorageError) -> str:
    """The message of an error, which must be one readable paragraph without any secret key."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for name in ("AWS_SECRET_ACCESS_KEY", "VISREC_TRUE_SECRET"):
        assert os.environ.get(name, "no such secret") not in message
    return message


# ------------------------------------------------------------------------- whole files and tables


def test_what_is_written_is_read(store: Store) -> None:
    store.write("a/b/c.bin", b"\x00\xffbytes")
    assert store.read("a/b/c.bin") == b"\x00\xffbytes"
    store.write("a/b/c.bin", b"")
    assert store.read("a/b/c.bin") == b""
    assert (store / "a" / "b").read("c.bin") == b""
    assert read_uri(store.uri("a/b/c.bin")) == b""


def test_json_is_read_back_and_is_the_same_bytes_for_the_same_value(store: Store) -> None:
    value = {"b": [1, 2.5, None], "a": "絵"}
    store.write_json("x.json", value)
    assert store.read_json("x.json") == value
    assert store.read("x.json") == to_json({"a": "絵", "b": [1, 2.5, None]})


def test_exists_knows_files_and_not_folders(store: Store) -> None:
    assert not store.exists("folder/file")
    store.write("folder/file", b"x")
    assert store.exists("folder/file")
    assert not store.exists("folder")
    assert not store.exists("folder/fil")


def test_deleting_removes_what_is_named_and_takes_absence_well(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.write(name, b"x")
    store.delete(["a", "never was", "c"])
    assert names(store) == {"b"}


def test_a_folder_goes_where_nothing_is_left_in_it(store: Store) -> None:
    for name in ("run=1/part", "run=1/_marks/part", "run=10/part", "run=1.lease"):
        store.write(name, b"x")
    claimed = store / "run=1"
    assert claimed.create("_claim.json", b"a")
    assert claimed.replace("_claim.json", b"b", claimed.read_versioned("_claim.json")[1])
    store.delete(["run=1/part", "run=1/_marks/part"])
    store.delete_empty_folder("run=1")
    assert claimed.read("_claim.json") == b"b"  # somebody is at work there
    store.delete(["run=1/_claim.json"])
    store.delete_empty_folder("run=1")
    assert names(store) == {"run=10/part", "run=1.lease"}
    if not store.is_s3:
        assert not Path(store.root, "run=1").exists()
    store.delete_empty_folder("run=1")


def test_tables_come_back_whole_or_by_column(store: Store) -> None:
    size = store.write_table("t/x.parquet", TABLE)
    assert store.read_table("t/x.parquet").equals(TABLE)
    assert store.read_table("t/x.parquet", ["y"]).equals(TABLE.select(["y"]))
    assert [(entry.name, entry.size) for entry in store.list()] == [("t/x.parquet", size)]


@pytest.mark.parametrize("name", WEIRD)
def test_odd_names_are_kept_as_they_are(store: Store, name: str) -> None:
    store.write(name, b"bytes")
    store.write_table(f"in {name}/{name}", TABLE)
    assert names(store) == {name, f"in {name}/{name}"}
    assert store.read(name) == b"bytes"
    assert store.read_table(f"in {name}/{name}").equals(TABLE)
    assert store.exists(name)
    store.delete([name])
    assert names(store) == {f"in {name}/{name}"}


# ---------------------------------------------------------------------------------------- listing


def test_a_listing_has_each_file_below_the_prefix_and_no_dotfile(store: Store) -> None:
    for name in ("a.txt", "ab/c.txt", "a/b.txt", "b.txt", ".hidden", "a/.hidden"):
        store.write(name, name.encode())
    assert names(store) == {"a.txt", "ab/c.txt", "a/b.txt", "b.txt"}
    assert names(store, "a") == {"a.txt", "ab/c.txt", "a/b.txt"}
    assert names(store, "a/") == {"a/b.txt"}
    assert names(store, "a/b") == {"a/b.txt"}
    assert names(store, "c") == set()
    assert names(store / "a") == {"b.txt"}
    assert {entry.name: entry.size for entry in store.list("ab")} == {"ab/c.txt": 8}


def test_a_listing_leaves_out_a_neighbour_whose_name_begins_alike(store: Store) -> None:
    (store / "run").write("x", b"1")
    (store / "run2").write("y", b"2")
    assert names(store / "run") == {"x"}


def test_files_of_one_folder_are_listed_in_order(store: Store) -> None:
    for name in ("b", "B", "a", "0", "é"):
        store.write(name, b"")
    assert [entry.name for entry in store.list()] == ["0", "B", "a", "b", "é"]


def test_a_store_that_is_not_there_lists_nothing(store: Store) -> None:
    assert list(store.list()) == []
    assert list((store / "deeper").list("x/y")) == []


def test_the_fingerprint_changes_with_the_bytes(store: Store) -> None:
    store.write("x", b"one")
    [before] = store.list()
    [again] = store.list()
    store.write("x", b"two")
    [after] = store.list()
    assert again == before
    assert after.fingerprint != before.fingerprint


@pytest.mark.s3
def test_a_listing_goes_on_after_the_first_thousand(s3_env: str) -> None:
    store = Store.at(s3_env)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.write(f"{n:04}", b""), range(1_005)))
    assert [entry.name for entry in store.list()] == [f"{n:04}" for n in range(1_005)]


# ---------------------------------------------------------------------------------- half-way there


def test_a_write_that_fails_half_way_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(str(tmp_path))
    store.write("x", b"before")
    real = Path.write_bytes

    def half(path: Path, data: bytes) -> None:
        real(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    version = store.read_versioned("x")[1]
    for action in (
        lambda: store.write("x", b"much longer than before"),
        lambda: store.write("new", b"much longer than before"),
        lambda: store.replace("x", b"much longer than before", version),
    ):
        assert "disk is full" in refusal(action)
    assert store.read("x") == b"before"
    # The lock of `replace` stays: who removes a lock file may remove another's lock.
    assert everything_below(store) - {".x.lock"} == {"x"}


def test_a_create_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.at(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(lambda: store.create("x", b"data"))
    assert str(tmp_path / "x") in message
    assert "the disk is full; free some space" in message
    assert everything_below(store) == set()


def test_a_table_that_fails_half_way_leaves_what_was_there(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_table("old.parquet", TABLE)

    def half(_: pa.Table, sink: Any, **__: Any) -> None:
        if isinstance(sink, Path):
            sink.write_bytes(b"PAR1 and no more")
        else:
            sink.write(b"PAR1 and no more")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    for name in ("old.parquet", "new.parquet"):
        refusal(lambda name=name: store.write_table(name, TABLE))
    assert everything_below(store) == {"old.parquet"}
    assert store.read_table("old.parquet").equals(TABLE)


# --------------------------------------------------------------------------------- readable errors


def test_a_missing_file_is_named(store: Store) -> None:
    for action in (store.read, store.read_versioned, store.read_table):
        message = refusal(lambda action=action: action("folder/x"))
        assert store.uri("folder/x") in message
        assert "there is no such file" in message


@pytest.mark.s3
def test_a_missing_bucket_is_named(s3_env: str) -> None:
    missing = Store.at(f"{s3_env}-not/prefix")
    for action in (lambda: missing.read("x"), lambda: list(missing.list())):
        message = refusal(action)
        assert missing.root in message
        assert "no such bucket" in message


def every_request(store: Store) -> dict[str, Callable[[], Any]]:
    return {
        "read": lambda: store.read("x.parquet"),
        "exists": lambda: store.exists("x.parquet"),
        "list": lambda: list(store.list()),
        "write": lambda: store.write("x.parquet", b""),
        "create": lambda: store.create("x.parquet", b""),
        "delete": lambda: store.delete(["x.parquet"]),
        "read_table": lambda: store.read_table("x.parquet"),
        "write_table": lambda: store.write_table("x.parquet", TABLE),
    }


REQUESTS = tuple(every_request(Store("")))


@pytest.mark.s3
@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("wrong", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys_say_so(
    s3: SeaweedFS, s3_env: str, monkeypatch: pytest.MonkeyPatch, wrong: str, request_name: str
) -> None:
    monkeypatch.setenv("VISREC_TRUE_SECRET", s3.secret_key)
    monkeypatch.setenv(wrong, "mistyped-by-somebody")
    message = refusal(every_request(Store.at(s3_env))[request_name])
    assert s3_env in message
    assert s3.endpoint in message
    assert "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.s3
@pytest.mark.parametrize("request_name", REQUESTS)
def test_absent_keys_say_so(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    message = refusal(every_request(Store.at(s3_env))[request_name])
    assert "there are no S3 credentials" in message
    assert "expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.s3
@pytest.mark.parametrize("request_name", ["write", "create", "delete", "write_table"])
def test_a_reader_may_not_write(
    s3: SeaweedFS, s3_env: str, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    Store.at(s3_env).write_table("x.parquet", TABLE)
    clients.forget_credentials()
    for name, value in s3.readonly_env().items():
        monkeypatch.setenv(name, value)
    store = Store.at(s3_env)
    assert "access denied" in refusal(every_request(store)[request_name])
    assert store.read_table("x.parquet").equals(TABLE)
    assert s3_env in refusal(store.check_writable, InputError)


@pytest.mark.s3
@pytest.mark.parametrize("request_name", REQUESTS)
def test_an_endpoint_that_does_not_answer_says_so(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(botocore.endpoint.time, "sleep", lambda _: None)  # between attempts
    # The run's date and the 403 below must not be taken for an HTTP status.
    store = Store.at(f"{s3_env}/run=2026-04-03/part-00403")
    message = refusal(every_request(store)[request_name])
    assert store.root in message
    assert f"no answer from {endpoint}; check AWS_ENDPOINT_URL" in message


def test_a_place_where_nothing_can_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store.at(str(tmp_path / "file" / "below"))
    assert store.root in refusal(store.check_writable, InputError)


def test_a_folder_of_another_user_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", denied)
    message = refusal(Store.at(str(tmp_path)).check_writable, InputError)
    assert str(tmp_path) in message
    assert "permission denied for this user; check the folder's owner and mode" in message


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    message = refusal(lambda: list(Store.at(str(tmp_path)).list()))
    assert str(tmp_path) in message
    assert "permission denied" in message


def test_a_writable_store_is_left_as_it_was(store: Store) -> None:
    store.check_writable()
    assert everything_below(store) == set()


# ------------------------------------------------------------------------------- what a store holds


@pytest.mark.s3
def test_a_pickled_store_holds_no_key_and_still_works(s3: SeaweedFS, s3_env: str) -> None:
    store = Store.at(f"{s3_env}/prefix")
    store.write_table("x.parquet", TABLE)
    pickled = pickle.dumps(store)
    assert s3.secret_key.encode() not in pickled
    assert s3.access_key.encode() + b"\x94" not in pickled  # "visrec" is the package's name too
    copy = pickle.loads(pickled)  # noqa: S301
    assert copy == store
    assert copy.read_table("x.parquet").equals(TABLE)


def test_a_local_place_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.at("a/b/").root == f"{tmp_path}/a/b"
    assert Store.at("~/a").root == f"{tmp_path}/a"
    assert Store.at(f"file://{tmp_path}/a").root == f"{tmp_path}/a"
    (tmp_path / "x").write_bytes(b"here")
    assert read_uri("x") == b"here"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # of a user that the system has no name of
    assert Store.at("./~/a").root == f"{tmp_path}/~/a"
    for path in ("~", "~/a"):
        with pytest.raises(InputError, match="this user has no home directory"):
            Store.at(path)


def test_an_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert Store.at("s3://bucket/prefix/") == Store("s3://bucket/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    assert Store.at("s3://bucket") == Store("s3://bucket", "http://store:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://only-s3:9000")
    assert Store.at("s3://bucket") / "x" == Store("s3://bucket/x", "http://only-s3:9000")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3://", "s3:///prefix"])
def test_a_location_that_is_neither_is_refused(uri: str) -> None:
    message = refusal(lambda: Store.at(uri), InputError)
    assert uri in message
    assert "s3://bucket/prefix" in message
