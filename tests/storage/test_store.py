"""Everything that a store guarantees, on a local directory and on a real S3 server."""

import errno
import gzip
import os
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from mmap import PROT_READ, mmap
from pathlib import Path
from typing import Any

import boto3
import botocore.endpoint
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.memory import largest_file
from tests.servers import SeaweedFS, free_ports
from visrec.errors import InputError, MissingFileError, StorageError
from visrec.storage import s3_clients as clients
from visrec.storage.store import Store, read_uri, to_json

TABLE = pa.table({"item_id": ["a", "b", "c"], "x": [1, 2, 3], "y": [0.5, 1.5, 2.5]})
WEIRD = ("two words.bin", "übergröße-絵画.bin", "50%.bin", "%41.bin", "a+b&c=d.bin", "#?;'.bin")


def names(store: Store, prefix: str = "") -> set[str]:
    return {entry.name for entry in store.list(prefix)}


def everything_below(store: Store) -> set[str]:
    """The names of all files below a store, hidden ones included, found without visrec."""
    if not store.is_s3:
        return {path.name for path in Path(store.root).rglob("*") if path.is_file()}
    bucket, _, prefix = store.root.removeprefix("s3://").partition("/")
    client = boto3.Session().client("s3", endpoint_url=store.endpoint)
    page = client.list_objects_v2(Bucket=bucket, Prefix=prefix)
    return {entry["Key"].rpartition("/")[2] for entry in page.get("Contents", [])}


def refusal(action: Callable[[], Any], kind: type[Exception] = StorageError) -> str:
    """The message of an error, which must be one paragraph without any secret key."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    for name in ("AWS_SECRET_ACCESS_KEY", "VISREC_TRUE_SECRET"):
        assert os.environ.get(name, "no such secret") not in message
    return message


# ------------------------------------------------------------------------------- files and tables


def test_written_bytes_are_read_back(store: Store) -> None:
    store.write("a/b/c.bin", b"\x00\xffbytes")
    assert store.read("a/b/c.bin") == b"\x00\xffbytes"
    store.write("a/b/c.bin", b"")
    assert store.read("a/b/c.bin") == b""
    assert (store / "a" / "b").read("c.bin") == b""
    assert read_uri(store.uri("a/b/c.bin")) == b""


def test_json_is_read_back_and_deterministic(store: Store) -> None:
    value = {"b": [1, 2.5, None], "a": "絵"}
    store.write_json("x.json", value)
    assert store.read_json("x.json") == value
    assert store.read("x.json") == to_json({"a": "絵", "b": [1, 2.5, None]})


def test_exists_is_true_for_files_only(store: Store) -> None:
    assert not store.exists("folder/file")
    store.write("folder/file", b"x")
    assert store.exists("folder/file")
    assert not store.exists("folder")
    assert not store.exists("folder/fil")


def test_delete_removes_the_named_files_and_ignores_missing_ones(store: Store) -> None:
    for name in ("a", "b", "c"):
        store.write(name, b"x")
    store.delete(["a", "never was", "c"])
    assert names(store) == {"b"}


def test_read_if_exists_of_a_missing_file_is_none(store: Store) -> None:
    assert store.read_if_exists("x") is None
    assert store.read_if_exists("folder/x") is None
    store.write("x", b"data")
    assert store.read_if_exists("x") == store.read_versioned("x")


def test_delete_all_removes_hidden_files_and_empty_parents_only(store: Store) -> None:
    folder = store / "scratch" / "1"
    for name in ("a", "b/c"):
        folder.write(name, b"x")
    assert folder.replace("a", b"y", folder.read_versioned("a")[1])  # leaves a lock on a disk
    store.write("kept", b"x")
    assert folder.delete_all() == 0
    assert everything_below(store) == {"kept"}
    if not store.is_s3:
        assert os.listdir(store.root) == ["kept"]
    assert (store / "scratch" / "missing").delete_all() == 0


def test_only_an_empty_folder_is_removed(store: Store) -> None:
    for name in ("run=1/part", "run=1/_marks/part", "run=10/part", "run=1.lease"):
        store.write(name, b"x")
    claimed = store / "run=1"
    assert claimed.create("_claim.json", b"a")
    assert claimed.replace("_claim.json", b"b", claimed.read_versioned("_claim.json")[1])
    store.delete(["run=1/part", "run=1/_marks/part"])
    store.delete_empty_folder("run=1")
    assert claimed.read("_claim.json") == b"b"  # another writer uses the folder
    store.delete(["run=1/_claim.json"])
    store.delete_empty_folder("run=1")
    assert names(store) == {"run=10/part", "run=1.lease"}
    if not store.is_s3:
        assert not Path(store.root, "run=1").exists()
    store.delete_empty_folder("run=1")


def test_table_is_read_back_by_columns(store: Store) -> None:
    size = store.write_table("t/x.parquet", TABLE)
    assert store.read_table("t/x.parquet").equals(TABLE)
    assert store.read_table("t/x.parquet", ["y"]).equals(TABLE.select(["y"]))
    assert [(entry.name, entry.size) for entry in store.list()] == [("t/x.parquet", size)]


def test_open_input_reads_at_any_offset(store: Store) -> None:
    store.write("x", b"0123456789")
    with store.open_input("x") as source:
        source.seek(7)
        assert source.read() == b"789"
        source.seek(2)
        assert source.read(2) == b"23"


def test_file_on_disk_is_the_file_and_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    store.write("x", b"0123456789")
    with store.open_on_disk("x") as file, mmap(file.fileno(), 0, prot=PROT_READ) as mapped:
        assert (mapped[:], file.read()) == (b"0123456789",) * 2
    assert not list(temporary.iterdir())
    with pytest.raises(MissingFileError), store.open_on_disk("y"):
        pass


def test_disk_without_room_for_a_copy_is_that_of_temporary_files(s3_env: str) -> None:
    store = Store.at(f"{s3_env}/models")
    store.write("x", bytes(2000))
    refused = pytest.raises(InputError, match=rf"copy of {store.root}/x.*{tempfile.gettempdir()}")
    with largest_file(1000), refused, store.open_on_disk("x"):
        pass


def test_streams_are_written_and_read_compressed_or_not(store: Store) -> None:
    store.write("x.gz", b"")  # pyarrow creates no local folder
    with store.open_output_stream("x.gz") as sink:
        sink.write(gzip.compress(b"text"))
    with store.open_input_stream("x.gz", "gzip") as source:
        assert source.read() == b"text"
    with store.open_input_stream("x.gz") as source:  # pyarrow would decompress it by its extension
        assert source.read() == store.read("x.gz")


@pytest.mark.parametrize("name", WEIRD)
def test_unusual_names_are_kept(store: Store, name: str) -> None:
    store.write(name, b"bytes")
    store.write_table(f"in {name}/{name}", TABLE)
    assert names(store) == {name, f"in {name}/{name}"}
    assert store.read(name) == b"bytes"
    assert store.read_table(f"in {name}/{name}").equals(TABLE)
    assert store.exists(name)
    store.delete([name])
    assert names(store) == {f"in {name}/{name}"}


# ---------------------------------------------------------------------------------------- listing


def test_listing_has_each_file_below_the_prefix_except_hidden_ones(store: Store) -> None:
    for name in ("a.txt", "ab/c.txt", "a/b.txt", "b.txt", ".hidden", "a/.hidden"):
        store.write(name, name.encode())
    assert names(store) == {"a.txt", "ab/c.txt", "a/b.txt", "b.txt"}
    assert names(store, "a") == {"a.txt", "ab/c.txt", "a/b.txt"}
    assert names(store, "a/") == {"a/b.txt"}
    assert names(store, "a/b") == {"a/b.txt"}
    assert names(store, "c") == set()
    assert names(store / "a") == {"b.txt"}
    assert {entry.name: entry.size for entry in store.list("ab")} == {"ab/c.txt": 8}


def test_listing_excludes_a_sibling_with_the_same_prefix(store: Store) -> None:
    (store / "run").write("x", b"1")
    (store / "run2").write("y", b"2")
    assert names(store / "run") == {"x"}


def test_files_of_one_folder_are_listed_in_order(store: Store) -> None:
    for name in ("b", "B", "a", "0", "é"):
        store.write(name, b"")
    assert [entry.name for entry in store.list()] == ["0", "B", "a", "b", "é"]


def test_missing_store_lists_nothing(store: Store) -> None:
    assert list(store.list()) == []
    assert list((store / "deeper").list("x/y")) == []


def test_fingerprint_changes_with_the_bytes(store: Store) -> None:
    store.write("x", b"one")
    [before] = store.list()
    [again] = store.list()
    store.write("x", b"two")
    [after] = store.list()
    assert again == before
    assert after.fingerprint != before.fingerprint


@pytest.mark.s3
def test_listing_continues_after_the_first_thousand(s3_env: str) -> None:
    store = Store.at(s3_env)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: store.write(f"{n:04}", b""), range(1_005)))
    assert [entry.name for entry in store.list()] == [f"{n:04}" for n in range(1_005)]


# ---------------------------------------------------------------------------------- partial writes


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # The lock file of `replace` stays, since removing it could remove the lock of another process.
    assert everything_below(store) - {".x.lock"} == {"x"}


def test_failed_create_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at(str(tmp_path))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    message = refusal(lambda: store.create("x", b"data"))
    assert str(tmp_path / "x") in message
    assert "the disk is full; free some space" in message
    assert everything_below(store) == set()


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_file_system_without_hard_links_is_named(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))  # EPERM makes it a PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match=r"create .*the file system has no hard links"):
        Store(str(tmp_path)).create("x", b"1")
    assert list(tmp_path.iterdir()) == []


def test_failed_write_of_a_table_leaves_the_old_file(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_table("old.parquet", TABLE)

    def half(_: pa.Table, sink: Any, **__: Any) -> None:
        sink.write(b"PAR1 and no more")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", half)
    for name in ("old.parquet", "new.parquet"):
        refusal(lambda name=name: store.write_table(name, TABLE))
    assert everything_below(store) == {"old.parquet"}
    assert store.read_table("old.parquet").equals(TABLE)


# --------------------------------------------------------------------------------- readable errors


def test_missing_file_is_named(store: Store) -> None:
    for action in (store.read, store.read_versioned, store.read_table):
        message = refusal(lambda action=action: action("folder/x"))
        assert store.uri("folder/x") in message
        assert "there is no such file" in message
    with pytest.raises(MissingFileError) as caught:
        store.read("folder/x")
    assert caught.value.path == store.uri("folder/x")
    assert caught.value.reason == "there is no such file."


@pytest.mark.s3
def test_missing_bucket_is_named(s3_env: str) -> None:
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
def test_wrong_credentials_are_reported(
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
def test_missing_credentials_are_reported(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    message = refusal(every_request(Store.at(s3_env))[request_name])
    assert "there are no S3 credentials" in message
    assert "expected AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in message


@pytest.mark.s3
@pytest.mark.parametrize("request_name", ["write", "create", "delete", "write_table"])
def test_read_only_credentials_cannot_write(
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
def test_endpoint_without_an_answer_is_reported(
    s3_env: str, monkeypatch: pytest.MonkeyPatch, request_name: str
) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(botocore.endpoint.time, "sleep", lambda _: None)  # between attempts
    # The 403 in the name must not be mistaken for an HTTP status.
    store = Store.at(f"{s3_env}/run=2026-04-03/part-00403")
    message = refusal(every_request(store)[request_name])
    assert store.root in message
    assert f"no answer from {endpoint}; check AWS_ENDPOINT_URL" in message


def test_unwritable_store_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store.at(str(tmp_path / "file" / "below"))
    assert store.root in refusal(store.check_writable, InputError)


def test_permission_error_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, _: bytes) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_bytes", denied)
    message = refusal(Store.at(str(tmp_path)).check_writable, InputError)
    assert str(tmp_path) in message
    assert "permission denied for this user; check the folder's owner and mode" in message


def test_unreadable_folder_is_not_listed_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    message = refusal(lambda: list(Store.at(str(tmp_path)).list()))
    assert str(tmp_path) in message
    assert "permission denied" in message


def test_folder_that_only_root_may_list_on_ext4_is_left_out(tmp_path: Path) -> None:
    store = Store.at(str(tmp_path))
    for name in ("a.jpg", "lost+found/x", "lost+found_1.jpg", "photos/b.jpg", "photos/lost+found"):
        store.write(name, b"")
    listed = ["a.jpg", "lost+found_1.jpg", "photos/b.jpg", "photos/lost+found"]
    assert [info.name for info in store.list()] == listed


def test_check_writable_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()
    assert everything_below(store) == set()


# ------------------------------------------------------------------------------ store and location


@pytest.mark.s3
def test_pickled_store_contains_no_key_and_works(s3: SeaweedFS, s3_env: str) -> None:
    store = Store.at(f"{s3_env}/prefix")
    store.write_table("x.parquet", TABLE)
    pickled = pickle.dumps(store)
    assert s3.secret_key.encode() not in pickled
    assert s3.access_key.encode() + b"\x94" not in pickled  # "visrec" is the package's name too
    copy = pickle.loads(pickled)  # noqa: S301
    assert copy == store
    assert copy.read_table("x.parquet").equals(TABLE)


def test_local_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.at("a/b/").root == f"{tmp_path}/a/b"
    assert Store.at("~/a").root == f"{tmp_path}/a"
    assert Store.at(f"file://{tmp_path}/a").root == f"{tmp_path}/a"
    (tmp_path / "x").write_bytes(b"here")
    assert read_uri("x") == b"here"
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # a user without an entry
    assert Store.at("./~/a").root == f"{tmp_path}/~/a"
    for path in ("~", "~/a"):
        with pytest.raises(InputError, match="this user has no home directory"):
            Store.at(path)


@pytest.mark.parametrize(
    ("root", "parent"),
    [
        ("/shop/images", "/shop"),
        ("/shop", None),
        ("s3://shop/images/2021", "s3://shop/images"),
        ("s3://shop/images", "s3://shop"),
        ("s3://shop", None),
    ],
)
def test_parent_is_none_at_the_top(root: str, parent: str | None) -> None:
    assert Store(root).parent == (None if parent is None else Store(parent))


def test_endpoint_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert Store.at("s3://bucket/prefix/") == Store("s3://bucket/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    assert Store.at("s3://bucket") == Store("s3://bucket", "http://store:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://only-s3:9000")
    assert Store.at("s3://bucket") / "x" == Store("s3://bucket/x", "http://only-s3:9000")


@pytest.mark.parametrize("uri", ["gs://bucket/x", "http://host/x", "s3://", "s3:///prefix"])
def test_other_location_is_refused(uri: str) -> None:
    message = refusal(lambda: Store.at(uri), InputError)
    assert uri in message
    assert "s3://bucket/prefix" in message
