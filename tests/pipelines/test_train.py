"""What a training prepares is what the model's batches are sampled from."""

from pathlib import Path

import pytest

from visrec.cli.job import ModelChoice
from visrec.models import MODELS
from visrec.pipelines.train import TrainJob, training_inputs
from visrec.sampling.triples import SamplingConfig
from visrec.storage.store import Store
from visrec.training.data import TrainingInputs

NEXT_BASKET = SamplingConfig(guidelines={"next_basket": 1.0})


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\nu,i,1\n")
    (tmp_path / "items.csv").write_text("item_id,artist_id\ni,a\n")
    return tmp_path


def inputs(workspace: Path, model: str) -> TrainingInputs:
    choice = ModelChoice(model, MODELS[model].Config())
    job = TrainJob(workspace=str(workspace), model=choice, sampling=NEXT_BASKET)
    return training_inputs(job, Store.at(str(workspace / "features")))


@pytest.mark.parametrize("model", ["embedding_mlp", "hybrid"])
def test_clusters_and_artists_of_ignored_guidelines_are_not_prepared(
    workspace: Path, model: str
) -> None:
    found = inputs(workspace, model)
    assert found.sampling is not None
    assert not found.sampling.needs_clusters
    assert found.items_table is None


def test_artists_are_read_for_negatives_that_are_drawn_in_any_case(workspace: Path) -> None:
    # With the catalogue as negatives, next_basket has no condition on artists.
    assert inputs(workspace, "curatornet").items_table is None
    found = inputs(workspace, "convncf")
    assert found.sampling is not None
    assert found.sampling.artist_conditions == {"next_basket": ["negative"]}
    assert found.items_table is not None


def test_model_that_trains_on_users_has_no_sampling(workspace: Path) -> None:
    assert inputs(workspace, "multivae").sampling is None
