"""Paths and copies of a job's configuration."""

import dataclasses
import pickle
from pathlib import Path

import pytest

from visrec.cli.job import JobConfig
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob


def test_optional_table_may_be_a_folder_of_files(tmp_path: Path) -> None:
    job = RecommendJob(workspace=str(tmp_path))
    folder = tmp_path / "items.parquet"
    assert job.find_table(None, "items", "items") is None
    folder.mkdir()
    assert job.find_table(None, "items", "items") is None
    (folder / "part-0.parquet").touch()
    assert job.find_table(None, "items", "items") == str(folder)
    assert job.find_table("elsewhere", "items", "items") == "elsewhere"


def test_paths_default_to_the_workspace(tmp_path: Path) -> None:
    config = JobConfig(workspace=f"{tmp_path}/")
    assert config.resolve(None, "features") == f"{tmp_path}/features"
    assert config.resolve("s3://x/y", "features") == "s3://x/y"
    assert config.resolve_file_if_exists(None, "items.parquet") is None
    assert config.resolve_file_if_exists("given", "items.parquet") == "given"
    (tmp_path / "items.parquet").touch()
    assert config.resolve_file_if_exists(None, "items.parquet") == f"{tmp_path}/items.parquet"


@pytest.mark.parametrize("job", [ExtractJob, TrainJob, RecommendJob, EvaluateJob])
def test_job_config_survives_pickling(job: type[JobConfig]) -> None:
    config = job()
    assert pickle.loads(pickle.dumps(config)) == config  # noqa: S301
    assert dataclasses.is_dataclass(config)
