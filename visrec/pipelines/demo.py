"""The whole chain on a painted sample gallery: pictures, features, a model, its evaluation, lists.

visrec demo
"""

from collections.abc import Callable
from dataclasses import dataclass

from visrec.cli.job import Job, JobConfig
from visrec.cli.output import say
from visrec.cli.parse import parse
from visrec.cli.summary import Summary
from visrec.paths import shipped
from visrec.pipelines import evaluate, extract_features, make_gallery, recommend, train
from visrec.pipelines.evaluate import EvaluateJob
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.make_gallery import GalleryJob
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class DemoJob(JobConfig):
    """The sample gallery, from its pictures to lists and a report."""

    local: bool = True


def main(config: DemoJob, summary: Summary) -> None:
    workspace = ["--workspace", config.workspace, "--local", str(config.local).lower()]
    train_flags = ["--config", shipped("configs/demo_train.yaml"), *workspace]
    summary.has_written = True
    _run(make_gallery.main, parse(GalleryJob, workspace), summary, "make_gallery")
    _run(extract_features.main, parse(ExtractJob, workspace), summary, "extract_features")
    _run(train.main, parse(TrainJob, train_flags), summary, "train")
    _run(evaluate.main, parse(EvaluateJob, workspace), summary, "evaluate")
    _run(recommend.main, parse(RecommendJob, workspace), summary, "recommend")
    store = Store.at(config.workspace)
    summary.rows = {
        "lists": store.uri("recommendations"),
        "report": store.uri("evaluation/report.html"),
    }


def _run(main: Callable[[Job, Summary], None], job: Job, demo: Summary, name: str) -> None:
    """Runs one job of the chain, with a summary of its own."""
    say(f"\n{name.replace('_', ' ')}")
    summary = Summary(name)
    with demo.phase(name.replace("_", " ")):
        main(job, summary)
    summary.print()
    summary.write(Store.at(job.workspace))
