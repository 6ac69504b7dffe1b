"""Nights in sequence on a small gallery: what they do, what they skip and what they publish."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image, ImageOps

from tests.integration.workspace import (
    SMALL_GALLERY,
    night_settings,
    paint,
    published_rows,
    run_night,
    run_recommend,
)
from tests.publication.list_runs import rows_of_run, rows_of_table
from visrec.cli.summary import Summary
from visrec.errors import BusyError, GateError, InputError
from visrec.pipelines import nightly
from visrec.pipelines.night_model import newest_model_day, training_day
from visrec.pipelines.nightly import NightlyJob
from visrec.publication.gate_context import NOT_EVALUATED
from visrec.publication.manifest import RUN_MANIFEST
from visrec.publication.pointer import LATEST
from visrec.publication.rollback import roll_back
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.lease import Lease
from visrec.storage.store import Store

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
FIRST, SECOND, THIRD = "2026-11-20", "2026-11-21", "2026-11-22"  # in one week after a training day


def add_a_day(workspace: Path, day: str) -> None:
    """Adds ten pictures, and an interaction on that day for every twentieth user."""
    originals = sorted((workspace / "images").iterdir())[:10]
    for number, path in enumerate(originals):
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(workspace / "images" / f"new-{number}{path.suffix}")
    path = workspace / "interactions.parquet"
    table = pq.read_table(path)
    users = sorted(set(table["user_id"].to_pylist()))[::20]
    when = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + 3600
    item = table["item_id"][0].as_py()
    rows = {"user_id": users, "item_id": [item] * len(users), "timestamp": [when] * len(users)}
    columns = [pa.array(rows.get(f.name, [None] * len(users))).cast(f.type) for f in table.schema]
    pq.write_table(pa.concat_tables([table, pa.table(columns, schema=table.schema)]), path)


def published_run(workspace: Path) -> str:
    return str(json.loads((workspace / "recommendations" / LATEST).read_text())["run_id"])


def test_nights_in_sequence_train_when_due_and_publish_the_newest_night(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One workspace from its first night on; every part builds on the one before."""
    paint(tmp_path, SMALL_GALLERY)
    lists = tmp_path / "recommendations"

    # The first night runs every step.
    night = run_night(tmp_path, SECOND)
    assert night.rows["published"] == "yes"
    assert night.not_published is None
    assert night.rows["run through the network"] == night.rows["pictures"] == 150
    # 2026-11-19 was a Thursday, like 1970-01-01, so it is a training day with a period of 7 days.
    assert night.rows["model"] == night.rows["trained model"] == "curatornet-2026-11-19"
    assert {"its validation AUC", "its epochs"} <= night.rows.keys()
    evaluation = tmp_path / "evaluation" / "curatornet-2026-11-19"
    metrics = json.loads((evaluation / "metrics.json").read_text())
    manifest = json.loads((lists / f"run={SECOND}" / RUN_MANIFEST).read_text())
    assert manifest["inputs"]["model"] in metrics["digests"].values()
    gates = {gate["key"]: gate for gate in manifest["gates"]}
    assert gates["gates.min_gain"]["outcome"] == "passed"
    assert manifest["choice"] == night.rows["choice"]
    assert (
        "curatornet-2026-11-19 serves, because its auc on the held-out set, 0."
        in night.rows["choice"]
    )
    record = json.loads((tmp_path / "nights" / f"{SECOND}.json").read_text())
    assert set(record["steps_s"]) == {"extract", "train", "evaluate", "recommend", "retention"}

    # A second start does nothing.
    before = {path: path.stat().st_mtime_ns for path in lists.rglob("part-*")}
    again = run_night(tmp_path, SECOND)
    assert "is complete already" in capsys.readouterr().out
    assert again.rows["published"] == "yes"
    assert again.rows["choice"] == night.rows["choice"]
    assert {path: path.stat().st_mtime_ns for path in lists.rglob("part-*")} == before

    # The next night reads ten pictures, trains nothing and carries over unchanged lists.
    add_a_day(tmp_path, SECOND)
    night = run_night(tmp_path, THIRD)
    assert night.rows["run through the network"] == 10
    assert night.rows["model"] == "curatornet-2026-11-19"
    assert not {"its epochs", "trained model"} & night.rows.keys()
    changed = night.rows["users"] - night.rows["cold users"] - night.rows["lists carried over"]
    assert 0 < changed <= night.rows["users"] // 20 + 1
    rows = published_rows(lists)
    as_of = InteractionsConfig(as_of=THIRD)
    whole = run_recommend(
        tmp_path, run_id="whole", interactions=as_of, incremental=False,
        model=str(tmp_path / "models" / "curatornet-2026-11-19"),
    )  # fmt: skip
    assert whole.rows["lists carried over"] == 0
    assert published_run(tmp_path) == "whole"
    assert published_rows(lists) == rows
    # A second start of the night does not move the pointer away from a later publication.
    again = run_night(tmp_path, THIRD)
    assert "the pointer has moved to another run" in again.rows["published"]
    assert published_run(tmp_path) == "whole"
    assert any(e["item_id"].startswith("new-") for row in rows for e in row["items"])

    # A missed night that is run later is complete but not published.
    late = run_night(tmp_path, FIRST)
    assert late.rows["published"] == "no: a later night is published"
    assert late.not_published == (
        f"The run {FIRST} is complete and is not published: whole stays published, because a "
        "later night is published."
    )
    assert late.rows["model"] == "curatornet-2026-11-19"
    assert published_run(tmp_path) == "whole"
    gates = json.loads((lists / f"run={FIRST}" / "_manifest.json").read_text())["gates"]
    notes = {gate["key"]: gate["note"] for gate in gates}
    assert notes["gates.min_overlap"] == "the last publication, whole, has a later cutoff"

    # A night that was rolled back is not published by another start.
    assert roll_back(Store(str(lists)), THIRD) == ("whole", THIRD)
    assert roll_back(Store(str(lists)), SECOND) == (THIRD, SECOND)
    again = run_night(tmp_path, THIRD)
    assert f"{SECOND} stays published, because {THIRD} was rolled back" in str(again.not_published)
    assert published_run(tmp_path) == SECOND

    # Pruning keeps two nights and the published run.
    assert run_night(tmp_path, THIRD, keep=2).rows["nights removed"] == FIRST
    files = [path.relative_to(lists) for path in lists.rglob("*") if path.is_file()]
    left = {path.parts[0] for path in files if path.parts[0].startswith("run=")}
    assert left == {f"run={SECOND}", f"run={THIRD}", "run=whole"}

    # Nothing is done while another process has the lease.
    with Lease(Store(str(tmp_path / "nights")), "2026-11-23.lease", heartbeat_s=0.2) as other:
        assert other.held
        night = run_night(tmp_path, "2026-11-23")
        assert night.rows["published"] == "no: another process is at work on this night"
        assert night.rows["at work"] == other.holder
        busy = f"another process is at work on this night: {other.holder}. Nothing was done here."
        with pytest.raises(BusyError, match=re.escape(busy)):
            run_night(tmp_path, "2026-11-23", exit_if_running=3)
    assert not (lists / "run=2026-11-23").exists()

    # A night that a gate holds back leaves its record.
    files = night_settings(tmp_path / "strict")
    keys = yaml.safe_load(Path(files["recommend_config"]).read_text())
    strict = yaml.safe_dump({**keys, "gates": {"min_catalogue": 1.01}})
    Path(files["recommend_config"]).write_text(strict)
    with pytest.raises(GateError, match="held back"):
        run_night(tmp_path, "2026-11-23", **files)
    for record in ("nights/2026-11-23.json", "summaries/nightly.json"):
        left = json.loads((tmp_path / record).read_text())
        assert (left["night"], left["model"]) == ("2026-11-23", "curatornet-2026-11-19")
        assert left["published"].startswith("no: Publication was held back")


@pytest.mark.s3
def test_first_night_on_s3_without_earlier_interactions_serves_visrank(
    s3_env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All interactions are of one day after the last training day, so no user has two baskets."""
    workspace = f"{s3_env}/shop"
    paint(workspace, SMALL_GALLERY)
    store = Store.at(workspace)
    table = store.read_table("interactions.parquet")
    opened = int(datetime.fromisoformat(FIRST).replace(tzinfo=UTC).timestamp())
    times = pa.array([opened] * len(table)).cast(table.schema.field("timestamp").type)
    at = table.column_names.index("timestamp")
    store.write_table("interactions.parquet", table.set_column(at, "timestamp", times))
    night = run_night(workspace, SECOND, folder=tmp_path)
    assert night.rows["published"] == "yes"
    assert night.rows["model"] == f"visrank-mean-{SECOND}"
    assert night.rows["choice"] == (
        f"visrank-mean-{SECOND} serves in place of curatornet-{SECOND}, which is compared with no "
        "other model: none of its users had two baskets"
    )
    assert night.rows["evaluation"] == NOT_EVALUATED
    assert "evaluate: skipped" in capsys.readouterr().out
    assert Store.at(workspace).read_json(f"nights/{SECOND}.lease") == {"holder": None}
    # A table for SQL readers that is wanted once the night is complete.
    keys = yaml.safe_load((tmp_path / "yaml" / "recommend_config.yaml").read_text())
    with_table = tmp_path / "with_table.yaml"
    with_table.write_text(yaml.safe_dump({**keys, "publish": {"table": "delta"}}))
    again = run_night(workspace, SECOND, folder=tmp_path, recommend_config=str(with_table))
    assert again.rows["published"] == "yes"
    lists = Store.at(workspace) / "recommendations"
    assert rows_of_table(lists, "delta") == rows_of_run(lists, SECOND)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"as_of": TOMORROW},
            f"Found --as_of {TOMORROW}, which lies in the future: it is 20.* UTC. Expected "
            "a date in the past, such as today",
        ),
        ({"as_of": "2062-11-22"}, "Found --as_of 2062-11-22, which lies in the future"),
        ({"as_of": "yesterday"}, "--as_of 'yesterday'; expected a date such as 2026-11-22"),
        ({"train_every": -1}, "--train_every -1; expected a whole number in"),
        ({"keep": 1}, "--keep 1; expected a whole number in"),
    ],
)
def test_night_with_an_impossible_date_or_number_is_refused(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        NightlyJob(**keys)


@pytest.mark.parametrize("step", ["extract", "train", "recommend", "evaluate"])
def test_unknown_key_of_any_step_is_refused_before_the_first(tmp_path: Path, step: str) -> None:
    path = tmp_path / "step.yaml"
    path.write_text("example: 1\n")
    with pytest.raises(InputError, match=r"Found the key example in .*step\.yaml"):
        run_night(tmp_path, SECOND, folder=tmp_path, **{f"{step}_config": str(path)})
    assert {path.name for path in tmp_path.iterdir()} == {"step.yaml", "yaml"}


def test_error_of_a_step_names_the_file_of_its_keys(tmp_path: Path) -> None:
    config = NightlyJob(workspace=str(tmp_path), as_of=SECOND)
    with pytest.raises(
        InputError, match=r"Change --images\. \(Keys of .* file of --extract_config\.\)$"
    ):
        nightly.check(config)
    steps = nightly.Steps(config, nightly.load_jobs(config), Summary("nightly"))
    expected = r"--rules\.cap\. \(Keys of `visrec recommend` are .* of --recommend_config"
    with pytest.raises(InputError, match=expected), steps.step("recommend"):
        raise InputError("Change --rules.cap.")
    with pytest.raises(InputError, match=r"^No key\.$"), steps.step("recommend"):
        raise InputError("No key.")


def test_missing_table_of_any_step_is_refused_before_the_first(tmp_path: Path) -> None:
    path = tmp_path / "step.yaml"
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    interactions = f"interactions: {{path: {tmp_path}/interactions.csv}}\n"
    valid = tmp_path / "valid.yaml"
    valid.write_text(interactions)
    for step, keys in (
        ("recommend", "items: {0}/gone"), ("recommend", "users: {0}/gone"),
        ("recommend", "rules: {{blocked: {0}/gone}}"), ("evaluate", "items: {0}/gone"),
        ("train", "model: {{name: deepstyle}}\nitems: {0}/gone"),
    ):  # fmt: skip
        path.write_text(interactions + keys.format(tmp_path))
        files: Any = dict.fromkeys(
            ("train_config", "evaluate_config", "recommend_config"), str(valid)
        )
        files[f"{step}_config"] = str(path)
        config = NightlyJob(workspace=str(tmp_path), as_of=SECOND, **files)
        with pytest.raises(InputError, match=rf"gone.*the YAML file of --{step}_config\.\)"):
            nightly.check(config)
    untrained = NightlyJob(
        workspace=str(tmp_path), as_of=SECOND, train_every=0, recommend_config=str(valid)
    )
    with pytest.raises(InputError, match="Found no trained model"):
        nightly.check(untrained)


def test_min_rating_of_the_lists_is_refused_if_the_training_has_another(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("interactions: {min_rating: 4.0}\n")
    with pytest.raises(InputError, match=r"min_rating none, and 4 for the night's training"):
        run_night(tmp_path, SECOND, folder=tmp_path, train_config=str(path))


def test_training_day_does_not_depend_on_earlier_nights(tmp_path: Path) -> None:
    nights = [date.fromordinal(date(2026, 11, 1).toordinal() + n) for n in range(30)]
    days = [training_day(night, 7) for night in nights]
    assert all(0 <= (night - day).days < 7 for night, day in zip(nights, days, strict=True))
    assert len(set(days)) == 5
    assert [training_day(night, 1) for night in nights] == nights
    models = Store(str(tmp_path))
    assert newest_model_day(models, "vbpr", days[10], nights[10]) is None
    (models / f"vbpr-{nights[9]}").write(RUN_MANIFEST, b"{}")
    assert newest_model_day(models, "vbpr", days[10], nights[10]) == nights[9]
    assert newest_model_day(models, "vbpr", days[8], nights[8]) is None
