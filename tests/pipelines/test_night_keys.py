"""Keys that a night sets once for all of its steps."""

import dataclasses
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from visrec.cli.parse import parse, parse_in_workspace
from visrec.cli.summary import Summary
from visrec.errors import GateError, InputError
from visrec.pipelines import demo, extract_features
from visrec.pipelines.demo import DemoJob
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.night_jobs import naming_config_file
from visrec.pipelines.night_keys import NightKeys
from visrec.pipelines.nightly import NightlyJob, Steps, load_jobs
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.sources.interactions import InteractionsConfig

COLUMNS = {"user_id": "customer_email", "item_id": "sku", "timestamp": "ordered_at"}
NIGHT = NightlyJob(
    as_of="2026-11-20",
    interactions=InteractionsConfig(path="orders.csv", columns=COLUMNS, min_rating=2.0),
    items="catalogue.csv",
    items_columns={"item_id": "sku"},
    users_columns={"user_id": "email"},
)


def night(tmp_path: Path, train: str) -> NightlyJob:
    (tmp_path / "train.yaml").write_text(train)
    return NightlyJob(**{**vars(NIGHT), "train_config": str(tmp_path / "train.yaml")})


def test_steps_take_the_keys_of_the_night() -> None:
    jobs = load_jobs(NIGHT)
    for job in (jobs.train, jobs.evaluate, jobs.recommend):
        assert job.interactions == NIGHT.interactions
        assert (job.items, job.items_columns) == (NIGHT.items, NIGHT.items_columns)
    assert jobs.recommend.users_columns == NIGHT.users_columns


@pytest.mark.parametrize("job", [TrainJob, EvaluateJob, RecommendJob])
def test_every_shared_key_of_a_step_is_one_of_the_night(job: Any) -> None:
    names = {field.name for field in fields(job)}
    groups = ("interactions", "items", "users", "rules", "publish")
    shared = {name for name in names if name.startswith(groups)}
    assert shared <= {field.name for field in fields(NightKeys)}


def test_keys_of_a_step_that_the_night_does_not_set_stay(tmp_path: Path) -> None:
    jobs = load_jobs(night(tmp_path, "interactions: {max_incomplete: 0.5, path: orders.csv}\n"))
    assert jobs.train.interactions.max_incomplete == 0.5
    assert jobs.train.interactions.columns == COLUMNS


def test_different_values_are_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_jobs(night(tmp_path, "interactions: {columns: {user_id: email}}\n"))
    message = str(caught.value)
    assert "--interactions.columns" in message
    assert f"{{'user_id': 'email'}} in {tmp_path / 'train.yaml'}" in message
    with pytest.raises(InputError, match=r"Found --items catalogue.csv for the night, and x in"):
        load_jobs(night(tmp_path, "items: x\n"))


@pytest.mark.parametrize("flags", [["--rules.cap", "3"], ["--rules", "{cap: 3}"], ["--config"]])
def test_flag_with_the_value_of_the_workspace_is_not_lost_to_a_file(
    tmp_path: Path, flags: list[str]
) -> None:
    (tmp_path / "visrec.yaml").write_text("rules: {cap: 3, cap_by: artist}\n")
    (tmp_path / "night.yaml").write_text("rules: {cap: 3}\n")
    (tmp_path / "recommend.yaml").write_text("rules: {cap: 5}\n")
    step = ["--workspace", str(tmp_path), "--recommend_config", str(tmp_path / "recommend.yaml")]
    flags = [*flags, str(tmp_path / "night.yaml")] if flags == ["--config"] else flags
    with pytest.raises(InputError, match=r"Found --rules\.cap 3 for the night, and 5 in .*recomm"):
        load_jobs(parse_in_workspace(NightlyJob, [*step, *flags]))
    # What only the workspace says is overridden by the file of a step.
    assert load_jobs(parse_in_workspace(NightlyJob, step)).recommend.rules.cap == 5


def test_default_that_the_file_of_a_step_states_is_not_lost_to_a_flag(tmp_path: Path) -> None:
    flags = ["--workspace", str(tmp_path), "--train_config", str(tmp_path / "train.yaml")]
    default = str(InteractionsConfig().max_incomplete)
    (tmp_path / "train.yaml").write_text(f"interactions: {{max_incomplete: {default}}}\n")
    with pytest.raises(InputError, match=r"Found --interactions\.max_incomplete 0\.75 for"):
        load_jobs(parse(NightlyJob, [*flags, "--interactions.max_incomplete", "0.75"]))
    same = parse(NightlyJob, [*flags, "--interactions.max_incomplete", default])
    assert load_jobs(same).train.interactions == InteractionsConfig()


def test_cutoff_of_a_night_is_its_date() -> None:
    with pytest.raises(InputError, match=r"--interactions.as_of 2026-11-20; expected --as_of"):
        NightlyJob(as_of="2026-11-20", interactions=InteractionsConfig(as_of="2026-11-20"))


@pytest.mark.parametrize(
    ("key", "end"),
    [
        ("incremental", "`visrec recommend`; expected it in the YAML file of --recommend_config."),
        ("model.width", "`visrec train`; expected it in the YAML file of --train_config."),
        ("gates.min_gain", "--recommend_config."),
        ("resources.workers", "--extract_config or --train_config or --evaluate_config or --reco"),
    ],
)
def test_key_of_a_step_is_told_where_it_belongs(tmp_path: Path, key: str, end: str) -> None:
    with pytest.raises(InputError, match=f"Found --{key}, which is a key of .*{end}"):
        parse(NightlyJob, [f"--{key}", "3"])
    (tmp_path / "night.yaml").write_text(f"{key}: 3\n")
    with pytest.raises(InputError, match=f"Found the key {key} in .*, which is a key of .*{end}"):
        parse(NightlyJob, ["--config", str(tmp_path / "night.yaml")])


def test_key_of_the_night_itself_is_not_sent_to_the_file_of_a_step() -> None:
    with pytest.raises(InputError) as caught, naming_config_file("recommend"):
        raise InputError("Found --items_columns {item_id: sku}, but there is no column sku.")
    assert "belong in" not in str(caught.value)
    with (
        pytest.raises(InputError, match="of `visrec recommend` belong in"),
        naming_config_file("recommend"),
    ):
        raise InputError("Found --items x and --gates.min_lists 3.")


def test_threshold_of_a_gate_is_sent_to_the_file_of_the_step() -> None:
    forced = "publish with --force_publish 'the reason'."
    with pytest.raises(GateError) as caught, naming_config_file("recommend"):
        raise GateError(
            f"overlap: found 0.0, expected at least 0.05 (--gates.min_overlap). {forced}"
        )
    assert str(caught.value).endswith(
        f"{forced} (Keys of `visrec recommend` belong in the YAML file of --recommend_config.)"
    )
    with pytest.raises(GateError, match=r"'the reason'\.$"), naming_config_file("recommend"):
        raise GateError(f"lists with an item twice: found 1, expected 0. Or {forced}")


def test_night_shows_why_pictures_were_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    def extract(_: object, summary: Summary) -> None:
        summary.rows = {"rejected": 1, "rejected by reason": {"empty": 1}}

    monkeypatch.setattr(extract_features, "main", extract)
    steps = Steps(NIGHT, load_jobs(NIGHT), Summary("nightly"))
    steps.extract()
    assert steps.rows == {"rejected": 1, "rejected by reason": {"empty": 1}}


def test_demo_evaluates_before_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the gates compare the lists, and nobody is told to run what the demo runs anyway."""
    ran: list[str] = []
    monkeypatch.setattr(demo, "_run", lambda _main, _job, _summary, name: ran.append(name))
    demo.main(DemoJob(), Summary("demo"))
    assert ran.index("evaluate") < ran.index("recommend")


@pytest.mark.parametrize(
    ("step", "text", "key"),
    [
        ("train", "model_id: mine\n", "model_id"),
        ("train", "interactions: {as_of: 2026-01-01}\n", "interactions.as_of"),
        ("evaluate", "models: vbpr,multivae\n", "models"),
        ("evaluate", "model: models/x\n", "model"),
        ("evaluate", "evaluation: elsewhere\n", "evaluation"),
        ("evaluate", "interactions: {as_of: 2026-01-01}\n", "interactions.as_of"),
        ("recommend", "run_id: mine\n", "run_id"),
        ("recommend", "model: models/x\n", "model"),
        ("recommend", "evaluation: elsewhere\n", "evaluation"),
        ("recommend", "interactions: {as_of: 2026-01-01}\n", "interactions.as_of"),
    ],
)
def test_key_that_the_night_sets_itself_is_refused_in_the_file_of_a_step(
    tmp_path: Path, step: str, text: str, key: str
) -> None:
    path = tmp_path / "step.yaml"
    path.write_text(text)
    flags = ["--workspace", str(tmp_path), f"--{step}_config", str(path)]
    with pytest.raises(InputError, match=rf"Found {key} in {path}; expected it to be left out: "):
        load_jobs(parse(NightlyJob, flags))
    path.write_text(re.sub(r": [^{}]+(?=[}\n])", ": null", text))  # as the best.yaml of a sweep
    load_jobs(parse(NightlyJob, flags))


def test_night_that_does_not_train_serves_the_model_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "recommend.yaml"
    path.write_text("model: models/x\nevaluation: elsewhere\n")
    flags = ["--workspace", str(tmp_path), "--recommend_config", str(path), "--train_every", "0"]
    job = load_jobs(parse(NightlyJob, flags)).recommend
    assert (job.model, job.evaluation) == ("models/x", "elsewhere")


def test_reason_to_publish_may_be_in_the_file_of_recommend(tmp_path: Path) -> None:
    path = tmp_path / "recommend.yaml"
    path.write_text("force_publish: the shop moves\n")
    flags = ["--workspace", str(tmp_path), "--recommend_config", str(path)]
    assert load_jobs(parse(NightlyJob, flags)).recommend.force_publish == "the shop moves"
    with pytest.raises(InputError, match="Found --force_publish another reason for the night"):
        load_jobs(parse(NightlyJob, [*flags, "--force_publish", "another reason"]))
    flags = ["--workspace", str(tmp_path), "--force_publish", "a reason"]
    assert load_jobs(parse(NightlyJob, flags)).recommend.force_publish == "a reason"


def test_ablation_of_a_model_without_triples_is_refused_before_the_night(tmp_path: Path) -> None:
    path = tmp_path / "evaluate.yaml"
    path.write_text("ablate: true\n")
    flags = ["--workspace", str(tmp_path), "--evaluate_config", str(path)]
    jobs = load_jobs(parse(NightlyJob, flags))
    with pytest.raises(InputError, match="Found a hybrid as the model of the night; expected a"):
        jobs.require_evaluation()
    vbpr = dataclasses.replace(jobs.train, model=parse(TrainJob, ["--model.name", "vbpr"]).model)
    dataclasses.replace(jobs, train=vbpr).require_evaluation()
