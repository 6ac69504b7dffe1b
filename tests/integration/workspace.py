"""A small workspace for tests of whole jobs, and the jobs as functions.

The gallery is the demo's, only smaller; the backbone is the untrained one, which is fast.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import yaml

from tests.conftest import CHECKOUT
from visrec.cli.job import JobConfig, ModelChoice
from visrec.cli.summary import Summary
from visrec.config import plain
from visrec.demo.gallery import GalleryConfig, write_gallery
from visrec.features.backbones import BackboneConfig
from visrec.models.curatornet import CuratorNetConfig
from visrec.pipelines import evaluate, extract_features, nightly, recommend, train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.nightly import NightlyJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.storage.store import Store
from visrec.training.loop import TrainConfig
from visrec.training.task import TrainResources

GALLERY = GalleryConfig(paintings=300, artists=30, users=160, picture_size=64)
BACKBONE = BackboneConfig(name="random-conv", precision="float32")
# For tests that run several nights from pictures on.
SMALL_GALLERY = GalleryConfig(paintings=150, artists=15, users=60, picture_size=32)
CURATORNET = ModelChoice("curatornet", CuratorNetConfig())
QUICK = TrainConfig(epochs=3, triples_per_epoch=2048, batch_size=256)
Config = TypeVar("Config", bound=JobConfig)


def paint(workspace: str | Path, gallery: GalleryConfig = GALLERY) -> None:
    """Writes a gallery's pictures and tables into a workspace, local or on S3."""
    write_gallery(gallery, Store.at(str(workspace)).write)


def copy(source: Path, target: Path, *names: str) -> str:
    """Some folders and files of one workspace in another, which is returned."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy2(source / name, target / name)
    return str(target)


def run_extract(workspace: str | Path, **keys: Any) -> Summary:
    keys.setdefault("backbone", BACKBONE)
    return _run(extract_features.main, ExtractJob(workspace=str(workspace), **keys))


def run_train(
    workspace: str | Path, train_config: TrainConfig = QUICK, *, workers: int = 1, **keys: Any
) -> Summary:
    resources = TrainResources(workers=workers, cpus_per_worker=1)
    keys = {"resources": resources, "model": CURATORNET, **keys}
    return _run(train.main, TrainJob(workspace=str(workspace), train=train_config, **keys))


def run_recommend(workspace: str | Path, **keys: Any) -> Summary:
    keys = {"k": 10, "shards": 3, **keys}
    return _run(recommend.main, RecommendJob(workspace=str(workspace), **keys))


def run_evaluate(workspace: str | Path, **keys: Any) -> Summary:
    keys = {"examples": 2, **keys}
    return _run(evaluate.main, EvaluateJob(workspace=str(workspace), **keys))


def night_settings(
    folder: Path, shards: int = 3, model: str = "curatornet", workers: int | None = None
) -> dict[str, str]:
    """The keys of a night that name a YAML file for each of its jobs, written into a folder.

    With `workers`, its lists are made on Ray.
    """
    one_worker = {"workers": 1, "cpus_per_worker": 1, "max_failures": 10}
    files = {
        "extract_config": {"backbone": plain(BACKBONE)},
        "train_config": {"model": {"name": model}, "train": plain(QUICK), "resources": one_worker},
        "recommend_config": {"k": 10, "shards": shards, "resources": {"workers": workers}},
        "evaluate_config": {"examples": 1},
    }
    folder.mkdir(exist_ok=True)
    for name, keys in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(keys))
    return {name: str(folder / f"{name}.yaml") for name in files}


def run_night(workspace: str | Path, as_of: str, **keys: Any) -> Summary:
    folder, model = keys.pop("folder", workspace), keys.pop("model", "curatornet")
    keys = {**night_settings(Path(folder) / "yaml", model=model), **keys}
    return _run(nightly.main, NightlyJob(workspace=str(workspace), as_of=as_of, **keys))


def _run(main: Callable[[Config, Summary], None], config: Config) -> Summary:
    summary = Summary(main.__module__.rpartition(".")[2])
    main(config, summary)
    undocumented = undocumented_rows(summary)
    assert not undocumented, undocumented
    return summary


def undocumented_rows(summary: Summary) -> set[str]:
    """The rows of a job's summary that docs/schemas.md does not name for that job."""
    text = (CHECKOUT / "docs/schemas.md").read_text()
    (line,) = re.findall(rf"^\| `{summary.job}` \|(.*)\|$", text, flags=re.MULTILINE)
    patterns = [re.sub("<.*?>", ".+", name) for name in re.findall("`(.*?)`", line)]
    return {row for row in summary.rows if not any(re.fullmatch(p, row) for p in patterns)}


def published_rows(recommendations: Path) -> list[dict[str, Any]]:
    """Every row of the run that the pointer names, by user and rank."""
    store = Store.at(str(recommendations))
    run = store / f"run={store.read_json('_latest.json')['run_id']}"
    rows = [
        row
        for name in run.read_json("_manifest.json")["files"]
        for row in pq.read_table(f"{run.root}/{name}").to_pylist()
    ]
    return sorted(
        rows, key=lambda row: (row.get("user_id", row.get("item_id")), row.get("rank", 0))
    )
