"""Models judged: exact ranks of held-out items, beside VisRank, popularity and random.

python jobs/evaluate.py --local
python jobs/evaluate.py --local --models curatornet,vbpr,multivae
python jobs/evaluate.py --local --models seed-0,seed-1 --compare seed-0,visrank-mean
python jobs/evaluate.py --local --ablate true
python jobs/evaluate.py --workspace s3://shop/visrec --model s3://shop/visrec/models/mine
"""

import dataclasses
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray

from visrec.cli.launch import (
    JobConfig,
    Summary,
    cpu_actors,
    parse,
    require_resources,
    terminal_columns,
)
from visrec.cli.progress import follow
from visrec.config import check_fields
from visrec.errors import InputError, did_you_mean
from visrec.evaluation.clusters import make_clusters
from visrec.evaluation.data import (
    Cost,
    EvaluationData,
    EvaluationInputs,
    prepare_evaluation,
)
from visrec.evaluation.evaluate import USERS, AggregationSpec, aggregate, evaluate_chain
from visrec.evaluation.examples import make_examples
from visrec.evaluation.report import Report, render
from visrec.evaluation.table import text_costs, text_differences, text_table
from visrec.interactions.log import Reading
from visrec.models import MODELS
from visrec.models.artifact import MANIFEST
from visrec.pipelines.ablate import train_variants
from visrec.pipelines.input_checks import (
    require_features,
    require_interactions,
    require_model,
    require_table,
)
from visrec.pipelines.recommend import METRICS, model_store
from visrec.pipelines.train import TrainJob, train
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(JobConfig):
    """Models judged.

    Attributes:
        model: the model's directory; by default the one that was trained last in the workspace.
        models: several in one table instead, with commas between: ids of the workspace's models,
            directories, or names of models, such as vbpr, which are trained first where they are
            not. All must be of one split and the same data.
        training: YAML with keys of jobs/train.py for those that are trained; by default its own.
        compare: two rows of the table with a comma between, such as visrank-mean,popularity, whose
            difference is told beside those of the first model and every other.
        ablate: train the model again with other triples, and put all in one table: random ones, all
            six guidelines, all but one of them, and the positive kept in the profile or left out.
        features: features directory; by default features of the workspace.
        interactions: those that the model was trained with. Of others only the rows that training
            held out count, so that no model is judged by what it was trained on.
        images: where the report's thumbnails come from; by default images of the workspace.
        items: items table with titles for the report, and categories for models that ask; by
            default items.parquet of the workspace, where it is there.
        truth: planted truth of generated data; by default truth of the workspace, where it is
            there.
        evaluation: where metrics.json, costs.json, report.html and per_user.parquet go; by default
            evaluation of the workspace.
        examples: users shown in the report.
        workers: processes that rank; by default one for two CPUs of this cluster (at most 64).
        threads: threads of each, and CPUs it asks for.
    """

    model: str | None = None
    models: str | None = None
    training: str | None = None
    compare: str | None = None
    ablate: bool = False
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
        check_fields(self, "", examples="[0, 10000]", workers="[1, 65536]", threads="[1, 65536]")
        if self.model and self.models:
            raise InputError("Found both --model and --models; expected one of them.")
        if self.models and self.ablate:
            raise InputError(
                "Found both --models and --ablate; expected one of them: --ablate trains the "
                "variants of one model, --model."
            )
        if self.models is not None and not _listed(self.models):
            raise InputError(f"Found --models {self.models!r}; expected at least one.")
        if self.compare is not None and len(_listed(self.compare)) != 2:
            raise InputError(
                f"Found --compare {self.compare!r}; expected two rows of the table, as in "
                "--compare visrank-mean,popularity."
            )


def _listed(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def check(config: EvaluateJob) -> None:
    _train_job(config, [])  # a mistake in its YAML
    require_features(config.resolve(config.features, "features"))
    interactions = config.interactions
    require_interactions(interactions, config.resolve(interactions.path, "interactions.parquet"))
    require_table(config.items, "items")
    if config.models is None:
        require_model(model_store(config, config.model))
    models = Store.at(config.resolve(None, "models"))
    for at in _listed(config.models or ""):
        if "/" in at:
            require_model(Store.at(at))
        elif at not in MODELS and not (models / at).exists(MANIFEST):
            raise InputError(
                f"Found {at!r} in --models, which is no model of {models.root} and no kind of model"
                f"{did_you_mean(at, MODELS) or '.'}"
            )


def main(config: EvaluateJob, summary: Summary) -> None:
    target = Store.at(config.resolve(config.evaluation, "evaluation"))
    inputs = _inputs(config)
    target.check_writable()
    inputs = dataclasses.replace(inputs, models=_contestants(config, summary))
    with summary.phase("prepare"):
        data = ray.remote(prepare_evaluation).remote(inputs)
        users, items, labels, known, missing, reading = ray.get(_counts.remote(data))
    pairs = _pairs(config, labels)
    _say_counts(users, items, len(labels), missing)
    summary.has_written = True
    with follow("rank", users, summary, unit="users") as tally:
        blocks = -(-users // USERS)
        workers = min(config.workers or cpu_actors(config.threads, 64), blocks)
        require_resources({"CPU": workers * config.threads + 1.0}, config, "workers")
        chain = evaluate_chain(data, users, config.threads, workers, tally)
        tables = chain.to_arrow_refs()
    with summary.phase("sum up"):
        question = AggregationSpec(labels, items, pairs, known, target)
        results = ray.get(ray.remote(aggregate).remote(question, *tables))
        # Seconds differ from run to run, and metrics.json does not.
        costs = results.pop("costs")
        # By which jobs/recommend.py knows whether this was its model.
        results["digests"] = {
            label: store.read_json(MANIFEST)["digest"]
            for label, store in zip(labels, inputs.models.values(), strict=False)
        }
        target.write_json("costs.json", costs)
    model_ids = ", ".join(store.name for store in inputs.models.values())
    with summary.phase("report"):
        facts = {"model": model_ids, "users": f"{users:,}", "items": f"{items:,}"}
        page = _report(config, inputs, data, facts, results, costs)
        target.write("report.html", render(page).encode())
        target.write_json(METRICS, results)  # last: where it is, the rest is too
    _show(results, costs)
    summary.rows = {
        "model": model_ids,
        "users": users,
        "items": items,
        **({"held-out rows missing": missing} if missing else {}),
        **reading.summary,
        "metrics at": target.uri(METRICS),
        "report at": target.uri("report.html"),
    }


def _inputs(config: EvaluateJob) -> EvaluationInputs:
    """What the models are judged on, no model among it yet."""
    truth = config.resolve_if_exists(config.truth, "truth/items.parquet")
    return EvaluationInputs(
        models={},
        features=Store.at(config.resolve(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=config.resolve(config.interactions.path, "interactions.parquet"),
        items_uri=config.resolve_if_exists(config.items, "items.parquet"),
        truth=Store.at(truth.removesuffix("/items.parquet")) if truth else None,
    )


def _contestants(config: EvaluateJob, summary: Summary) -> dict[str, Store]:
    """The models by their names in the table, those of an ablation among them."""
    models = _model_stores(config, summary)
    if not config.ablate:
        return models
    (model,) = models.values()
    variants = train_variants(model, _train_job(config, []), summary)
    return {store.name: store for store in (model, *variants)}


def _say_counts(users: int, items: int, models: int, missing: int) -> None:
    print(f"{users:,} users with a held-out basket, {items:,} items, {models} models", flush=True)
    if missing:
        print(
            f"{missing:,} rows that training held out are not in the interactions now, and are "
            "left out.",
            flush=True,
        )


def _report(
    config: EvaluateJob,
    inputs: EvaluationInputs,
    data: "ray.ObjectRef[EvaluationData]",
    facts: dict[str, str],
    results: dict[str, Any],
    costs: dict[str, Any],
) -> Report:
    """The page, with examples and clusters made by tasks."""
    images = config.resolve(config.images, "images")
    examples, clusters = ray.get(
        [
            ray.remote(make_examples).remote(data, config.examples, images, inputs.items_uri),
            ray.remote(make_clusters).remote(data, inputs.features, images, inputs.items_uri),
        ]
    )
    return Report(
        title=f"How good is {facts['model']}?",
        metrics=results["models"],
        examples=examples,
        facts={**facts, "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")},
        lists=results["lists"],
        by_profile_size=results["by_profile_size"],
        paired=results["paired"],
        costs=costs,
        clusters=clusters,
        notes=_NOTES,
    )


def _show(results: dict[str, Any], costs: dict[str, Any]) -> None:
    """The tables of the terminal."""
    columns = terminal_columns()
    print(f"\n{text_table(results['models'], columns)}")
    if results["paired"]:
        print(f"\n{text_differences(results['paired'], columns)}")
    print(f"\n{text_costs(costs, columns)}")


def _model_stores(config: EvaluateJob, summary: Summary) -> dict[str, Store]:
    """The models by their names in the table; those asked for by name are trained first."""
    if config.models is None:
        return {"": model_store(config, config.model)}
    models, stores = Store.at(config.resolve(None, "models")), {}
    for at in _listed(config.models):
        if "/" in at:
            store = Store.at(at)
        elif at in MODELS and not (models / at).exists(MANIFEST):
            print(f"evaluate: {at}", flush=True)
            trained, artifact, _ = train(_train_job(config, ["--model.name", at]), summary)
            store = trained / artifact.model_id
        else:
            store = models / at
        name = store.name if "/" in at else at
        if name in stores:
            raise InputError(
                f"Found {name!r} for more than one row of the table; expected different models in "
                "--models."
            )
        stores[name] = store
    return stores


def _train_job(config: EvaluateJob, flags: list[str]) -> TrainJob:
    """How a model of the table is trained: on the same data."""
    given = ["--config", config.training] if config.training else []
    return dataclasses.replace(
        parse(TrainJob, [*given, *flags]),
        workspace=config.workspace,
        local=config.local,
        features=config.features,
        interactions=config.interactions,
        items=config.items,
    )


def _pairs(config: EvaluateJob, labels: list[str]) -> list[tuple[str, str]]:
    """The first model and each other one, and the two that --compare asks for.

    Raises:
        InputError: --compare names no row of the table.
    """
    pairs = [(labels[0], other) for other in labels[1:]]
    if config.compare:
        one, other = _listed(config.compare)
        unknown = [label for label in (one, other) if label not in labels]
        if unknown:
            raise InputError(
                f"Found {unknown[0]!r} in --compare; expected two of {', '.join(labels)}."
            )
        pairs.append((one, other))
    return list(dict.fromkeys(pairs))


_NOTES = (
    "Each user's last basket was held out from training. All items but those of the user's profile "
    "are ranked; the metrics say where the held-out items stand. AUC is the share of the other "
    "items that a held-out one is ranked above.",
    "Means over users; intervals are 95 % bootstrap intervals.",
)


@ray.remote
def _counts(
    data: EvaluationData,
) -> tuple[int, int, list[str], dict[str, Cost], int, Reading]:
    labels = [contestant.label for contestant in data.evaluated_models]
    users, items = len(data.held), len(data.item_ids)
    return users, items, labels, dict(data.costs), data.missing, data.reading
