"""A job with a misspelt path fails before Ray starts and creates nothing."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from visrec.cli import launch
from visrec.pipelines import (
    evaluate,
    extract_features,
    import_features,
    nightly,
    recommend_job,
    train,
    tune,
)
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.import_features import ImportFeaturesJob
from visrec.pipelines.nightly import NightlyJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.pipelines.tune import TuneJob

JOBS: dict[str, tuple[Any, Any, tuple[str, ...], str]] = {
    "extract": (extract_features, ExtractJob, (), "--images"),
    "import": (import_features, ImportFeaturesJob, ("--backbone", "clip"), "--table"),
    "train": (train, TrainJob, (), "--features"),
    "tune": (tune, TuneJob, (), "--features"),
    "recommend": (recommend_job, RecommendJob, (), "--features"),
    "evaluate": (evaluate, EvaluateJob, (), "--features"),
    "nightly": (nightly, NightlyJob, ("--as_of", "2026-11-20"), "--images"),
}


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str]]:
    """Runs a job from its command line; fails if it starts; gives exit code and standard error."""

    def started(*_: object) -> None:
        raise AssertionError("Ray or the job was started")

    monkeypatch.setattr(launch, "ensure_ray", started)

    def run_job(job: str, *flags: str) -> tuple[Any, str]:
        module, job_type, required, _ = JOBS[job]
        monkeypatch.setattr(sys, "argv", [job, "--local", *required, *flags])
        with pytest.raises(SystemExit) as end:
            launch.launch(started, job_type, check=module.check)
        return end.value.code, capsys.readouterr().err

    return run_job


@pytest.mark.parametrize("job", JOBS)
def test_misspelt_workspace_is_refused_and_not_created(
    run: Callable[..., tuple[Any, str]], tmp_path: Path, job: str
) -> None:
    code, text = run(job, "--workspace", str(tmp_path / "shpo"))
    assert code == 2
    assert str(tmp_path / "shpo") in text
    assert JOBS[job][3] in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("job", ["extract", "nightly"])
def test_texts_need_an_items_table_and_no_pictures(
    run: Callable[..., tuple[Any, str]], tmp_path: Path, job: str
) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "extract.yaml").write_text("text: {model: some/model}\n")
    flag = "--extract_config" if job == "nightly" else "--config"
    workspace = ("--workspace", str(tmp_path / "shop"))
    code, text = run(job, *workspace, flag, str(tmp_path / "extract.yaml"))
    assert code == 2
    assert "--items" in text
    assert f"Found no items in {tmp_path / 'shop'}" in text


@pytest.mark.parametrize(("item_features", "folder"), [("text", "text_features"), ("both", "")])
def test_model_of_texts_needs_their_features(
    run: Callable[..., tuple[Any, str]], tmp_path: Path, item_features: str, folder: str
) -> None:
    flags = ("--workspace", str(tmp_path), "--item_features", item_features)
    code, text = run("train", *flags)
    assert code == 2
    assert f"{tmp_path}/{folder or 'features'}" in text


@pytest.mark.parametrize("content", [None, "train.learning_rat: {choice: [0.1]}\n"])
def test_invalid_search_space_is_refused_before_ray_starts(
    run: Callable[..., tuple[Any, str]], tmp_path: Path, content: str | None
) -> None:
    space = tmp_path / "space.yaml"
    if content is not None:
        space.write_text(content)
    code, text = run("tune", "--workspace", str(tmp_path / "shop"), "--space", str(space))
    assert code == 2
    assert str(space) in text or "train.learning_rat" in text
    assert not (tmp_path / "shop").exists()


@pytest.mark.parametrize(
    ("workspace", "word"),
    [("s3:/shop/w", "did you mean s3://shop/w?"), ("s3://shop//w", "s3://shop/w"),
     ("gs://shop/w", "s3://bucket/prefix"), ("", "expected a local path")],
)  # fmt: skip
def test_misspelt_s3_address_is_refused(
    run: Callable[..., tuple[Any, str]], workspace: str, word: str
) -> None:
    code, text = run("train", "--workspace", workspace)
    assert code == 2
    assert word in text


@pytest.mark.parametrize("job", ["train", "evaluate", "recommend", "tune"])
def test_misspelt_table_is_refused_before_ray_starts(
    run: Callable[..., tuple[Any, str]], featured: Path, job: str
) -> None:
    before = {path.name for path in featured.iterdir()}
    log = str(featured / "interaktions.parquet")
    code, text = run(job, "--workspace", str(featured), "--interactions.path", log)
    assert code == 2
    assert log in text
    assert "--interactions.path" in text
    assert {path.name for path in featured.iterdir()} == before


def test_misspelt_model_or_training_of_an_evaluation_is_refused_before_ray_starts(
    run: Callable[..., tuple[Any, str]], featured: Path
) -> None:
    for flag in ("--models", "--train_config"):
        code, text = run("evaluate", "--workspace", str(featured), flag, str(featured / "gone"))
        assert code == 2
        assert str(featured / "gone") in text
