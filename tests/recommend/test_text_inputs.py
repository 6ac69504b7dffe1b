"""Models of pictures, texts or both over one workspace: what training and scoring read."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.features import write_features
from visrec.cli.job import ModelChoice
from visrec.errors import InputError
from visrec.evaluation.data import EvaluationInputs, prepare_evaluation
from visrec.features.item_features import ItemFeatures
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import load_artifact, save_artifact
from visrec.models.visrank import VisRankConfig
from visrec.pipelines.recommend_job import RecommendJob, item_features_of, scoring_inputs
from visrec.pipelines.train import TrainJob, training_inputs, training_recipe
from visrec.recommend.inputs import ScoringData, prepare_scoring
from visrec.recommend.run_inputs import InputDigests, ListSettings, read_run_source
from visrec.retrieval.rules import RulesConfig
from visrec.storage.store import Store
from visrec.training.data import load_training_data
from visrec.training.fit import build_model
from visrec.training.task import TrainTask, build_artifact

KINDS: tuple[ItemFeatures, ...] = ("pictures", "text", "both")
ITEMS = [f"i{n:02}" for n in range(40)]
WITH_TEXT = [*ITEMS[5:], "no picture"]
PICTURE_NP = np.random.default_rng(0).normal(2, 1, (40, 6)).astype(np.float16)
TEXT_XT = np.random.default_rng(1).normal(-1, 2, (36, 4)).astype(np.float16)
SETTINGS = ListSettings(k=10, shards=1, layout="nested", kind="user_to_item")


def train(workspace: Path, kind: ItemFeatures) -> None:
    """A VisRank as jobs/train.py makes it, without Ray."""
    config = TrainJob(
        workspace=str(workspace), model=ModelChoice("visrank", VisRankConfig()),
        item_features=kind, model_id=kind,
    )  # fmt: skip
    data = load_training_data(training_inputs(config, Store.at(str(workspace / "features"))))
    recipe, store = training_recipe(config), Store.at(str(workspace / "models" / kind))
    task = TrainTask(
        recipe=recipe, data=None, artifact_store=store, model_id=kind,  # type: ignore[arg-type]
        settings_digest="", threads=1, progress_actor=None,
    )  # fmt: skip
    save_artifact(build_artifact(task, data, build_model(recipe, data), {}), store)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop whose first five items have no text, with a model of each kind."""
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(2)
    write_features(Store.at(str(folder / "features")), ITEMS, PICTURE_NP)
    write_features(Store.at(str(folder / "text_features")), WITH_TEXT, TEXT_XT)
    taken = [ITEMS[row] for _ in range(20) for row in random.permutation(40)[:4]]
    columns = {
        "user_id": [f"u{user}" for user in range(20) for _ in range(4)],
        "item_id": taken,
        "timestamp": [1000 + n for _ in range(20) for n in range(4)],
    }
    pq.write_table(pa.table(columns), folder / "interactions.parquet")
    for kind in KINDS:
        train(folder, kind)
    return folder


def job(workspace: Path, kind: str, text: Path | None = None) -> RecommendJob:
    return RecommendJob(
        workspace=str(workspace), model=f"{workspace}/models/{kind}",
        text_features=None if text is None else str(text),
    )  # fmt: skip


def prepared(config: RecommendJob) -> tuple[ScoringData, ItemArrays]:
    return prepare_scoring(scoring_inputs(config), 1, "user_to_item", 10)


def input_digests(config: RecommendJob) -> InputDigests:
    return read_run_source(scoring_inputs(config), SETTINGS).digests


def unit_z(feature_ND: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """VisRank's vectors: z-scores of length 1."""
    z_ND = (feature_ND - feature_ND.mean(0)) / feature_ND.std(0)
    return np.asarray(z_ND / np.linalg.norm(z_ND, axis=1, keepdims=True))


def test_item_vectors_are_those_of_the_tables_that_the_model_was_trained_on(
    workspace: Path,
) -> None:
    pictures, text = PICTURE_NP.astype(np.float64), TEXT_XT.astype(np.float64)
    of_items = np.full((40, 4), text[:-1].mean(0))
    of_items[5:] = text[:-1]
    expected = {
        "pictures": (ITEMS, pictures),
        "text": (WITH_TEXT, text),
        "both": (ITEMS, np.concatenate([pictures, of_items], axis=1)),
    }
    for kind, (item_ids, feature_ND) in expected.items():
        data, arrays = prepared(job(workspace, kind))
        assert data.item_ids.to_pylist() == item_ids
        np.testing.assert_allclose(arrays["unit"], unit_z(feature_ND), atol=2e-3)
        assert item_features_of(job(workspace, kind), f"{workspace}/models/{kind}") == kind


def test_changed_text_changes_the_fingerprint_of_its_item_alone(
    workspace: Path, tmp_path: Path
) -> None:
    """By fingerprints, lists are carried over or scored again."""
    before, _ = prepared(job(workspace, "both"))
    changed = TEXT_XT.copy()
    changed[7] += 1  # i12 has another text, i13 none, and i00 its first one
    ids = [*WITH_TEXT[:8], "i00", *WITH_TEXT[9:]]
    write_features(Store.at(str(tmp_path)), ids, changed)
    after, arrays = prepared(job(workspace, "both", tmp_path))
    is_changed_N = before.fingerprint_N != after.fingerprint_N
    assert [ITEMS[row] for row in np.flatnonzero(is_changed_N)] == ["i00", "i12", "i13"]
    # Without a text, i13 has what i01 has: the mean of the training, and not tonight's.
    scale = load_artifact(Store.at(f"{workspace}/models/both")).model
    z_ND = scale.feature_scale.mean_D[6:].numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(z_ND, TEXT_XT[:-1].astype(np.float64).mean(0), atol=2e-3)
    assert arrays["unit"][13, 6:] == pytest.approx([0.0] * 4, abs=2e-3)
    assert arrays["unit"][1, 6:] == pytest.approx([0.0] * 4, abs=2e-3)


def test_digest_of_a_run_depends_on_the_texts_where_the_model_takes_them(
    workspace: Path, tmp_path: Path
) -> None:
    write_features(Store.at(str(tmp_path)), WITH_TEXT[1:], TEXT_XT[1:])
    for kind in KINDS:
        one, other = (
            input_digests(job(workspace, kind)),
            input_digests(job(workspace, kind, tmp_path)),
        )
        assert (one.digest == other.digest) == (kind == "pictures")
        assert ("text" in one.to_dict()) == (kind == "both")


def test_near_duplicates_are_those_of_the_pictures(workspace: Path) -> None:
    config = job(workspace, "both")
    for kind in ("both", "pictures"):
        inputs = scoring_inputs(job(workspace, kind))
        rules = RulesConfig(near_duplicate=0.97)
        data, _ = prepare_scoring(
            type(inputs)(**{**vars(inputs), "rules": rules}), 1, config.kind, 10
        )
        wide_NP = PICTURE_NP.astype(np.float64)
        unit_NP = wide_NP / np.linalg.norm(wide_NP, axis=1, keepdims=True)
        pairs = np.argwhere(np.triu(unit_NP @ unit_NP.T >= 0.97, 1))
        assert len(pairs)
        assert data.rules is not None
        group_N = data.rules.near_duplicate_N
        assert group_N is not None
        assert {int(row) for row in np.flatnonzero(group_N >= 0)} == {*pairs.flatten().tolist()}
        assert all(group_N[one] == group_N[other] for one, other in pairs)


def test_models_of_pictures_and_of_both_share_a_table_but_not_one_of_texts_alone(
    workspace: Path,
) -> None:
    def inputs(*kinds: str) -> EvaluationInputs:
        base = scoring_inputs(job(workspace, "both"))
        return EvaluationInputs(
            models={kind: Store.at(f"{workspace}/models/{kind}") for kind in kinds},
            features=base.features, text_features=base.text_features,
            interactions=base.interactions, interactions_uri=str(base.interactions_uri),
            items_table=None, truth=None,
        )  # fmt: skip

    data = prepare_evaluation(inputs("pictures", "both"))
    widths = {label: data.arrays[label]["unit"].shape for label in ("pictures", "both")}
    assert widths == {"pictures": (40, 6), "both": (40, 10)}
    assert data.arrays["visrank-mean"]["unit"].shape == (40, 6)  # as of the first model
    with pytest.raises(InputError, match="the features of digest"):
        prepare_evaluation(inputs("pictures", "text"))


def test_missing_or_other_texts_are_refused(workspace: Path, tmp_path: Path) -> None:
    for kind in ("text", "both"):
        with pytest.raises(InputError, match="Found no features at"):
            prepared(job(workspace, kind, tmp_path / "gone"))
    write_features(Store.at(str(tmp_path)), WITH_TEXT, np.ones((36, 5), np.float16))
    for kind in ("text", "both"):
        with pytest.raises(InputError, match="Features of two backbones are never mixed"):
            prepared(job(workspace, kind, tmp_path))
