"""MovieLens, in each edition."""

from pathlib import Path

import pytest

from tests.importers.imports import RATINGS, TITLES, imported, movielens, pairs, rows, titles, write
from visrec.errors import InputError
from visrec.importers import base


@pytest.mark.parametrize("edition", ["latest", "1m", "100k"])
def test_movielens_of_each_edition(edition: str, tmp_path: Path) -> None:
    workspace, summary = imported(movielens(tmp_path, edition), "movielens", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == RATINGS
    assert titles(workspace) == TITLES
    assert (summary["interactions"], summary["items"]) == (3, 2)
    assert summary["next"] == f"visrec check {workspace}"
    if edition != "100k":
        assert rows(workspace / "items.parquet", "item_id", "category")[0] == ("31", "Drama")


def test_movielens_titles_in_utf_8_end_at_line_feeds_alone(tmp_path: Path) -> None:
    """ml-10m is in UTF-8, in which one byte of Å is a line end of Latin-1."""
    known = {"122": "Ådalen 31 (1969)", "123": "L’Âge d’or", "124": "A\x0bB\u2028C"}
    source = write(
        tmp_path / "ml",
        ratings__dat="1::122::5::838985046\n",
        movies__dat="".join(f"{i}::{title}::Drama|War\r\n" for i, title in known.items()),
    )
    workspace, summary = imported(source, "movielens", tmp_path)
    assert titles(workspace) == known
    assert {*dict(rows(workspace / "items.parquet", "item_id", "category")).values()} == {"Drama"}
    assert summary["encodings"] == {}


def test_movielens_titles_in_latin_1_are_read_and_the_summary_says_so(tmp_path: Path) -> None:
    source = write(
        tmp_path / "ml",
        u__data="1\t2\t5\t838985046\n",
        u__item="1|Toy Story (1995)|\n2|Misérables, Les (1995)|\n".encode("latin-1"),
    )
    workspace, summary = imported(source, "movielens", tmp_path)
    assert titles(workspace) == {"1": "Toy Story (1995)", "2": "Misérables, Les (1995)"}
    assert summary["encodings"] == {"u.item": "Windows-1252, since line 2 is not UTF-8"}


@pytest.mark.parametrize(
    "names",
    [("ratings.csv", "ratings.dat"), ("ratings.dat", "movies.csv"), ("ratings.dat", "u.item")],
)
def test_movielens_files_of_several_editions_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "ml", **{name.replace(".", "__"): "1::2::3::4\n" for name in names})
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* of one edition"):
        imported(source, "movielens", tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"movies__dat": "1;Toy Story\n"}, r"movies\.dat .* '1;Toy Story'; .* separated by ::"),
        ({"ratings__dat": "1::2::5\n"}, r"ratings\.dat .* Expected 4 columns"),
    ],
)
def test_damaged_movielens_line_is_refused_and_shown(
    files: dict[str, str | bytes], expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "ml", **{"ratings__dat": "1::1::5::838985046\n", **files})
    with pytest.raises(InputError, match=expected):
        imported(source, "movielens", tmp_path)


def test_user_of_a_file_with_a_damaged_line_is_one_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoding is that of the whole file, whichever block the damaged line is in."""
    monkeypatch.setattr(base, "_BLOCK_BYTES", 64)
    line = "jörg@x.de,S1,2026-11-20\n".encode()
    source = tmp_path / "orders.csv"
    source.write_bytes(b"Email,SKU,Date\n" + 9 * line + b"a@x.de,S\xf6,2026-11-20\n" + 9 * line)
    workspace, summary = imported(source, "retail", tmp_path)
    assert {user for user, _ in pairs(workspace)} == {"jÃ¶rg@x.de", "a@x.de"}
    assert summary["encodings"] == {"orders.csv": "Windows-1252, since line 11 is not UTF-8"}
