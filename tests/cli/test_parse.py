"""Flags and YAML files to configurations."""

from pathlib import Path

import pytest

from visrec.cli.job import JobConfig
from visrec.cli.parse import parse, parse_in_workspace
from visrec.errors import InputError
from visrec.models import MODELS
from visrec.models.vbpr import VbprConfig
from visrec.models.visrank import VisRankConfig
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.export import ExportJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.nightly import NightlyJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.pipelines.tune import TuneJob, as_yaml
from visrec.training.fit import default_train_config
from visrec.training.loop import TrainConfig


@pytest.mark.parametrize("job", [ExtractJob, TrainJob, RecommendJob, EvaluateJob])
def test_no_arguments_give_the_defaults(job: type[JobConfig]) -> None:
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
def test_local_and_debug_need_no_value(arguments: list[str], local: bool, debug: bool) -> None:
    config = parse(RecommendJob, arguments)
    assert (config.local, config.debug) == (local, debug)


def test_list_is_expected_as_one_and_its_passwords_are_not_shown() -> None:
    assert parse(NightlyJob, ["--export_to", '["lists.csv"]']).export_to == ["lists.csv"]
    flags = ["--export-to+", "lists.csv", "--export-to+", "redis://x"]
    assert parse(NightlyJob, flags).export_to == ["lists.csv", "redis://x"]
    with pytest.raises(InputError, match=r"--export_to redis://\*\*\*@x; expected a list, such as"):
        parse(NightlyJob, ["--export_to", "redis://:s3cr3t@x"])


def test_switch_of_a_job_needs_no_value() -> None:
    assert parse(ExportJob, ["--only-changed", "--to", "lists.csv"]).only_changed
    assert parse(ExportJob, ["--to", "lists.csv", "--only_changed"]).only_changed
    assert not parse(ExportJob, ["--to", "lists.csv", "--only_changed", "false"]).only_changed
    assert not parse(NightlyJob, ["--evaluate=false", "--train-now"]).evaluate


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
def test_dashes_in_the_name_of_a_flag_become_underscores(
    job: type[JobConfig], dashes: list[str], underscores: list[str]
) -> None:
    config = parse(job, dashes)
    assert config == parse(job, underscores)
    assert config != job()


def test_dashes_in_values_are_kept(tmp_path: Path) -> None:
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
    config = parse(NightlyJob, ["--config", str(path), "--recommend_config", "a-b.yaml"])
    assert (config.as_of, config.workspace) == ("2026-11-22", "s3://a-b/c-d")
    assert config.recommend_config == "a-b.yaml"


def test_flags_override_yaml_and_yaml_overrides_defaults(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("workspace: s3://a/b\ntrain: {epochs: 3, seed: 4}\nmodel: {item_width: 9}\n")
    config = parse(TrainJob, ["--config", str(path), "--train.seed", "5"])
    assert (config.workspace, config.train.epochs, config.train.seed) == ("s3://a/b", 3, 5)
    assert config.model.config.item_width == 9
    assert config.train.batch_size == TrainJob().train.batch_size


def test_model_name_decides_the_keys_below_model(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("model: {name: visrank, mode: mean}\n")
    config = parse(TrainJob, ["--config", str(path)])
    assert (config.model.name, config.model.config) == ("visrank", VisRankConfig(mode="mean"))
    with pytest.raises(InputError, match="item_width"):
        parse(TrainJob, [f"--config={path}", "--model.item_width", "3"])
    with pytest.raises(InputError, match="expected one of bpr_mf, convncf"):
        parse(TrainJob, ["--model.name=nothing"])


def test_dotted_model_name_in_yaml_decides_the_keys_below_model(tmp_path: Path) -> None:
    given = tmp_path / "train.yaml"
    given.write_text("model.name: vbpr\nmodel.width: 7\n")
    config = parse(TrainJob, ["--config", str(given)])
    assert (config.model.name, config.model.config) == ("vbpr", VbprConfig(width=7))


@pytest.mark.parametrize(
    "text", ["", "# k: 5\n", "gates:\n", "gates:\n  # min_lists: 1\nrules: {}\n"]
)
def test_yaml_with_all_keys_commented_out_gives_the_defaults(tmp_path: Path, text: str) -> None:
    given = tmp_path / "recommend.yaml"
    given.write_text(text)
    assert parse(RecommendJob, ["--config", str(given)]) == RecommendJob()
    assert parse(RecommendJob, [f"--config={given}", "--k", "7"]) == RecommendJob(k=7)
    given.write_text(f"k: 5\n{text}")
    assert parse(RecommendJob, ["--config", str(given)]) == RecommendJob(k=5)


@pytest.mark.parametrize("value", ["[]", "0", "''", "false", "long"])
def test_value_for_a_group_of_keys_is_refused(tmp_path: Path, value: str) -> None:
    given = tmp_path / "recommend.yaml"
    given.write_text(f"interactions: {value}\n")
    with pytest.raises(InputError, match=r"expected keys below it, such as interactions\.path"):
        parse(RecommendJob, ["--config", str(given)])
    with pytest.raises(
        InputError, match=r"Found --model vbpr; expected keys below it, such as --model\.name"
    ):
        parse(TrainJob, ["--model", "vbpr"])


def test_defaults_of_a_model_are_overridden_by_flags() -> None:
    default = MODELS["bpr_mf"].default_overrides.learning_rate
    assert default != TrainConfig().learning_rate
    assert parse(TrainJob, ["--model.name", "bpr_mf"]).train.learning_rate == default
    flags = ["--train.learning_rate", "0.5", "--model.name", "bpr_mf"]
    assert parse(TrainJob, flags).train.learning_rate == 0.5
    assert parse(TrainJob, []).train == default_train_config("hybrid")
    assert parse(TrainJob, ["--model.name", "curatornet"]).train == TrainConfig()


def test_key_named_like_a_method_of_a_namespace_is_read() -> None:
    assert parse(RecommendJob, ["--items", "a.parquet"]).items == "a.parquet"


def test_invalid_yaml_is_refused_with_the_path(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("train: [1, 2\nmodel: x")
    with pytest.raises(InputError, match=r"bad\.yaml is not valid YAML"):
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
def test_misspelt_flag_is_refused_with_a_suggestion(
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
def test_misspelt_yaml_key_is_refused_with_a_suggestion(
    tmp_path: Path, text: str, meant: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        parse(TrainJob, ["--config", str(path)])
    assert f"did you mean {meant}?" in str(caught.value)


@pytest.mark.parametrize("text", ["workspace: null", "workspace:", "train: {epochs: null}"])
def test_yaml_key_without_a_value_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"items: null\n{text}")
    with pytest.raises(InputError, match=r"without a value in .*job\.yaml; expected (text|an int)"):
        parse(TrainJob, ["--config", str(path)])


def test_flag_unlike_any_key_is_refused_without_a_suggestion() -> None:
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
def test_value_of_the_wrong_type_is_refused_with_the_expected_type(
    flags: list[str], expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(TrainJob, flags)
    assert expected in str(caught.value)
    assert "<class" not in str(caught.value)


def test_entries_of_a_mapping_are_accepted_as_its_value(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("sampling: {guidelines: {random: 1.0}}\n")
    assert parse(TrainJob, ["--config", str(path)]).sampling.guidelines == {"random": 1.0}


def test_help_keeps_the_line_breaks_of_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(TuneJob, ["--help"])
    assert "\nvisrec tune --local\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/b", ".x", "a b", "\u00e9", "x\n"])
def test_name_that_is_no_plain_folder_name_is_refused(name: str) -> None:
    for job, key in ((TrainJob, "model_id"), (RecommendJob, "run_id"), (TuneJob, "sweep")):
        with pytest.raises(InputError) as caught:
            parse(job, [f"--{key}={name}"])
        assert f"Found --{key} {name!r}; expected letters, digits" in str(caught.value)


def test_job_knows_the_keys_that_were_given(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("rules: {cap: 3}\nexport_to: [lists.csv]\n")
    flags = ["--config", str(path), "--local", "--notify", "{url: null}", "--export-to+", "x.csv"]
    given = parse(NightlyJob, [*flags, "--interactions.columns.user_id=email"]).given_keys
    keys = {"rules.cap", "export_to", "config", "local", "notify.url"}
    assert given == keys | {"interactions.columns.user_id"}
    assert parse(NightlyJob, []).given_keys == NightlyJob().given_keys == frozenset()


@pytest.mark.parametrize("flags", [["--model", "{name: vbpr, width: 3}"], ["--model={name: vbpr}"]])
def test_group_of_flags_names_the_model(flags: list[str]) -> None:
    job = parse(TrainJob, [*flags, "--model.visual_width", "5"])
    assert isinstance(job.model.config, MODELS["vbpr"].Config)
    assert (job.model.name, job.model.config.visual_width) == ("vbpr", 5)
    assert "model.name" in job.given_keys
    assert job.model.config.width == (3 if "width" in flags[-1] else 64)


def test_unknown_key_in_a_group_of_flags_is_refused_with_a_suggestion() -> None:
    with pytest.raises(InputError, match=r"Found --rules\.capp; did you mean --rules\.cap\?"):
        parse(RecommendJob, ["--rules", "{capp: 3}"])
    with pytest.raises(InputError, match="found cap for the second time, after line 1"):
        parse(RecommendJob, ["--rules={cap: 3, cap: 4}"])


def test_group_of_flags_keeps_the_other_keys_of_the_group() -> None:
    rules = parse(RecommendJob, ["--rules.min_stock", "2", "--rules", "{cap: 3}"]).rules
    assert (rules.min_stock, rules.cap) == (2, 3)


@pytest.mark.parametrize("nested", ["{model: {width: 8}, model.name: vbpr}", "model.name: vbpr"])
def test_model_name_is_found_beside_the_section(tmp_path: Path, nested: str) -> None:
    (tmp_path / "job.yaml").write_text(nested)
    assert parse(TrainJob, ["--config", str(tmp_path / "job.yaml")]).model.name == "vbpr"


def test_section_that_stands_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    text = "rules:\n  cap: 1\nitems: a.csv\nrules:\n  min_stock: 1\n"
    for name in ("job.yaml", "visrec.yaml"):
        path = tmp_path / name
        path.write_text(text)
        found = rf"{name} is not valid YAML: found rules .* after line 1; .*\(line 4, column 1\)"
        with pytest.raises(InputError, match=found):
            parse_in_workspace(RecommendJob, ["--workspace", str(tmp_path), "--config", str(path)])
        path.unlink()
        with pytest.raises(InputError, match="cannot be read"):
            parse(RecommendJob, ["--config", str(path)])


@pytest.mark.parametrize("name", ["1e5", "1234e56", "0012", "12:30:45", "true", "nan"])
def test_quoted_text_in_yaml_stays_text(tmp_path: Path, name: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"model_id: '{name}'\nitems_columns: {{item_id: '{name}'}}\n")
    job = parse(TrainJob, ["--config", str(path)])
    assert (job.model_id, job.items_columns) == (name, {"item_id": name})
    path.write_text(as_yaml(job))  # as the best configuration of a sweep
    assert parse(TrainJob, ["--config", str(path)]) == job


@pytest.mark.parametrize("name", ["job.yaml", "visrec.yaml"])
@pytest.mark.parametrize(
    "text",
    [
        "interactions.columns.user_id: buyer\n",
        "interactions: {columns.user_id: buyer}\n",
        "interactions.columns: {user_id: buyer}\n",
    ],
)
def test_dotted_entry_of_a_mapping_is_read_from_yaml(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    flags = ["--workspace", str(tmp_path), "--interactions.columns.item_id", "sku"]
    flags += [] if name == "visrec.yaml" else ["--config", str(tmp_path / name)]
    columns = parse_in_workspace(TrainJob, flags).interactions.columns
    assert columns == {"user_id": "buyer", "item_id": "sku"}


def test_list_for_a_key_with_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("models: [vbpr, ease]\n")
    expected = r"Found models: \['vbpr', 'ease'\] in .*; expected text or null, and no list"
    with pytest.raises(InputError, match=expected):
        parse(EvaluateJob, ["--config", str(tmp_path / "job.yaml")])
