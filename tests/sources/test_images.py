"""Listing and fetching pictures from directories and from Parquet."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.errors import InputError, SchemaError, StorageError
from visrec.sources.http import Answer
from visrec.sources.images import (
    LISTING_SCHEMA,
    PictureSource,
    SkippedFiles,
    close_readers,
    fetch_pictures,
    list_pictures,
)
from visrec.storage import local
from visrec.storage.store import Store


def listed(source: PictureSource | str) -> pa.Table:
    pages = list(list_pictures(source))
    assert all(page.schema == LISTING_SCHEMA for page in pages)
    return pa.concat_tables(pages)


def pictures(uri: str) -> dict[str, Any]:
    """The bytes of each item, or the error in their place."""
    listing = listed(uri)
    assert len(set(listing["item_id"].to_pylist())) == len(listing)
    return dict(zip(listing["item_id"].to_pylist(), fetched(listing), strict=True))


def fetched(listing: pa.Table) -> list[bytes | StorageError | None]:
    answers = fetch_pictures(listing, 1 << 20)
    return [one.data if isinstance(one, Answer) else one for one in answers]


def sources(uri: str) -> dict[str, str | None]:
    listing = listed(uri)
    return dict(zip(listing["item_id"].to_pylist(), listing["source"].to_pylist(), strict=True))


def skipped_files(uri: str) -> SkippedFiles:
    found = SkippedFiles()
    list(list_pictures(uri, found))
    return found


def write_parquet(store: Store, name: str, table: pa.Table, row_group_size: int) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=row_group_size)
    store.write(name, bytes(sink.getvalue()))


def images(*item_ids: str, kind: pa.DataType | None = None) -> pa.Table:
    data = [f"bytes of {item_id}".encode() for item_id in item_ids]
    return pa.table({"item_id": item_ids, "image": pa.array(data, kind or pa.binary())})


# --------------------------------------------------------------------------------------- directory


def test_item_id_is_the_file_name_without_extension(store: Store) -> None:
    files = {"a.jpg": "a", "b.PNG": "b", "two words 50%.webp": "two words 50%", "v1.2.jpeg": "v1.2"}
    for file, item_id in files.items():
        store.write(f"images/{file}", f"bytes of {item_id}".encode())
    expected = {item_id: f"bytes of {item_id}".encode() for item_id in files.values()}
    assert pictures(store.uri("images")) == expected
    assert pictures(store.uri("images/")) == expected


def test_item_id_contains_the_folder(store: Store) -> None:
    for name in ("2021/a.jpg", "2022/spring/a.jpg", "a.jpg"):
        store.write(f"images/{name}", name.encode())
    assert pictures(store.uri("images")) == {
        "2021/a": b"2021/a.jpg",
        "2022/spring/a": b"2022/spring/a.jpg",
        "a": b"a.jpg",
    }


def test_files_that_are_not_pictures_are_ignored(store: Store) -> None:
    others = ("notes.txt", "Thumbs.db", ".hidden.jpg", "no-suffix", "a.jpg.part", ".jpg")
    for name in ("a.jpg", *others):
        store.write(f"images/{name}", b"x")
    assert set(pictures(store.uri("images"))) == {"a"}


@pytest.mark.parametrize(
    "ending",
    ["heic", "avif", "tif", "bmp", "jxl", "mpo", "jfif", "jpe", "JPG", "cr2", "svg", "pjpeg"],
)
def test_pictures_of_unsupported_formats_are_listed_too(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    assert set(pictures(str(tmp_path))) == {"a"}


def test_query_string_after_the_extension_is_not_part_of_the_id(store: Store) -> None:
    for name in ("a.jpg?width=200", "b.JPEG?", "what?.jpg", "c.png?from=d.png"):
        store.write(f"images/{name}", b"x")
    found = pictures(store.uri("images"))
    assert set(found) == {"a", "b", "what?", "c.png?from=d"}


def test_files_without_an_extension_are_detected_by_their_first_bytes(store: Store) -> None:
    jpeg, webp = b"\xff\xd8\xff\xe0 and so on", b"RIFF\x09\0\0\0WEBPVP8 "
    files = {"0108775015": jpeg, "0.12": webp, "folder/x": jpeg, "tiff": b"II*\0", "empty": b""}
    for name, data in {**files, "LICENSE": b"You may", "a.jpg": b"a"}.items():
        store.write(f"images/{name}", data)
    found = pictures(store.uri("images"))
    assert found == {
        "0108775015": jpeg,
        "0.12": webp,
        "folder/x": jpeg,
        "tiff": b"II*\0",
        "a": b"a",
    }
    assert skipped_files(store.uri("images")).not_pictures == {"without an extension": 2}


def test_skipped_files_are_counted_by_extension(store: Store) -> None:
    for name in ("a.jpg", "a.txt", "x/b.TXT", "a.json", "a.jpg.part", "README"):
        store.write(f"images/{name}", b"x")
    write_parquet(store, "images/index.parquet", images("a"), row_group_size=1)
    found = skipped_files(store.uri("images"))
    counts = {".txt": 2, ".json": 1, ".part": 1, ".parquet": 1, "without an extension": 1}
    assert found.not_pictures == counts
    assert str(found).startswith("2 .txt, ")


def test_unfinished_downloads_are_skipped_and_counted(tmp_path: Path) -> None:
    for ending in ("", ".crdownload", ".opdownload", ".part", ".filepart", ".download"):
        (tmp_path / f"a.jpg{ending}").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "SKU.Greenshirt").write_bytes(b"\xff\xd8\xff\xe0")
    assert listed(str(tmp_path))["item_id"].to_pylist() == ["SKU.Greenshirt", "a"]
    assert skipped_files(str(tmp_path)).not_pictures == {
        ".crdownload": 1, ".opdownload": 1, ".part": 1, ".filepart": 1, ".download": 1
    }  # fmt: skip


def test_skipped_files_beside_parquet_are_counted(store: Store) -> None:
    write_parquet(store, "images/part-0.parquet", images("a"), row_group_size=1)
    store.write("images/z.jpg", b"x")
    store.write("images/_SUCCESS", b"")
    found = skipped_files(store.uri("images"))
    assert found.not_pictures == {".jpg": 1, "without an extension": 1}
    assert skipped_files(store.uri("images/part-0.parquet")).not_pictures == {}


# Anything else in a local folder is one rejection and does not stop the run.


def test_name_that_is_not_utf8_is_rejected_and_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"a")
    for name in (b"caf\xe9.jpg", b"\xff\xfe/b.png", b"\xe9.txt"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"x")
    assert pictures(str(tmp_path)) == {"a": b"a"}
    found = skipped_files(str(tmp_path))
    assert found.not_pictures == {".txt": 1}
    assert [row["item_id"] for row in found.rejected] == ["caf\\xe9", "\\xff\\xfe/b"]
    assert {row["reason"] for row in found.rejected} == {"name_not_utf8"}
    assert f"{tmp_path}/caf\\xe9.jpg is not UTF-8" in found.rejected[0]["detail"]
    with pytest.raises(InputError, match=r"/\\xff\\xfe, which is not UTF-8"):
        pictures(os.fsdecode(os.path.join(os.fsencode(tmp_path), b"\xff\xfe")))
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"only 1 \.txt, 2 with names that are not UTF-8"):
        list(list_pictures(str(tmp_path)))


def test_unreadable_file_is_an_error_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket may have 107 characters
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "nowhere.jpg").symlink_to("/nonexistent/x.jpg")
    (tmp_path / "itself.jpg").symlink_to("itself.jpg")
    (tmp_path / "no-ending").symlink_to("/nonexistent/x")
    (tmp_path / "folder.jpg").symlink_to(tmp_path)
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        found = pictures(str(tmp_path))
    assert found.pop("a") == b"a"
    expected = {"nowhere": "no such file", "itself": "symbolic links", "no-ending": "no such file"}
    expected |= dict.fromkeys(("device", "pipe", "socket"), "expected a file")
    assert found.keys() == expected.keys()
    for name, words in expected.items():
        assert isinstance(found[name], StorageError)
        assert words in str(found[name])
        assert str(tmp_path / name) in str(found[name])


def test_file_without_permission_is_an_error_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "a.jpg":
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    found = pictures(str(tmp_path))
    assert found["b"] == b"b"
    assert "permission denied" in str(found["a"])


def test_file_that_vanishes_during_the_listing_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpg", "b.jpg", "x/c.jpg", "y/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    scan = local._scan

    def slow(folder: str) -> list[os.DirEntry[str]]:
        found = scan(folder)
        if folder.rstrip("/") == str(tmp_path):
            (tmp_path / "a.jpg").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "x", ignore_errors=True)
        return found

    monkeypatch.setattr(local, "_scan", slow)
    assert set(pictures(str(tmp_path))) == {"b", "y/d"}


def test_linked_folders_are_listed_once(tmp_path: Path) -> None:
    inside, outside = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (inside / "real", outside / "deeper"):
        folder.mkdir(parents=True)
        (folder / "a.jpg").write_bytes(b"x")
    (inside / "linked").symlink_to(outside)
    (inside / "linked again").symlink_to(outside)
    (inside / "linked deeper").symlink_to(outside / "deeper")
    (inside / "also real").symlink_to(inside / "real")
    (inside / "loop").symlink_to(inside)
    (inside / "real" / "up").symlink_to("..")
    (inside / "all").symlink_to(tmp_path)
    (outside / "back").symlink_to(inside)
    assert set(pictures(str(inside))) == {"real/a", "linked/deeper/a"}
    (tmp_path / "link to all").symlink_to(inside)
    assert set(pictures(str(tmp_path / "link to all"))) == {"real/a", "linked/deeper/a"}
    # Without `follow_links` a store lists only its own files, which retention may remove.
    assert {entry.name for entry in Store.at(str(inside)).list()} == {"real/a.jpg"}


def test_link_to_a_file_is_listed_as_the_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "elsewhere")
    assert pictures(str(tmp_path / "images")) == {"a": b"x"}


def test_ids_that_differ_in_case_are_distinct(store: Store) -> None:
    for name in ("a.jpg", "A.jpg", "B.png"):
        store.write(f"images/{name}", name.encode())
    assert pictures(store.uri("images")) == {"a": b"a.jpg", "A": b"A.jpg", "B": b"B.png"}


def test_pattern_that_matches_nothing_is_refused_with_the_first_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visrec.sources.images._PAGE_ROWS", 2)
    for name in ("a.jpg", "b.jpg", "y.txt", "z.txt"):  # the last page has no picture
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"none of the 2 pictures at .*, such as .*/a\.jpg;"):
        listed(PictureSource(str(tmp_path), "{item_id}/{view}"))


def test_source_changes_with_the_file(store: Store) -> None:
    for name in ("a", "b"):
        store.write(f"images/{name}.jpg", b"one")
    before = sources(store.uri("images"))
    assert sources(store.uri("images")) == before
    store.write("images/a.jpg", b"two")
    after = sources(store.uri("images"))
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_deleted_picture_is_an_error_in_its_place(store: Store) -> None:
    for name in ("a", "b"):
        store.write(f"images/{name}.jpg", name.encode())
    listing = listed(store.uri("images"))
    store.delete(["images/a.jpg"])
    gone, there = fetched(listing)
    assert isinstance(gone, StorageError)
    assert "a.jpg" in str(gone)
    assert there == b"b"


# ----------------------------------------------------------------------------------------- Parquet


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_bytes_are_fetched_across_row_groups_and_files(store: Store, kind: pa.DataType) -> None:
    first, second = [f"a{n}" for n in range(7)], [f"b{n}" for n in range(3)]
    write_parquet(store, "images/0.parquet", images(*first, kind=kind), row_group_size=3)
    write_parquet(store, "images/1.parquet", images(*second, kind=kind), row_group_size=2)
    every = {item_id: f"bytes of {item_id}".encode() for item_id in first + second}
    assert pictures(store.uri("images")) == every
    assert pictures(store.uri("images/1.parquet")) == {name: every[name] for name in second}


def test_rows_of_a_listing_can_be_fetched_in_any_order(store: Store) -> None:
    write_parquet(store, "x.parquet", images(*"abcdefg"), row_group_size=3)
    listing = listed(store.uri("x.parquet")).take([6, 0, 4, 0])
    expected = [b"bytes of g", b"bytes of a", b"bytes of e", b"bytes of a"]
    assert fetched(listing) == expected


def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[pa.NativeFile]:
    """Collects the files that stores open from now on."""
    opened: list[pa.NativeFile] = []
    really = Store.open_input

    @contextmanager
    def recorded(store: Store, name: str) -> Iterator[pa.NativeFile]:
        with really(store, name) as file:
            opened.append(file)
            yield file

    monkeypatch.setattr(Store, "open_input", recorded)
    return opened


def test_row_group_is_read_once_by_all_tasks_of_a_thread(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"i{n:03}" for n in range(256)]
    write_parquet(store, "x.parquet", images(*ids), row_group_size=1_000)
    listing = listed(store.uri("x.parquet"))
    opened = opened_files(monkeypatch)
    found = [data for start in range(0, 256, 64) for data in fetched(listing.slice(start, 64))]
    assert found == [f"bytes of {item_id}".encode() for item_id in ids]
    assert [file.closed for file in opened] == [True]


def test_row_groups_of_several_views_are_read_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [f"i{n:03}" for n in range(128)]
    write_parquet(store, "x.parquet", images(*ids * 3), row_group_size=128)
    listing = listed(store.uri("x.parquet"))
    opened = opened_files(monkeypatch)
    for start in range(0, 128, 16):
        part = [view * 128 + row for row in range(start, start + 16) for view in range(3)]
        assert fetched(listing.take(part)) == [f"bytes of {ids[n % 128]}".encode() for n in part]
    assert [file.closed for file in opened] == [True] * 3


def test_few_unfinished_row_groups_stay_open(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(store, "x.parquet", images(*(f"i{n}" for n in range(20))), row_group_size=2)
    opened = opened_files(monkeypatch)
    for n in range(0, 20, 2):
        assert fetched(listed(store.uri("x.parquet")).slice(n, 1)) == [f"bytes of i{n}".encode()]
    assert sum(not file.closed for file in opened) == 4
    close_readers()
    assert all(file.closed for file in opened)


def test_file_that_was_written_again_is_read_again(store: Store) -> None:
    for one, two in (("a", "b"), ("cc", "dd")):
        write_parquet(store, "x.parquet", images(one, two), row_group_size=9)
        listing = listed(store.uri("x.parquet"))
        assert fetched(listing.slice(0, 1)) == [f"bytes of {one}".encode()]
        assert fetched(listing.slice(1, 1)) == [f"bytes of {two}".encode()]


def test_file_that_got_shorter_is_refused(store: Store) -> None:
    write_parquet(store, "x.parquet", images("a", "b"), row_group_size=9)
    listing = listed(store.uri("x.parquet"))
    write_parquet(store, "x.parquet", images("a"), row_group_size=9)
    with pytest.raises(InputError, match=r"x.parquet \(--images\) has fewer rows than when it was"):
        fetched(listing)
    assert pictures(store.uri("x.parquet")) == {"a": b"bytes of a"}


def test_parquet_ids_may_be_integers(store: Store) -> None:
    table = pa.table({"item_id": [7, 12], "image": [b"x", b"y"]})
    write_parquet(store, "x.parquet", table, row_group_size=1)
    assert pictures(store.uri("x.parquet")) == {"7": b"x", "12": b"y"}


def test_hugging_face_struct_yields_the_bytes(store: Store) -> None:
    image = [{"bytes": b"jpg a", "path": "a.jpg"}, {"bytes": b"jpg b", "path": None}]
    write_parquet(store, "part.parquet", pa.table({"item_id": ["a", "b"], "image": image}), 1)
    assert pictures(store.root) == {"a": b"jpg a", "b": b"jpg b"}


def test_null_picture_is_fetched_as_no_bytes(store: Store) -> None:
    table = pa.table({"item_id": ["a", "b"], "image": [None, b"y"]})
    write_parquet(store, "x.parquet", table, row_group_size=9)
    assert pictures(store.uri("x.parquet")) == {"a": b"", "b": b"y"}


def test_source_of_bytes_changes_with_their_file(store: Store) -> None:
    write_parquet(store, "x.parquet", images("a", "b"), row_group_size=1)
    before = sources(store.uri("x.parquet"))
    assert sources(store.uri("x.parquet")) == before
    assert before["a"] != before["b"]
    write_parquet(store, "x.parquet", images("a", "c"), row_group_size=1)
    assert sources(store.uri("x.parquet"))["a"] != before["a"]


def test_other_files_beside_parquet_are_ignored(store: Store) -> None:
    write_parquet(store, "images/part-0.parquet", images("a"), row_group_size=1)
    for other in ("_SUCCESS", "README.md", "items.csv"):
        store.write(f"images/{other}", b"item_id\nb\n")
    assert set(pictures(store.uri("images"))) == {"a"}


def test_listing_of_one_parquet_file_looks_at_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(Store.at(str(tmp_path)), "p.parquet", images("a"), 1)
    (tmp_path / "another").mkdir()
    scanned: list[str] = []
    really = local._scan
    monkeypatch.setattr(local, "_scan", lambda folder: scanned.append(folder) or really(folder))
    assert listed(str(tmp_path / "p.parquet"))["item_id"].to_pylist() == ["a"]
    assert {folder.rstrip("/") for folder in scanned} == {str(tmp_path)}


def test_hidden_parquet_file_is_refused(tmp_path: Path) -> None:
    write_parquet(Store.at(str(tmp_path)), ".p.parquet", images("a"), 1)
    with pytest.raises(InputError, match=r"\.p\.parquet \(--images\) is hidden, or was removed"):
        listed(str(tmp_path / ".p.parquet"))


def test_linked_folders_of_parquet_are_read(tmp_path: Path) -> None:
    write_parquet(Store.at(str(tmp_path / "real")), "p.parquet", images("a"), 1)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "real")
    assert listed(str(tmp_path / "images"))["item_id"].to_pylist() == ["a"]


def test_uris_may_be_local_or_on_s3(store: Store, tmp_path: Path) -> None:
    (tmp_path / "local.jpg").write_bytes(b"local")
    store.write("in store/é.jpg", b"store")
    uris = [str(tmp_path / "local.jpg"), store.uri("in store/é.jpg"), store.uri("not-there.jpg")]
    table = pa.table({"item_id": ["local", "store", "gone"], "uri": uris})
    write_parquet(store, "x.parquet", table, row_group_size=2)
    found = pictures(store.uri("x.parquet"))
    assert found["local"] == b"local"
    assert found["store"] == b"store"
    assert isinstance(found["gone"], StorageError)
    assert "not-there.jpg" in str(found["gone"])


def test_invalid_uri_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "None").write_bytes(b"a picture that no row names")
    (tmp_path / "a.jpg").write_bytes(b"a")
    os.mkfifo(tmp_path / "pipe")
    uris = [str(tmp_path / "a.jpg"), "ftp://me:secret@shop.example/b.jpg", None, "/x\0.jpg", ""]
    table = pa.table(
        {"item_id": ["a", "web", "null", "nul", "empty", "pipe", "s3"],
         "uri": [*uris, str(tmp_path / "pipe"), "s3://"]}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "X.PARQUET")
    found = pictures(str(tmp_path / "X.PARQUET"))
    assert found["a"] == b"a"
    assert str(found["null"]) == "The row has no uri."
    assert isinstance(found["web"], StorageError)
    assert "s3://bucket/prefix" in str(found["web"])
    assert "secret" not in str(found["web"])
    for item_id in ("null", "nul", "empty", "pipe", "s3"):
        assert isinstance(found[item_id], StorageError), item_id


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", ["nothing", "others", "empty.parquet"])
def test_no_pictures_are_bad_input(store: Store, name: str) -> None:
    store.write("others/readme.txt", b"x")
    write_parquet(store, "empty.parquet", images("a").slice(0, 0), row_group_size=1)
    with pytest.raises(InputError) as caught:
        list(list_pictures(store.uri(name)))
    assert store.uri(name) in str(caught.value)
    assert "--images" in str(caught.value)


@pytest.mark.parametrize("name", ["photos.zip", "Photos.TAR.gz"])
def test_archive_is_named_as_one(store: Store, name: str) -> None:
    store.write(name, b"PK")
    with pytest.raises(InputError, match=r"Found the archive .*; expected a directory .* Unpack"):
        list(list_pictures(store.uri(name)))


def test_parquet_with_neither_bytes_nor_uris_is_refused(store: Store) -> None:
    write_parquet(store, "x.parquet", pa.table({"item_id": ["a"], "size": [1]}), row_group_size=1)
    with pytest.raises(InputError, match="neither an image nor a uri column; found item_id, size"):
        list(list_pictures(store.uri("x.parquet")))


def test_parquet_without_ids_is_refused(store: Store) -> None:
    write_parquet(store, "x.parquet", images("a").drop_columns("item_id"), row_group_size=1)
    with pytest.raises(SchemaError, match=r"x.parquet \(--images\) lacks the column item_id"):
        list(list_pictures(store.uri("x.parquet")))


def test_damaged_parquet_is_bad_input(store: Store) -> None:
    store.write("x.parquet", b"PARDON" * 50)
    with pytest.raises(InputError) as caught:
        list(list_pictures(store.uri("x.parquet")))
    assert store.uri("x.parquet") in str(caught.value)
    assert "--images" in str(caught.value)
