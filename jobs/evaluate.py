"""A model judged: exact ranks of held-out items, beside VisRank, popularity and random.

python jobs/evaluate.py --local
python jobs/evaluate.py --workspace s3://shop/visrec --model s3://shop/visrec/models/mine
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime

import ray

from jobs.launch import JobConfig, Summary, cpu_actors, launch, require_resources
from jobs.progress import follow
from jobs.recommend import model_store
from visrec.errors import InputError
from visrec.evaluation.evaluate import (
    USERS,
    EvaluationData,
    EvaluationInputs,
    evaluate_chain,
    prepare_evaluation,
    sum_up,
)
from visrec.evaluation.examples import make_examples
from visrec.evaluation.report import Report, render, text_table
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import Store


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(JobConfig):
    """A model judged.

    Attributes:
        model: the model's directory; by default the one that was trained last in the workspace.
        features: features directory; by default features of the workspace.
        interactions: the same that the model was trained with; the test baskets are in it.
        images: where the report's thumbnails come from; by default images of the workspace.
        items: items table with titles for the report, and categories for models that ask; by
            default items.parquet of the workspace, where it is there.
        truth: planted truth of generated data; by default truth of the workspace, where it is
            there.
        evaluation: where metrics.json, report.html and per_user.parquet go; by default evaluation
            of the workspace.
        examples: users shown in the report.
        workers: processes that rank; by default one for two CPUs of this cluster (at most 64).
        threads: threads of each, and CPUs it asks for.
    """

    model: str | None = None
    features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    images: str | None = None
    items: str | None = None
    truth: str | None = None
    evaluation: str | None = None
    examples: int = 6
    workers: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        if self.examples < 0:
            raise InputError(f"Found --examples {self.examples}; expected 0 or more.")


def main(config: EvaluateJob, summary: Summary) -> None:
    target = Store.at(config.place(config.evaluation, "evaluation"))
    truth = config.place_if_there(config.truth, "truth/items.parquet")
    inputs = EvaluationInputs(
        model=model_store(config, config.model),
        features=Store.at(config.place(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=config.place(config.interactions.path, "interactions.parquet"),
        items_uri=config.place_if_there(config.items, "items.parquet"),
        truth=Store.at(truth.removesuffix("/items.parquet")) if truth else None,
    )
    target.check_writable()
    with summary.phase("prepare"):
        data = ray.remote(prepare_evaluation).remote(inputs)
        users, items, labels = ray.get(_counts.remote(data))
    print(
        f"{users:,} users with a held-out basket, {items:,} items, {len(labels)} models", flush=True
    )
    summary.begun = True
    with follow("rank", users, summary, unit="users") as tally:
        blocks = -(-users // USERS)
        workers = min(config.workers or cpu_actors(config.threads, 64), blocks)
        require_resources({"CPU": workers * config.threads + 1.0}, config, "workers")
        chain = evaluate_chain(data, users, config.threads, workers, tally)
        tables = chain.to_arrow_refs()
    with summary.phase("sum up"):
        metrics = ray.get(ray.remote(sum_up).remote(labels, target, *tables))
        target.write_json("metrics.json", metrics)
    with summary.phase("report"):
        images = config.place(config.images, "images")
        examples = ray.get(
            ray.remote(make_examples).remote(data, config.examples, images, inputs.items_uri)
        )
        model_id = inputs.model.root.rpartition("/")[2]
        facts = {
            "model": model_id,
            "users": f"{users:,}",
            "items": f"{items:,}",
            "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
        page = Report(
            title=f"How good is {model_id}?",
            metrics=metrics,
            examples=examples,
            facts=facts,
            notes=_NOTES,
        )
        target.write("report.html", render(page).encode())
    print(f"\n{text_table(metrics)}")
    summary.rows = {
        "model": model_id,
        "users": users,
        "items": items,
        "metrics at": target.uri("metrics.json"),
        "report at": target.uri("report.html"),
    }


_NOTES = (
    "Each user's last basket was held out from training. All items but those of the user's profile "
    "are ranked; the metrics say where the held-out items stand. AUC is the share of the other "
    "items that a held-out one is ranked above.",
    "Means over users; intervals are 95 % bootstrap intervals.",
)


@ray.remote
def _counts(data: EvaluationData) -> tuple[int, int, list[str]]:
    return len(data.held), len(data.item_ids), [c.label for c in data.contestants]


if __name__ == "__main__":
    launch(main, EvaluateJob)
