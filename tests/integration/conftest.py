"""One small workspace, taken through the chain once for all tests of this folder."""

from pathlib import Path

import pytest

from tests.integration.workspace import paint, run_evaluate, run_extract, run_recommend, run_train


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with pictures and tables. Read only, as all of these: `copy` it to change it."""
    workspace = tmp_path_factory.mktemp("gallery")
    paint(workspace)
    return workspace


@pytest.fixture(scope="session")
def featured(gallery: Path, ray_cluster: None) -> Path:  # noqa: ARG001
    """The same, with features."""
    summary = run_extract(gallery)
    assert summary.rows["run through the network"] == 300
    return gallery


@pytest.fixture(scope="session")
def trained(featured: Path) -> Path:
    """The same, with a model that one worker trained."""
    run_train(featured, model_id="one")
    return featured


@pytest.fixture(scope="session")
def recommended(trained: Path) -> Path:
    """The same, with recommendations of the run `first` in 8 shards."""
    run_recommend(trained, run_id="first", shards=8)
    return trained


@pytest.fixture(scope="session")
def evaluated(trained: Path) -> Path:
    """The same, with an evaluation by one worker."""
    run_evaluate(trained, workers=1)
    return trained
