"""The first nights of a shop with 40 orders and a handful of pictures."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.integration.workspace import night_settings, published_rows, run_night
from visrec.pipelines.night_model import models_to_try
from visrec.pipelines.train import TrainJob
from visrec.publication.manifest import RUN_MANIFEST

ITEMS, DAY = 9, 86_400
OPENED = int(datetime(2026, 11, 17, 9, tzinfo=UTC).timestamp())  # two days before a training day
FIRST, SECOND = "2026-11-20", "2026-11-22"


def paint(workspace: Path) -> None:
    (workspace / "images").mkdir()
    for n in range(ITEMS):
        colour = (25 * n, 255 - 20 * n, 90)
        Image.new("RGB", (32, 32), colour).save(workspace / "images" / f"work-{n}.png")


def write_orders(workspace: Path, *first_days: int) -> None:
    """For each of these days, 40 orders of 40 users within three days of it."""
    orders = [
        {
            "user_id": f"u{n}",
            "item_id": f"work-{(7 * n + day) % ITEMS}",
            "timestamp": OPENED + day * DAY + n * DAY // 15,
        }
        for day in first_days
        for n in range(40)
    ]
    pq.write_table(pa.Table.from_pylist(orders), workspace / "interactions.parquet")


def test_baseline_serves_where_there_is_nothing_to_train_on_or_the_model_is_not_better(
    tmp_path: Path,
) -> None:
    paint(tmp_path)
    write_orders(tmp_path, 0)  # one order of each user
    night = run_night(tmp_path, FIRST, model="hybrid")
    assert night.rows["published"] == "yes"
    assert night.rows["choice"] == (
        "hybrid could not be trained, because none of the 40 users has training items in two "
        f"baskets; visrank-mean-{FIRST} serves and is compared with no other model: none of its "
        "users had two baskets"
    )
    rows = published_rows(tmp_path / "recommendations")
    assert {len(row["items"]) for row in rows} == {ITEMS - 1}
    assert not any(row["cold"] for row in rows)

    # The training day still had nothing to train on, so this night has a model of its own.
    write_orders(tmp_path, 0, 1, 2, 3)  # of which one is held out for test, one for validation
    assert [model.store.name for model in models_to_try(
        TrainJob(workspace=str(tmp_path)), date(2026, 11, 23), 7, train_now=False
    )] == ["hybrid-2026-11-19", "hybrid-2026-11-23"]  # fmt: skip
    (tmp_path / "other").mkdir()
    settings = night_settings(tmp_path / "yaml", model="hybrid")
    demanding = {"k": 5, "gates": {"min_gain": 1.0, "min_lists": 1}}
    Path(settings["recommend_config"]).write_text(yaml.safe_dump(demanding))
    night = run_night(tmp_path, SECOND, folder=tmp_path / "other", **settings)
    assert night.rows["published"] == "yes"
    assert (tmp_path / "models" / f"hybrid-{SECOND}" / RUN_MANIFEST).exists()
    assert f"serves in place of hybrid-{SECOND}, whose auc on the held-out set, " in str(
        night.rows["choice"]
    )
    manifest = json.loads(
        (tmp_path / "recommendations" / f"run={SECOND}" / RUN_MANIFEST).read_text()
    )
    assert manifest["model_name"] in ("visrank", "popularity")
    assert manifest["model_id"] == f"{str(night.rows['choice']).partition(' ')[0]}"
    above = [gate for gate in manifest["gates"] if gate["key"] == "gates.min_gain"]
    assert "itself serves" in above[0]["note"] + above[1]["note"]
    assert json.loads((tmp_path / "models" / "_latest.json").read_text())["model_id"] == (
        f"hybrid-{SECOND}"
    )

    # A model of an earlier night does not serve later ones, whichever nights were run.
    assert [model.store.name for model in models_to_try(
        TrainJob(workspace=str(tmp_path)), date(2026, 11, 23), 7, train_now=False
    )] == ["hybrid-2026-11-23"]  # fmt: skip
    again = run_night(tmp_path, SECOND, folder=tmp_path / "other", **settings)
    assert again.rows["choice"] == night.rows["choice"]
