"""`visrec evaluate --train_config`: what that file says counts, or it is refused before anything
runs."""

from pathlib import Path

import pytest

from visrec.cli.parse import parse, parse_in_workspace
from visrec.errors import InputError
from visrec.pipelines.evaluate import EvaluateJob, _train_job, _with_training_data, check_training


def evaluation(tmp_path: Path, text: str, *flags: str) -> EvaluateJob:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    given = ["--workspace", str(tmp_path), "--train_config", str(path), *flags]
    return parse_in_workspace(EvaluateJob, given)


def test_data_of_the_training_count_for_the_evaluation_too(tmp_path: Path) -> None:
    (tmp_path / "visrec.yaml").write_text("items: of_workspace.csv\nfeatures: of_workspace\n")
    text = "interactions: {min_rating: 4}\nfeatures: elsewhere\nsplit: {by: item}\n"
    config = evaluation(tmp_path, text, "--models", "vbpr", "--items_columns.item_id", "sku")
    job = check_training(config)
    assert (job.model.name, job.split.by) == ("vbpr", "item")
    for each in (job, _with_training_data(config, job)):
        assert each.interactions.min_rating == 4
        assert (each.features, each.items) == ("elsewhere", "of_workspace.csv")
        assert each.items_columns == {"item_id": "sku"}


def test_different_values_of_the_evaluation_and_its_training_are_refused(tmp_path: Path) -> None:
    text = "interactions: {min_rating: 4}\n"
    config = evaluation(tmp_path, text, "--models", "vbpr", "--interactions.min_rating", "3")
    expected = r"--interactions\.min_rating 3\.0 for the evaluation, and 4\.0 in .*train\.yaml"
    with pytest.raises(InputError, match=expected):
        check_training(config)


@pytest.mark.parametrize(
    ("models", "text", "found"),
    [
        ("vbpr,bpr_mf", "model_id: mine\n", "Found model_id in"),
        ("vbpr", "model: {name: bpr_mf, width: 8}\n", "Found model.name bpr_mf in"),
        # The second one would fail after the first one has been trained.
        ("vbpr,bpr_mf", "model: {name: vbpr, visual_width: 8}\n", "Found the key model.visual_w"),
    ],
)
def test_file_that_the_models_cannot_follow_is_refused(
    tmp_path: Path, models: str, text: str, found: str
) -> None:
    with pytest.raises(InputError, match=found):
        check_training(evaluation(tmp_path, text, "--models", models))


@pytest.mark.parametrize("text", ["train: {epochs: 3}", "model_id: mine", "split: {by: item}"])
def test_what_variants_have_from_their_model_is_refused(tmp_path: Path, text: str) -> None:
    key = text.partition(":")[0]
    with pytest.raises(InputError, match=f"Found {key} in .*: variants of --ablate take it from"):
        check_training(evaluation(tmp_path, text, "--ablate"))
    check_training(evaluation(tmp_path, "resources: {workers: 2}\n", "--ablate"))


def test_keys_of_one_model_need_no_name_of_it(tmp_path: Path) -> None:
    config = evaluation(tmp_path, "model: {visual_width: 8}\n", "--models", "vbpr")
    assert check_training(config).model.config.visual_width == 8
    assert _train_job(parse(EvaluateJob, []), []).interactions == EvaluateJob().interactions
