"""`visrec import`: what it writes into a workspace, and what it leaves as it is."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.importers.imports import imported, movielens, pairs, titles, write
from visrec.cli.parse import parse_in_workspace
from visrec.errors import InputError
from visrec.pipelines.import_data import ImportDataJob, check


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("movielens", r"expected ratings\.csv, ratings\.dat or u\.data"),
        ("recbole", r"expected a \.inter file"),
        ("amazon", "expected reviews as"),
        ("retail", "expected an order export"),
    ],
)
def test_folder_of_other_files_is_refused_and_nothing_is_written(
    kind: str, expected: str, tmp_path: Path
) -> None:
    source = write(tmp_path / "other", readme__txt="hello")
    with pytest.raises(InputError, match=rf"Found readme\.txt at .*{expected}.*--path"):
        imported(source, kind, tmp_path)
    assert not (tmp_path / "shop").exists()


def test_failed_import_leaves_nothing_and_an_existing_table_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path / "ml", ratings__csv="userId,movieId,rating,timestamp\n1,2,x,3\n")
    with pytest.raises(InputError, match="rating"):
        imported(source, "movielens", tmp_path)
    assert not [path for path in (tmp_path / "shop").rglob("*") if path.is_file()]
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "shop" / "interactions.parquet")
    with pytest.raises(InputError, match="exists already"):
        imported(source, "movielens", tmp_path)


def test_workspace_of_the_demo_is_imported_into_only_if_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--format", "retail", "--path", "orders.csv"]
    with pytest.raises(InputError, match="Found no --workspace"):
        check(parse_in_workspace(ImportDataJob, flags))
    check(parse_in_workspace(ImportDataJob, [*flags, "--workspace", "runs/demo"]))


def test_workspace_with_pictures_of_its_own_is_kept(tmp_path: Path) -> None:
    (tmp_path / "shop/images").mkdir(parents=True)
    (tmp_path / "shop/images/a.jpg").touch()
    with pytest.raises(InputError, match="images exists already"):
        imported(movielens(tmp_path, "1m"), "movielens", tmp_path)


def test_import_replaces_the_tables_of_an_earlier_one(tmp_path: Path) -> None:
    def export(lines: str) -> Path:
        (tmp_path / "orders.csv").write_text(f"customer,sku,date,title\n{lines}")
        return tmp_path / "orders.csv"

    workspace, _ = imported(export("A,P1,2026-11-01,Brush\n"), "retail", tmp_path)
    assert titles(workspace) == {"P1": "Brush"}
    imported(export("A,P1,2026-11-01,\nB,P2,2026-11-02,\n"), "retail", tmp_path)
    expected = [("A", "P1"), ("B", "P2")]
    assert pairs(workspace) == expected
    assert not (workspace / "items.parquet").exists()
    for wrong in ("A,P1,soon,\n", ""):
        with pytest.raises(InputError):
            imported(export(wrong), "retail", tmp_path)
        assert pairs(workspace) == expected


@pytest.mark.parametrize(
    "line", ["interactions: {path: orders.csv}", "items_columns: {item_id: sku}"]
)
def test_workspace_that_names_other_tables_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/visrec.yaml").write_text(f"{line}\n")
    with pytest.raises(InputError, match="expected a workspace without, because jobs would read"):
        imported(movielens(tmp_path, "1m"), "movielens", tmp_path)
