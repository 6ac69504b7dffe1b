"""Flags to configurations, and errors out of Ray back to their own."""

import dataclasses
import pickle
import sys
from pathlib import Path

import pytest
import ray

from visrec.cli.launch import JobConfig, Summary, launch, own_cause, parse
from visrec.errors import InputError, VisrecError
from visrec.models import MODELS
from visrec.models.vbpr import VbprConfig
from visrec.models.visrank import VisRankConfig
from visrec.pipelines import train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.nightly import NightlyJob
from visrec.pipelines.recommend import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.pipelines.tune import TuneJob
from visrec.text import width
from visrec.training.loop import TrainConfig


@pytest.mark.parametrize("job", [ExtractJob, TrainJob, RecommendJob, EvaluateJob])
def test_no_flags_give_the_defaults(job: type[JobConfig]) -> None:
    assert parse(job, []) == job()


@pytest.mark.parametrize(
    ("arguments", "local", "debug"),
    [
        (["--local"], True, False),
        (["--local", "--debug"], True, True),
        (["--local", "--workspace", "w"], True, False),
        (["--local", "false", "--debug=true"], False, True),
    ],
)
def test_switches_need_no_value(arguments: list[str], local: bool, debug: bool) -> None:
    config = parse(RecommendJob, arguments)
    assert (config.local, config.debug) == (local, debug)


@pytest.mark.parametrize(
    ("job", "dashes", "underscores"),
    [
        (NightlyJob, ["--as-of", "2026-11-22"], ["--as_of", "2026-11-22"]),
        (NightlyJob, ["--as-of=2026-11-22"], ["--as_of=2026-11-22"]),
        (NightlyJob, ["--force-publish=why not"], ["--force_publish=why not"]),
        (NightlyJob, ["--local", "--train-now", "true"], ["--local", "--train_now", "true"]),
        (NightlyJob, ["--exit-if-running", "3", "--local"], ["--exit_if_running=3", "--local"]),
        (TrainJob, ["--train.learning-rate", "0.5"], ["--train.learning_rate", "0.5"]),
        (TrainJob, ["--model.item-width=9"], ["--model.item_width=9"]),
        (RecommendJob, ["--gates.min-gain", "-0.5"], ["--gates.min_gain", "-0.5"]),
        (RecommendJob, ["--rules.cap-by=a-b", "--rules.cap=2"], ["--rules.cap_by=a-b",
                                                                 "--rules.cap=2"]),
    ],
)  # fmt: skip
def test_dashes_in_flags_are_underscores(
    job: type[JobConfig], dashes: list[str], underscores: list[str]
) -> None:
    config = parse(job, dashes)
    assert config == parse(job, underscores)
    assert config != job()


def test_dashes_in_values_stay(tmp_path: Path) -> None:
    def forced(*arguments: str) -> str | None:
        return parse(NightlyJob, arguments).force_publish

    assert forced("--force-publish=why not-now") == "why not-now"
    assert forced("--force-publish=a-b=c-d") == "a-b=c-d"
    assert forced("--force_publish=-half-closed") == "-half-closed"
    assert forced("--force_publish=--half-closed") == "--half-closed"
    assert parse(RecommendJob, ["--gates.min_gain", "-0.5"]).gates.min_gain == -0.5
    assert parse(RecommendJob, ["--gates.min_gain=-1e-3"]).gates.min_gain == -1e-3
    assert parse(RecommendJob, ["--workspace", "my-shop/a-b"]).workspace == "my-shop/a-b"
    path = tmp_path / "my-job.yaml"
    path.write_text("as_of: 2026-11-22\nworkspace: s3://a-b/c-d\n")
    config = parse(NightlyJob, ["--config", str(path), "--recommend", "a-b.yaml"])
    assert (config.as_of, config.workspace) == ("2026-11-22", "s3://a-b/c-d")
    assert config.recommend == "a-b.yaml"


def test_flags_go_before_yaml_and_yaml_before_defaults(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("workspace: s3://a/b\ntrain: {epochs: 3, seed: 4}\nmodel: {item_width: 9}\n")
    config = parse(TrainJob, ["--config", str(path), "--train.seed", "5"])
    assert (config.workspace, config.train.epochs, config.train.seed) == ("s3://a/b", 3, 5)
    assert config.model.config.item_width == 9
    assert config.train.batch_size == TrainJob().train.batch_size


def test_model_name_decides_which_keys_there_are(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: {name: visrank, mode: mean}\n")
    config = parse(TrainJob, ["--config", str(path)])
    assert (config.model.name, config.model.config) == ("visrank", VisRankConfig(mode="mean"))
    with pytest.raises(InputError, match="item_width"):
        parse(TrainJob, [f"--config={path}", "--model.item_width", "3"])
    with pytest.raises(InputError, match="expected one of bpr_mf, convncf"):
        parse(TrainJob, ["--model.name=nothing"])


def test_dotted_model_name_of_a_yaml_decides_too(tmp_path: Path) -> None:
    given = tmp_path / "train.yaml"
    given.write_text("model.name: vbpr\nmodel.width: 7\n")
    config = parse(TrainJob, ["--config", str(given)])
    assert (config.model.name, config.model.config) == ("vbpr", VbprConfig(width=7))


@pytest.mark.parametrize(
    "text", ["", "# k: 5\n", "gates:\n", "gates:\n  # max_repeats: 1\nrules: {}\n"]
)
def test_yaml_in_which_keys_are_commented_out_is_read(tmp_path: Path, text: str) -> None:
    given = tmp_path / "recommend.yaml"
    given.write_text(text)
    assert parse(RecommendJob, ["--config", str(given)]) == RecommendJob()
    assert parse(RecommendJob, [f"--config={given}", "--k", "7"]) == RecommendJob(k=7)
    given.write_text(f"k: 5\n{text}")
    assert parse(RecommendJob, ["--config", str(given)]) == RecommendJob(k=5)


@pytest.mark.parametrize("value", ["[]", "0", "''", "false", "long"])
def test_value_in_place_of_keys_is_refused(tmp_path: Path, value: str) -> None:
    given = tmp_path / "recommend.yaml"
    given.write_text(f"interactions: {value}\n")
    with pytest.raises(InputError, match=r"expected keys below it, as interactions\.path"):
        parse(RecommendJob, ["--config", str(given)])
    with pytest.raises(
        InputError, match=r"Found --model vbpr; expected keys below it, as --model\.name"
    ):
        parse(TrainJob, ["--model", "vbpr"])


def test_a_model_suggests_defaults_that_flags_override() -> None:
    suggested = MODELS["bpr_mf"].default_overrides["train.learning_rate"]
    assert suggested != TrainConfig().learning_rate
    assert parse(TrainJob, ["--model.name", "bpr_mf"]).train.learning_rate == suggested
    flags = ["--train.learning_rate", "0.5", "--model.name", "bpr_mf"]
    assert parse(TrainJob, flags).train.learning_rate == 0.5
    assert parse(TrainJob, []).train == TrainConfig()


def test_key_that_is_also_a_method_of_a_namespace_is_taken() -> None:
    assert parse(RecommendJob, ["--items", "a.parquet"]).items == "a.parquet"


def test_yaml_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: [1, 2\nmodel: x")
    with pytest.raises(InputError, match=r"bad\.yaml is no YAML that can be read"):
        parse(TrainJob, ["--config", str(bad)])
    for text, word in (
        ("model: curatornet\n", "model.name"), ("- a list\n", "keys"), ("train: 3\n", "below it"),
        ("config: x\n", "config"),
    ):  # fmt: skip
        bad.write_text(text)
        with pytest.raises(InputError, match=word):
            parse(TrainJob, ["--config", str(bad)])


@pytest.mark.parametrize(
    ("job", "flags", "meant"),
    [
        (TrainJob, ["--train.epcohs", "3"], "--train.epochs"),
        (TrainJob, ["--train.epo", "3"], "--train.epochs"),
        (TrainJob, ["--model.nam", "vbpr"], "--model.name"),
        (TrainJob, ["--model.nam=vbpr", "--help"], "--model.name"),
        (TrainJob, ["--epochs", "3"], "--train.epochs"),
        (TrainJob, ["epochs=3"], "--train.epochs"),
        (TrainJob, ["-workspace", "w"], "--workspace"),
        (TrainJob, ["--work", "w"], "--workspace"),
        (TrainJob, ["--loc"], "--local"),
        (TrainJob, ["--model.name", "vpbr"], "vbpr"),
        (TrainJob, ["--train.learningrate", "1"], "--train.learning_rate"),
        (RecommendJob, ["--gate.min_gain", "1"], "--gates.min_gain"),
        (RecommendJob, ["--layout", "nestd"], "nested"),
        (NightlyJob, ["--as-off", "2026-11-22"], "--as_of"),
    ],
)
def test_misspelt_key_is_refused_with_the_one_that_was_meant(
    job: type[JobConfig], flags: list[str], meant: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(job, flags)
    assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("train: {epcohs: 3}", "train.epochs"), ("train.epo: 3", "train.epochs"),
     ("trian: {epochs: 3}", "train.epochs"), ("model: {nam: vbpr}", "model.name"),
     ("model: {name: vpbr}", "vbpr"), ("lokal: true", "local")],
)  # fmt: skip
def test_misspelt_key_of_a_yaml_is_refused_with_the_one_that_was_meant(
    tmp_path: Path, text: str, meant: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse(TrainJob, ["--config", str(path)])
    assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize("text", ["workspace: null", "workspace:", "train: {epochs: null}"])
def test_key_without_a_value_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"items: null\n{text}")
    with pytest.raises(InputError, match=r"without a value in .*job\.yaml; expected (text|an int)"):
        parse(TrainJob, ["--config", str(path)])


def test_key_unlike_any_other_is_refused_without_a_guess() -> None:
    with pytest.raises(
        InputError, match=r"^Found --train\.scheduler, which is not a key"
    ) as caught:
        parse(TrainJob, ["--train.scheduler", "cosine"])
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--train.epochs", "many"], "--train.epochs many; expected an integer"),
     (["--train.learning_rate", "fast"], "expected a number"),
     (["--split.test", "maybe"], "expected true or false"),
     (["--split.test="], "--split.test ''; expected true or false"),
     (["--resources.workers"], "--resources.workers")],
)  # fmt: skip
def test_value_of_another_type_is_named_with_what_is_expected(
    flags: list[str], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(TrainJob, flags)
    assert expected in str(caught.value)
    assert "<class" not in str(caught.value)


def test_entries_of_a_mapping_are_no_keys_of_the_job(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("sampling: {guidelines: {random: 1.0}}\n")
    assert parse(TrainJob, ["--config", str(path)]).sampling.guidelines == {"random": 1.0}


def test_a_table_may_be_a_folder(tmp_path: Path) -> None:
    job = RecommendJob(workspace=str(tmp_path))
    folder = tmp_path / "items.parquet"
    assert job.resolve_if_exists(None, "items.parquet") is None
    folder.mkdir()
    assert job.resolve_if_exists(None, "items.parquet") is None
    (folder / "part-0.parquet").touch()
    assert job.resolve_if_exists(None, "items.parquet") == str(folder)
    assert job.resolve_if_exists("elsewhere", "items.parquet") == "elsewhere"


def test_places_are_below_the_workspace_unless_given(tmp_path: Path) -> None:
    config = JobConfig(workspace=f"{tmp_path}/")
    assert config.resolve(None, "features") == f"{tmp_path}/features"
    assert config.resolve("s3://x/y", "features") == "s3://x/y"
    assert config.resolve_if_exists(None, "items.parquet") is None
    assert config.resolve_if_exists("given", "items.parquet") == "given"
    (tmp_path / "items.parquet").touch()
    assert config.resolve_if_exists(None, "items.parquet") == f"{tmp_path}/items.parquet"


@pytest.mark.parametrize("job", [ExtractJob, TrainJob, RecommendJob, EvaluateJob])
def test_configs_reach_workers(job: type[JobConfig]) -> None:
    config = job()
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert dataclasses.is_dataclass(config)


@pytest.mark.ray
def test_own_error_is_found_below_those_of_ray(ray_cluster: None) -> None:  # noqa: ARG001
    @ray.remote
    def inner() -> None:
        raise InputError("the one that counts")

    @ray.remote
    def outer() -> None:
        ray.get(inner.remote())

    for task in (inner, outer):
        with pytest.raises(InputError) as caught:
            ray.get(task.remote())
        cause = own_cause(caught.value)
        assert type(cause) is InputError
        assert str(cause) == "the one that counts"


def test_missing_cluster_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["jobs/train.py", "--workspace", "/nowhere"])
    with pytest.raises(SystemExit) as end:
        launch(train.main, TrainJob)
    assert end.value.code == 2
    text = capsys.readouterr().err.strip()
    assert text.startswith("train: Found no Ray cluster to join")
    assert "--local" in text
    assert "\n" not in text


def test_errors_of_others_have_no_own_cause() -> None:
    assert own_cause(ValueError("not ours")) is None
    error = ValueError("not ours")
    error.__context__ = error  # such loops exist, and must end
    assert own_cause(error) is None
    assert isinstance(own_cause(VisrecError("ours")), VisrecError)


def test_summary_shows_values_in_words_and_leaves_out_those_that_say_nothing() -> None:
    summary = Summary(
        "extract_features",
        rows={
            "rejected by reason": {},
            "files left out": {".txt": 0},
            "validation AUC": None,
            "nights removed": [],
            "rows left out": {"no feature": 12_000, "too_old": 1},
            "shards": ["a", "b"],
            "best": 0.00123456789,
            "rejected": 0,
        },
    )
    lines = [" ".join(line.split()) for line in summary.show().splitlines()[2:]]
    assert lines == [
        "rows left out 12,000 no feature, 1 too old",
        "shards a, b",
        "best 0.00123457",
        "rejected 0",
    ]


def test_columns_of_a_summary_hold_whatever_is_in_them() -> None:
    rows = {"short": "one", "validation AUC of the refit": "two", "模型的名字是这个": "three"}
    _, *lines = (
        Summary("x", rows={**rows, "hostile": "a\nb\x1b[2J\ud800"}).show().strip().splitlines()
    )
    assert len(lines) == 4
    starts = {
        width(line[: line.index(value)]) for line, value in zip(lines, rows.values(), strict=False)
    }
    assert len(starts) == 1
    assert lines[-1].endswith("a␊b␛[2J\ufffd")


def test_long_value_stays_beside_its_label_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visrec.cli.launch.terminal_columns", lambda: 60)
    path = "/" + "long/" * 20
    said = Summary("x", rows={"reasons": "too many of them " * 8, "at": path}).show()
    beside = [line for line in said.splitlines()[2:] if path not in line]
    assert len(beside) > 2
    assert all(len(line) <= 60 for line in beside)
    assert all(line.startswith(" " * 25) for line in beside[1:])
    assert path in said  # whole, to be copied


def test_help_keeps_the_lines_of_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(TuneJob, ["--help"])
    assert "\npython jobs/tune.py --local\n" in capsys.readouterr().out


def test_summary_adds_up_phases_and_worker_seconds() -> None:
    summary = Summary("train", rows={"items": 12_345})
    for _ in range(2):
        with summary.phase("fit"):
            pass
    summary.worked({"fit_s": 2.5, "rows": 7})
    assert summary.phases.keys() == {"fit"}
    assert summary.as_json()["worker_s"] == {"fit": 2.5}
    assert "12,345" in summary.show()


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", ".x", "a b", "\u00e9", "x\n"])
def test_name_that_would_lie_elsewhere_as_a_folder_is_refused(name: str) -> None:
    for job, key in ((TrainJob, "model_id"), (RecommendJob, "run_id"), (TuneJob, "name")):
        with pytest.raises(InputError) as caught:
            parse(job, [f"--{key}={name}"])
        assert f"Found --{key} {name!r}; expected letters, digits" in str(caught.value)
