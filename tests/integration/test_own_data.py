"""The first path of the README: orders with their own column names, and a folder of photos."""

import csv
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.integration.workspace import SMALL_GALLERY, night_settings, paint, undocumented_rows
from visrec.cli.parse import parse_in_workspace
from visrec.cli.summary import Summary
from visrec.cli.workspace_keys import WORKSPACE_FILE, values_used_by
from visrec.pipelines import check, explain, init, nightly
from visrec.pipelines.check import CheckJob
from visrec.pipelines.explain import ExplainJob
from visrec.pipelines.init import InitJob
from visrec.pipelines.nightly import NightlyJob


def own_files(folder: Path) -> None:
    """The gallery as a shop has it: `orders.csv` with semicolons, two photos an item."""
    paint(folder / "painted", SMALL_GALLERY)
    log = pq.read_table(folder / "painted/interactions.parquet").to_pylist()
    with open(folder / "orders.csv", "w", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        writer.writerow(["order_no", "customer_email", "sku", "ordered_at"])
        for number, row in enumerate(log):
            when = datetime.fromtimestamp(row["timestamp"], UTC)
            user = f"{row['user_id']}@shop.org"
            writer.writerow([number, user, row["item_id"], when.isoformat()])
    (folder / "photos").mkdir()
    for picture in (folder / "painted/images").iterdir():
        for view in "12":
            (folder / "photos" / f"{picture.stem}_{view}{picture.suffix}").write_bytes(
                picture.read_bytes()
            )


def test_four_commands_lead_from_own_files_to_a_list(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own_files(tmp_path)
    shop = ["--workspace", str(tmp_path / "shop")]

    files = ["--interactions.path", f"{tmp_path}/orders.csv", "--images", f"{tmp_path}/photos"]
    init.main(parse_in_workspace(InitJob, [*shop, *files]), Summary("init"))
    kept = yaml.safe_load((tmp_path / "shop" / WORKSPACE_FILE).read_text())
    assert kept["image_pattern"] == "{item_id}_{view}"
    assert kept["interactions"]["columns"]["item_id"] == "sku"

    summary = Summary("check")
    check.main(parse_in_workspace(CheckJob, shop), summary)
    assert summary.rows["verdict"] == "ready: a night can run"
    assert summary.rows["command"] == f"visrec nightly {shop[0]} {shop[1]} --local"
    assert undocumented_rows(summary) == set()

    # For speed: a small network and few epochs; no file of these names a column or a path.
    settings = night_settings(tmp_path / "yaml")
    day = datetime.now(UTC).date().isoformat()
    flags = [word for key, path in settings.items() for word in (f"--{key}", path)]
    night = parse_in_workspace(NightlyJob, [*shop, "--as_of", day, *flags])
    summary = Summary("nightly")
    nightly.main(night, summary)
    assert summary.rows["published"] == "yes"
    assert "interactions.columns" in values_used_by(night).summary_row["keys from"]

    user = f"{pq.read_table(tmp_path / 'painted/interactions.parquet')['user_id'][0]}@shop.org"
    capsys.readouterr()
    explain.main(parse_in_workspace(ExplainJob, [*shop, "--user", user]), Summary("explain"))
    shown = capsys.readouterr().out
    assert f"The list of {user}" in shown
    assert "list: 10 items, best first" in shown
