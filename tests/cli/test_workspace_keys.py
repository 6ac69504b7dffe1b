"""What a workspace remembers in `visrec.yaml`, and what wins over it."""

from pathlib import Path
from typing import Any

import pytest

from visrec.cli.parse import parse, parse_in_workspace
from visrec.cli.workspace_keys import WORKSPACE_FILE, WorkspaceKeys, values_used_by
from visrec.errors import InputError
from visrec.pipelines.check import CheckJob
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.explain import ExplainJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.nightly import NightlyJob, load_jobs
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.rollback import RollbackJob
from visrec.pipelines.train import TrainJob
from visrec.retrieval.rules import RulesConfig

KEPT = """\
images: /data/photos
image_pattern: "{item_id}_{view}"
item_features: both
interactions:
  path: /data/orders.csv
  columns: {user_id: email, item_id: sku, timestamp: at}
  min_rating: 4
publish:
  # table: iceberg
  table: delta
rules:
  blocked: /data/blocked.csv
  blocked_columns: {item_id: sku}
items:
text:
  # model: x
"""


@pytest.fixture
def shop(tmp_path: Path) -> str:
    (tmp_path / WORKSPACE_FILE).write_text(KEPT)
    return str(tmp_path)


@pytest.mark.parametrize(
    "job", [CheckJob, ExtractJob, TrainJob, EvaluateJob, RecommendJob, ExplainJob, NightlyJob]
)
def test_every_job_takes_the_keys_that_it_has(shop: str, job: type[Any]) -> None:
    config = parse_in_workspace(job, ["--workspace", shop])
    expected = parse(job, ["--workspace", shop])
    found = {
        "images": "/data/photos", "image_pattern": "{item_id}_{view}", "item_features": "both",
    }  # fmt: skip
    for name, value in found.items():
        if hasattr(expected, name):
            assert getattr(config, name) == value
    if hasattr(expected, "interactions"):
        columns = {"user_id": "email", "item_id": "sku", "timestamp": "at"}
        assert config.interactions.path == "/data/orders.csv"
        assert (config.interactions.columns, config.interactions.min_rating) == (columns, 4)
    if hasattr(expected, "rules"):
        assert config.rules.blocked == "/data/blocked.csv"
        assert config.rules.blocked_columns == {"item_id": "sku"}
    if hasattr(expected, "publish"):
        assert config.publish.tables == ("delta",)


def test_flags_and_files_win_and_the_summary_names_the_other_keys(
    shop: str, tmp_path: Path
) -> None:
    path = tmp_path / "extract.yaml"
    path.write_text(f"workspace: {shop}\nimages: /mine\n")
    flags = ["--image_pattern", "{item_id}-{view}", "--config", str(path)]
    config = parse_in_workspace(ExtractJob, flags)
    assert (config.images, config.image_pattern) == ("/mine", "{item_id}-{view}")
    assert values_used_by(config).summary_row == {}
    config = parse_in_workspace(ExtractJob, ["--workspace", shop, "--images", "/mine"])
    assert values_used_by(config).summary_row == {
        "keys from": f"{shop}/{WORKSPACE_FILE}: image_pattern"
    }


def test_flag_wins_over_a_file_that_follows_it(tmp_path: Path) -> None:
    path = tmp_path / "night.yaml"
    path.write_text("workspace: b\nkeep: 3\n")
    config = parse(NightlyJob, ["--workspace", "a", "--config", str(path)])
    assert (config.workspace, config.keep) == ("a", 3)


def test_steps_of_a_night_take_them_too_and_their_files_win(shop: str, tmp_path: Path) -> None:
    night = parse_in_workspace(NightlyJob, ["--workspace", shop])
    jobs = load_jobs(night)
    assert (jobs.train.item_features, jobs.recommend.publish.table) == ("both", "delta")
    assert jobs.recommend.rules == RulesConfig(
        blocked="/data/blocked.csv", blocked_columns={"item_id": "sku"}
    )
    path = tmp_path / "recommend.yaml"
    path.write_text("publish: {table: manifest}\nk: 5\nrules: {cap: 2}\n")
    flags = ["--workspace", shop, "--recommend_config", str(path)]
    jobs = load_jobs(parse_in_workspace(NightlyJob, flags))
    assert (jobs.recommend.publish.table, jobs.recommend.k) == ("manifest", 5)
    assert (jobs.recommend.rules.cap, jobs.recommend.rules.blocked) == (2, "/data/blocked.csv")
    assert jobs.recommend.interactions == jobs.train.interactions
    jobs = load_jobs(parse_in_workspace(NightlyJob, [*flags[:2], "--publish.table", "iceberg"]))
    assert jobs.recommend.publish.table == "iceberg"
    with pytest.raises(InputError, match=r"Found --publish.table iceberg for the night, and man"):
        load_jobs(parse_in_workspace(NightlyJob, [*flags, "--publish.table", "iceberg"]))


def test_job_without_such_keys_does_not_read_the_file(shop: str) -> None:
    Path(shop, WORKSPACE_FILE).write_text("}{")
    assert parse_in_workspace(RollbackJob, ["--workspace", shop]).workspace == shop
    with pytest.raises(InputError, match=r"visrec.yaml is not valid YAML"):
        parse_in_workspace(TrainJob, ["--workspace", shop])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_patern: x\n", r"the key image_patern in .*; did you mean image_pattern\? Expected"),
        ("train: {epochs: 3}\n", r"train.epochs in .*, which a workspace does not keep. Expected"),
        ("interactions: {as_of: 2026-11-20}\n", r"key interactions.as_of in .* does not keep"),
        ("interactions: orders.csv\n", r"interactions: orders.csv in .*; expected keys below it"),
        ("interactions: {min_rating: many}\n",
         r"--interactions.min_rating many; .* \(interactions.min_rating is set in .*yaml\.\)"),
        ("publish: {table: dleta}\n", r"did you mean delta\? \(publish.table is set in .*yaml\.\)"),
        ("interactions: {min_rating: 1}\nrules: {cap: 0}\n",
         r"--rules.cap 0; .* \(rules.cap is set in .*yaml\.\)"),
        ("- images\n", r"Found \['images'\] in .*visrec.yaml; expected keys with values"),
    ],
)  # fmt: skip
def test_wrong_file_is_refused_with_its_name(shop: str, text: str, message: str) -> None:
    Path(shop, WORKSPACE_FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        parse_in_workspace(RecommendJob, ["--workspace", shop])


def test_file_without_a_key_is_as_none(shop: str) -> None:
    Path(shop, WORKSPACE_FILE).write_text("# images: x\npublish:\n  # table: delta\n")
    assert parse_in_workspace(TrainJob, ["--workspace", shop]) == TrainJob(workspace=shop)


def test_help_needs_no_workspace(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_in_workspace(TrainJob, ["--workspace", "s3://nowhere-at-all/x", "--help"])
    assert "--item_features" in capsys.readouterr().out


def test_defaults_of_the_keys_are_those_of_the_jobs() -> None:
    # Otherwise a night would set a key that nobody has set.
    kept = WorkspaceKeys()
    for job in (ExtractJob, TrainJob, EvaluateJob, RecommendJob, ExplainJob):
        for name in vars(kept).keys() & vars(job()).keys():
            assert getattr(job(), name) == getattr(kept, name), f"{name} of {job.__name__}"
