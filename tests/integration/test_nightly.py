"""Nights one after another on the small gallery: what is done, what is left, what is published."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from tests.integration.workspace import paint, published_rows, run_night, run_recommend
from visrec.cli.launch import Summary
from visrec.errors import GateError, InputError
from visrec.pipelines import nightly
from visrec.pipelines.nightly import NightlyJob
from visrec.publication.gates import NOT_EVALUATED
from visrec.publication.pointer import LATEST
from visrec.publication.run import MANIFEST, roll_back
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.lease import Lease
from visrec.storage.store import Store

pytestmark = pytest.mark.ray
TOMORROW = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
FIRST, SECOND, THIRD = "2026-11-20", "2026-11-21", "2026-11-22"  # of one week from a training day


def a_day_in_the_shop(workspace: Path, day: str) -> None:
    """Ten new pictures, and one user in twenty takes something on that day."""
    originals = sorted((workspace / "images").iterdir())[:10]
    for number, path in enumerate(originals):
        with Image.open(path) as picture:
            ImageOps.mirror(picture).save(workspace / "images" / f"new-{number}{path.suffix}")
    path = workspace / "interactions.parquet"
    table = pq.read_table(path)
    users = sorted(set(table["user_id"].to_pylist()))[::20]
    when = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + 3600
    item = table["item_id"][0].as_py()
    more = {"user_id": users, "item_id": [item] * len(users), "timestamp": [when] * len(users)}
    columns = [pa.array(more.get(f.name, [None] * len(users))).cast(f.type) for f in table.schema]
    pq.write_table(pa.concat_tables([table, pa.table(columns, schema=table.schema)]), path)


def pointed_to(workspace: Path) -> str:
    return str(json.loads((workspace / "recommendations" / LATEST).read_text())["run_id"])


@pytest.mark.usefixtures("ray_cluster")
def test_nights_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One workspace, from its first night on; every step looks at what the one before has left."""
    paint(tmp_path)
    lists = tmp_path / "recommendations"

    # The first night does all there is to do.
    night = run_night(tmp_path, SECOND)
    assert night.rows["published"] == "yes"
    assert night.not_published is None
    assert night.rows["run through the network"] == night.rows["pictures"] == 300
    # 2026-11-19 was a Thursday, as 1970-01-01 was: a training day where every seventh is one.
    assert night.rows["model"] == "curatornet-2026-11-19"
    judged = tmp_path / "evaluation" / "curatornet-2026-11-19"
    known = json.loads((judged / "metrics.json").read_text())
    manifest = json.loads((lists / f"run={SECOND}" / MANIFEST).read_text())
    assert manifest["inputs"]["model"] in known["digests"].values()
    gates = {gate["key"]: gate for gate in manifest["gates"]}
    assert gates["gates.min_gain"]["outcome"] == "passed"
    told = json.loads((tmp_path / "nights" / f"{SECOND}.json").read_text())
    assert set(told["steps_s"]) == {"extract", "train", "evaluate", "recommend", "retire"}

    # Begun again, it does nothing.
    before = {path: path.stat().st_mtime_ns for path in lists.rglob("part-*")}
    again = run_night(tmp_path, SECOND)
    assert "is complete already" in capsys.readouterr().out
    assert again.rows["published"] == "yes"
    assert {path: path.stat().st_mtime_ns for path in lists.rglob("part-*")} == before

    # The next night reads ten pictures, trains nothing and carries over what has not changed.
    a_day_in_the_shop(tmp_path, SECOND)
    night = run_night(tmp_path, THIRD)
    assert night.rows["run through the network"] == 10
    assert night.rows["model"] == "curatornet-2026-11-19"
    assert "epochs" not in night.rows
    changed = night.rows["users"] - night.rows["cold users"] - night.rows["lists carried over"]
    assert 0 < changed <= night.rows["users"] // 20 + 1
    rows = published_rows(lists)
    as_of = InteractionsConfig(as_of=THIRD)
    whole = run_recommend(
        tmp_path, run_id="whole", interactions=as_of, incremental=False,
        model=str(tmp_path / "models" / "curatornet-2026-11-19"),
    )  # fmt: skip
    assert whole.rows["lists carried over"] == 0
    assert pointed_to(tmp_path) == "whole"
    assert published_rows(lists) == rows
    # A second start of the night does not take the pointer back from a run that somebody wanted.
    again = run_night(tmp_path, THIRD)
    assert "another run was published" in again.rows["published"]
    assert pointed_to(tmp_path) == "whole"
    assert any(e["item_id"].startswith("new-") for row in rows for e in row["items"])

    # A night that is filled in later is complete and not published.
    late = run_night(tmp_path, FIRST)
    assert late.rows["published"] == "no: a later night is published"
    assert late.not_published == (
        f"The run {FIRST} is complete and is not published: whole stays published, because a "
        "later night is published."
    )
    assert late.rows["model"] == "curatornet-2026-11-19"
    assert pointed_to(tmp_path) == "whole"

    # What is rolled back stays so, whoever starts the night again.
    assert roll_back(Store(str(lists)), THIRD) == ("whole", THIRD)
    assert roll_back(Store(str(lists)), SECOND) == (THIRD, SECOND)
    again = run_night(tmp_path, THIRD)
    assert again.rows["published"] == "no: it was rolled back"
    assert f"{SECOND} stays published, because it was rolled back" in str(again.not_published)
    assert pointed_to(tmp_path) == SECOND

    # Two nights stay, and the one that is published.
    assert run_night(tmp_path, THIRD, keep=2).rows["nights removed"] == FIRST
    files = [path.relative_to(lists) for path in lists.rglob("*") if path.is_file()]
    left = {path.parts[0] for path in files if path.parts[0].startswith("run=")}
    assert left == {f"run={SECOND}", f"run={THIRD}", "run=whole"}

    # While another has the night, nothing is done.
    with Lease(Store(str(tmp_path / "nights")), "2026-11-23.lease", beat_s=0.2) as other:
        assert other.held
        night = run_night(tmp_path, "2026-11-23")
        assert night.rows["published"] == "no: another process is at work on this night"
        with pytest.raises(GateError, match="another process is at work on this night"):
            run_night(tmp_path, "2026-11-23", exit_if_running=3)
    assert not (lists / "run=2026-11-23").exists()


@pytest.mark.s3
@pytest.mark.usefixtures("ray_cluster")
def test_first_night_of_a_young_shop_on_s3(
    s3_env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It opened after the last training day, and nobody has come back yet."""
    workspace = f"{s3_env}/shop"
    paint(workspace)
    store = Store.at(workspace)
    table = store.read_table("interactions.parquet")
    opened = int(datetime.fromisoformat(FIRST).replace(tzinfo=UTC).timestamp())
    times = pa.array([opened] * len(table)).cast(table.schema.field("timestamp").type)
    at = table.column_names.index("timestamp")
    store.write_table("interactions.parquet", table.set_column(at, "timestamp", times))
    night = run_night(workspace, SECOND, folder=tmp_path)
    assert night.rows["published"] == "yes"
    assert night.rows["model"] == f"curatornet-{SECOND}"
    assert night.rows["evaluation"] == NOT_EVALUATED
    assert "evaluate: left out" in capsys.readouterr().out
    assert Store.at(workspace).read_json(f"nights/{SECOND}.lease") == {"owner": None}
    assert run_night(workspace, SECOND, folder=tmp_path).rows["published"] == "yes"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"as_of": TOMORROW},
            f"Found --as_of {TOMORROW}, which lies in the future: it is 20.* UTC",
        ),
        ({"as_of": "2062-11-22"}, "Found --as_of 2062-11-22, which lies in the future"),
        ({"as_of": "yesterday"}, "--as_of 'yesterday'; expected a date such as 2026-11-22"),
        ({"train_every": -1}, "--train_every -1; expected a whole number in"),
        ({"keep": 1}, "--keep 1; expected a whole number in"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NightlyJob(**keys)


@pytest.mark.parametrize("step", ["extract", "training", "recommend", "evaluation"])
def test_a_mistake_in_the_last_step_is_told_before_the_first(tmp_path: Path, step: str) -> None:
    given = tmp_path / "step.yaml"
    given.write_text("example: 1\n")
    with pytest.raises(InputError, match=r"Found the key example in .*step\.yaml"):
        run_night(tmp_path, SECOND, folder=tmp_path, **{step: str(given)})
    assert {path.name for path in tmp_path.iterdir()} == {"step.yaml", "yaml"}


def test_error_of_a_step_says_which_file_has_the_key_that_it_names(tmp_path: Path) -> None:
    config = NightlyJob(workspace=str(tmp_path), as_of=SECOND)
    with pytest.raises(InputError, match=r"Change --images\. \(Keys of .* file of --extract\.\)$"):
        nightly.check(config)
    steps = nightly.Steps(config, config.night(), Summary("nightly"))
    expected = r"--rules\.cap\. \(Keys of jobs/recommend\.py stand in the YAML file of --recommend"
    with pytest.raises(InputError, match=expected), steps.step("recommend"):
        raise InputError("Change --rules.cap.")
    with pytest.raises(InputError, match=r"^No key\.$"), steps.step("recommend"):
        raise InputError("No key.")


def test_table_that_is_not_there_is_told_before_the_first_step(tmp_path: Path) -> None:
    given = tmp_path / "step.yaml"
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,a,1700000000\n")
    path = f"interactions: {{path: {tmp_path}/interactions.csv}}\n"
    ours = tmp_path / "ours.yaml"
    ours.write_text(path)
    for option, keys in (
        ("recommend", "items: {0}/gone"), ("recommend", "users: {0}/gone"),
        ("recommend", "rules: {{blocked: {0}/gone}}"), ("evaluation", "items: {0}/gone"),
        ("training", "model: {{name: deepstyle}}\nitems: {0}/gone"),
    ):  # fmt: skip
        given.write_text(path + keys.format(tmp_path))
        files: Any = {**dict.fromkeys(("training", "evaluation", "recommend"), str(ours))}
        config = NightlyJob(workspace=str(tmp_path), as_of=SECOND, **{**files, option: str(given)})
        with pytest.raises(InputError, match=rf"gone.*stand in the YAML file of --{option}\.\)"):
            nightly.check(config)
    last = NightlyJob(workspace=str(tmp_path), as_of=SECOND, train_every=0, recommend=str(ours))
    with pytest.raises(InputError, match="Found no trained model"):
        nightly.check(last)


def test_lists_are_made_of_what_the_training_counts(tmp_path: Path) -> None:
    given = tmp_path / "training.yaml"
    given.write_text("interactions: {min_rating: 4.0}\n")
    with pytest.raises(InputError, match=r"min_rating none, and 4 for the night's training"):
        run_night(tmp_path, SECOND, folder=tmp_path, training=str(given))


def test_a_training_day_is_the_same_whatever_was_run_before(tmp_path: Path) -> None:
    from datetime import date

    from visrec.pipelines.nightly import _newest, _training_day

    nights = [date.fromordinal(date(2026, 11, 1).toordinal() + n) for n in range(30)]
    days = [_training_day(night, 7) for night in nights]
    assert all(0 <= (night - day).days < 7 for night, day in zip(nights, days, strict=True))
    assert len(set(days)) == 5
    assert [_training_day(night, 1) for night in nights] == nights
    models = Store(str(tmp_path))
    assert _newest(models, "vbpr", days[10], nights[10]) is None
    (models / f"vbpr-{nights[9]}").write(MANIFEST, b"{}")
    assert _newest(models, "vbpr", days[10], nights[10]) == nights[9]
    assert _newest(models, "vbpr", days[8], nights[8]) is None
