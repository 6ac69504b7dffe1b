"""The search for ids finds them in every format, and not where they are something else."""

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visrec.storage.id_search import IdSearch, SearchResult, list_all_files, search_files
from visrec.storage.store import Store

ANNA, NUMBER, ITEM = "anna@shop.example", "4711", "sku-000123"
UMLAUTS, ODD = "jürgen-müller", "Anna Müller (Köln)"
SEARCH = IdSearch([ANNA, NUMBER, ITEM, UMLAUTS, ODD], ambiguous=[ITEM])


def parquet(columns: dict[str, object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue().to_pybytes())


nested = pa.array([[{"name": "x"}], [{"name": ANNA}]])
WITH: dict[str, tuple[bytes, set[str]]] = {
    "a.parquet": (parquet({"user_id": [ANNA, NUMBER, "x"]}), {ANNA, NUMBER}),
    "nested.parquet": (parquet({"any": nested}), {ANNA}),
    "coded.parquet": (parquet({"any": pa.array([ANNA]).dictionary_encode()}), {ANNA}),
    "prints.parquet": (parquet({"user_id": [ITEM]}), {ITEM}),
    "numbers.parquet": (parquet({"user_id": [1, int(NUMBER)]}), {NUMBER}),
    ".a.parquet.0123456789abcdef0123456789abcdef": (parquet({"user_id": [NUMBER]}), {NUMBER}),
    "explain.json": (f'{{"user": "{NUMBER}", "run": "x"}}'.encode(), {NUMBER}),
    "lists.jsonl": (f'{{"user_id": "{NUMBER}", "items": []}}\n'.encode(), {NUMBER}),
    "escaped.json": (b'{"user_id": "anna\\u0040shop.example"}', {ANNA}),
    "lists.csv.gz": (
        gzip.compress(f"user_id,rank\n{NUMBER},1\n{ITEM},1\n".encode()),
        {NUMBER, ITEM},
    ),
    "report.html": (f"<h3>User <bdi>{NUMBER}</bdi></h3>".encode(), {NUMBER}),
    "log.txt": (f"by {ANNA}.".encode(), {ANNA}),
    "paths.json": (json.dumps([f"users/{ANNA}/list"]).encode(), {ANNA}),
    "late.bin": (b"\0" * (8 << 20) + ANNA.encode(), {ANNA}),
    # As spreadsheets, databases and older programs write them.
    "semicolons.csv": (f"rank;user_id\n1;{NUMBER}\n".encode(), {NUMBER}),
    "tabs.tsv": (f"rank\tuser_id\n1\t{NUMBER}\n".encode(), {NUMBER}),
    "unicode.csv": (f"user_id,rank\n{NUMBER},1\n{UMLAUTS},2\n".encode("utf-16"), {NUMBER, UMLAUTS}),
    "unicode.txt": (f"{ANNA}\n{UMLAUTS}".encode("utf-16"), {ANNA, UMLAUTS}),
    "old.txt": (f"{ODD}, {UMLAUTS}".encode("cp1252"), {ODD, UMLAUTS}),
    "old.json": (f'{{"user_id": "{UMLAUTS}"}}'.encode("cp1252"), {UMLAUTS}),
    "reviews.csv": (
        b"user_id,text\n" + 40_000 * b'1,"two\nlines, in quotes and long enough"\n' + b"4711,x\n",
        {NUMBER},
    ),
}
WITHOUT = {
    "items.parquet": parquet({"item_id": [ITEM, NUMBER], "rows": [4711, 1]}),
    "counts.json": b'{"rows": 4711, "item_id": "sku-000123"}',
    "others.txt": f"not{ANNA} {ANNA}x {ANNA}.org 47110".encode(),
    "empty.csv": b"",
    "scores.csv": b"item_id,score\nsku-000123,4711\n",
    "similar.parquet": parquet({"item_id": [ITEM, NUMBER], "fingerprint": [1, 2]}),
    "python.txt": b'{"user_id": "it\\\'s"} {"user_id": "J\xfcrgen"}',
}
# What is found in files that cannot be searched to their end.
PARTLY = {
    "ragged.csv": (b"user_id,item_id\n4711,2\n3\n", set[str]()),
    "title.csv": (f"All orders\nuser_id,item_id\n{NUMBER},{ANNA}\n".encode(), {ANNA}),
    "cut.csv.gz": (gzip.compress(WITH["reviews.csv"][0])[:-20], set()),
    "wrong.csv.gz": (b"user_id\n4711\n", set()),
    "cut.parquet": (b"PAR1" + bytes(60), set()),
    "text.parquet": (b"user_id\n4711\n", set()),
    "bits.csv": (b"user_id\n4711\n\0\0", set()),
}


@pytest.mark.parametrize("name", WITH)
def test_id_is_found(name: str, tmp_path: Path) -> None:
    data, ids = WITH[name]
    (tmp_path / name).write_bytes(data)
    store = Store(str(tmp_path))
    assert [file.name for file in list_all_files(store)] == [name]
    assert SEARCH.find(store, name) == (ids, True)
    assert search_files(SEARCH, [(store, name)]) == SearchResult([store.uri(name)], [])


def test_files_of_any_store_are_listed_and_searched(store: Store) -> None:
    for name, (data, _) in WITH.items():
        store.write(f"some/{name}", data)
    names = [f"some/{name}" for name in WITH]
    found = list(list_all_files(store))
    assert sorted(file.name for file in found) == sorted(names)
    assert all(file.modified > 0 and file.size > 0 for file in found)
    result = search_files(SEARCH, [(store, name) for name in names])
    assert result == SearchResult(list(map(store.uri, names)), [])
    assert list(list_all_files(store / "missing")) == []


def test_links_are_followed_once_and_closed_folders_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("shop/a", "shop/lost+found", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.txt").write_text(ANNA)
    (tmp_path / "shop" / "a" / "loop").symlink_to(tmp_path / "shop")
    (tmp_path / "shop" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "shop" / "broken").symlink_to(tmp_path / "missing")
    scan = os.scandir

    def refuse(path: str) -> Any:
        if path.endswith("lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {
        file.name: file.is_unlistable for file in list_all_files(Store(str(tmp_path / "shop")))
    }
    assert found == {"a/x.txt": False, "link/x.txt": False, "lost+found/": True}
    assert SEARCH.find(Store(str(tmp_path / "shop")), "lost+found/") == (set(), False)


@pytest.mark.parametrize("name", WITHOUT)
def test_what_is_no_user_is_not_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WITHOUT[name])
    assert SEARCH.find(Store(str(tmp_path)), name) == (set(), True)


@pytest.mark.parametrize("name", PARTLY)
def test_file_that_cannot_be_searched_to_its_end_is_told(name: str, tmp_path: Path) -> None:
    data, ids = PARTLY[name]
    (tmp_path / name).write_bytes(data)
    store = Store(str(tmp_path))
    assert SEARCH.find(store, name) == (ids, False)
    assert search_files(SEARCH, [(store, name)]).not_searched == [store.uri(name)]


def test_file_that_was_removed_since_it_was_listed_has_no_ids(tmp_path: Path) -> None:
    assert SEARCH.find(Store(str(tmp_path)), "gone.csv") == (set(), True)


def test_statistics_of_a_column_are_searched(tmp_path: Path) -> None:
    """Rows may be gone while a footer still has the smallest id."""
    other = parquet({"user_id": ["x" * len(ANNA)]})
    split = len(other) - 8 - int.from_bytes(other[-8:-4], "little")
    footer = other[split:].replace(b"x" * len(ANNA), ANNA.encode())
    assert ANNA.encode() in footer
    (tmp_path / "a.parquet").write_bytes(other[:split] + footer)
    assert SEARCH.find(Store(str(tmp_path)), "a.parquet") == ({ANNA}, True)
