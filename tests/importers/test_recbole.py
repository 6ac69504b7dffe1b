"""RecBole's atomic files."""

from pathlib import Path

import pytest

from tests.importers.imports import INTER, RATINGS, imported, pairs, rows, titles, write
from visrec.errors import InputError


def test_recbole_files_lose_the_types_of_their_header(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__inter="user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        + "".join(f"{u}\t{i}\t{r}\t{float(t)}\n" for u, i, r, t in RATINGS),
        x__item="item_id:token\tmovie_title:token_seq\tclass:token_seq\trelease:token\n"
        "31\tDangerous Minds\tDrama War\t1995\n",
    )
    workspace, _ = imported(source, "recbole", tmp_path)
    table = workspace / "interactions.parquet"
    assert rows(table, "user_id", "item_id", "rating", "timestamp") == RATINGS
    expected = [("31", "Dangerous Minds", "Drama War", "1995")]
    assert rows(workspace / "items.parquet", "item_id", "title", "category", "release") == expected


def test_recbole_file_without_a_time_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "rb", x__inter="user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(
        InputError, match=r"user_id:token, item_id:token; expected .* and timestamp"
    ):
        imported(source, "recbole", tmp_path)


def test_parts_of_a_recbole_data_set_are_one_table(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__test__inter=INTER + "u3\ti\t3\n",
        x__train__inter=INTER + "u1\ti\t1\n",
        x__valid__inter=INTER + "u2\ti\t2\n",
        x__item="item_id:token\ttitle:token\ni\tChair\n",
    )
    workspace, _ = imported(source, "recbole", tmp_path)
    assert pairs(workspace) == [("u1", "i"), ("u2", "i"), ("u3", "i")]
    assert titles(workspace) == {"i": "Chair"}


@pytest.mark.parametrize(
    "names",
    [
        ("x.inter", "y.inter"),
        ("x.inter", "x.train.inter"),
        ("x.train.inter", "y.test.inter"),
        ("x.v1.inter", "x.v2.inter"),
        ("x.inter", "y.item"),
        ("x.inter", "x.item", "y.item"),
    ],
)
def test_recbole_files_of_several_data_sets_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    source = write(tmp_path / "rb", **{name.replace(".", "__"): INTER for name in names})
    with pytest.raises(InputError, match=f"Found {', '.join(names)} .* files of one data set"):
        imported(source, "recbole", tmp_path)


def test_recbole_parts_with_different_fields_are_refused(tmp_path: Path) -> None:
    source = write(
        tmp_path / "rb",
        x__train__inter=INTER,
        x__test__inter=INTER.replace("\n", "\trating:float\n"),
    )
    with pytest.raises(
        InputError, match=r"x\.train\.inter has .*x\.test\.inter has .* rating:float"
    ):
        imported(source, "recbole", tmp_path)
