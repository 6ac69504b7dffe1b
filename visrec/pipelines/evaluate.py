"""Evaluates models on held-out items, and compares them with VisRank, popularity and random.

visrec evaluate --local
visrec evaluate --local --models curatornet,vbpr,multivae
visrec evaluate --local --models seed-0,seed-1 --compare seed-0,visrank-mean
visrec evaluate --local --ablate true
visrec evaluate --workspace s3://shop/visrec --model s3://shop/visrec/models/mine
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from visrec.cli.cluster import ensure_ray
from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.parse import parse_in_workspace
from visrec.cli.progress_line import track_progress
from visrec.cli.resources import default_cpu_workers, require_resources
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError, did_you_mean
from visrec.evaluation.aggregate import AggregationSpec, aggregate
from visrec.evaluation.cards import picture_source
from visrec.evaluation.data import (
    EvaluationData,
    EvaluationInputs,
    EvaluationOverview,
    prepare_evaluation,
)
from visrec.evaluation.rank_users import (
    USERS,
    EvaluationResources,
    rank_in_process,
    ranking_dataset,
)
from visrec.evaluation.record import RECORD
from visrec.evaluation.report import render
from visrec.evaluation.results import COSTS, METRICS, REPORT
from visrec.evaluation.verdict import Verdict
from visrec.evaluation.workspace_facts import FactSources
from visrec.features.item_features import FeatureTables
from visrec.models import MODELS
from visrec.models.artifact import MODEL_MANIFEST, read_provenance
from visrec.pipelines.ablate import train_variants
from visrec.pipelines.evaluation_report import (
    Evaluated,
    ReportInputs,
    make_report,
    print_results,
)
from visrec.pipelines.input_checks import (
    announce_tables,
    require_features,
    require_interactions,
    require_model,
    require_table,
)
from visrec.pipelines.job_tables import interactions_uri, items_table, prepared_store
from visrec.pipelines.recommend_job import item_features_of, model_store
from visrec.pipelines.step_keys import StepFile, read_given_keys
from visrec.pipelines.train import TrainJob, train
from visrec.sources.interactions import InteractionsConfig
from visrec.storage import schemas
from visrec.storage.store import Store
from visrec.tasks import Ref, call, on_ray, share, submit
from visrec.training.tracking import attach_report

# Above this number of users, separate processes are faster, although they take 9 s to start (two
# cores).
_MAX_LOCAL_USERS = 32_768
# What training and evaluation must have in common.
_DATA_KEYS = ("features", "text_features", "interactions", "items", "items_columns")
# What variants of a model have from it.
_OF_MODEL = ("model", "model_id", "split", "item_features", "sampling", "train")


@dataclass(frozen=True, kw_only=True)
class EvaluateJob(JobConfig):
    """Evaluates models on held-out items.

    Attributes:
        model: directory of the model; by default the model that was trained last in the workspace.
        models: several models for one table, separated by commas: ids of the workspace's models,
            directories, or names of models, such as vbpr, which are trained first if they are not
            trained yet. All must have the same split and the same data.
        train_config: YAML with keys of `visrec train` for models that are trained first; by default
            its own defaults. Its interactions, items and features count for the evaluation too.
        compare: two rows of the table, separated by a comma, such as visrank-mean,popularity. Their
            difference is shown in addition to those between the first model and every other.
        ablate: train the model again with other triples, and put all variants in one table: random
            triples, all six guidelines, all but one of them, and the positive item kept in the
            profile or left out.
        features: features directory of the pictures; by default features of the workspace.
        text_features: features directory of the texts, for models that take them; by default
            text_features of the workspace.
        interactions: the interactions that the model was trained with. If other interactions are
            given, only the rows that training held out count, so that no model is evaluated on what
            it was trained on.
        images: where the report's thumbnails come from; by default images of the workspace.
        items: items table with titles for the report, and categories for models that need them; by
            default items.* of the workspace, if it exists.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        truth: planted truth of generated data; by default truth of the workspace, if it exists.
        evaluation: where metrics.json, costs.json, report.html and per_user.parquet go; by default
            evaluation of the workspace.
        examples: number of users shown in the report.
        hash_users: show hashes instead of user ids in the report, so that it can be passed on. The
            key of the hashes is the digest of the model, which the report does not show.
        resources: the cluster resources that evaluation may use.
    """

    model: str | None = None
    models: str | None = None
    train_config: str | None = None
    compare: str | None = None
    ablate: bool = False
    features: str | None = None
    text_features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    images: str | None = None
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    truth: str | None = None
    evaluation: str | None = None
    examples: int = 24
    hash_users: bool = False
    resources: EvaluationResources = field(default_factory=EvaluationResources)

    def __post_init__(self) -> None:
        check_fields(self, "", examples="[0, 10000]")
        if self.model and self.models:
            raise InputError("Found both --model and --models; expected one of them.")
        if self.models and self.ablate:
            raise InputError(
                "Found both --models and --ablate; expected one of them: --ablate trains the "
                "variants of one model, --model."
            )
        if self.models is not None and not _split_list(self.models):
            raise InputError(f"Found --models {self.models!r}; expected at least one.")
        if self.compare is not None and len(_split_list(self.compare)) != 2:
            raise InputError(
                f"Found --compare {self.compare!r}; expected two rows of the table, as in "
                "--compare visrank-mean,popularity."
            )


def _split_list(text: str) -> list[str]:
    return [part for part in map(str.strip, text.split(",")) if part]


def check(config: EvaluateJob) -> None:
    """Checks the inputs before Ray starts.

    Raises:
        InputError: an input is missing or has other columns than declared.
    """
    train_job = check_training(config)
    config = _with_training_data(config, train_job)
    item_features = (
        train_job.item_features if config.models else item_features_of(config, config.model)
    )
    require_features(item_features, config, config.features, config.text_features)
    uri = interactions_uri(config, config.interactions)
    items = items_table(config, config.items, config.items_columns)
    require_interactions(config.interactions, uri)
    require_table(items, schemas.ITEMS)
    if config.models is None:
        require_model(model_store(config, config.model))
    models = Store.at(config.resolve(None, "models"))
    for name in _split_list(config.models or ""):
        if "/" in name:
            require_model(Store.at(name))
        elif name not in MODELS and not (models / name).exists(MODEL_MANIFEST):
            raise InputError(
                f"Found {name!r} in --models, which is no model of {models.root} and no kind of "
                f"model{did_you_mean(name, MODELS) or '.'}"
            )
    announce_tables(config.interactions, uri, items)


def check_training(config: EvaluateJob) -> TrainJob:
    """Checks how models are trained first; returns that of the first one.

    Raises:
        InputError: a key of --train_config is wrong, also if nothing is trained, or it says
            something that the evaluation cannot do.
    """
    kinds = _untrained_kinds(config)
    jobs = [_train_job(config, ["--model.name", kind]) for kind in kinds]
    if kinds and config.train_config:
        named = read_given_keys(config.train_config).get("model.name", kinds[0])
        if named not in kinds:
            raise InputError(
                f"Found model.name {named} in {config.train_config}; expected one of "
                f"{', '.join(kinds)}, which --models trains first.",
                path=config.train_config,
                key="model.name",
            )
    return jobs[0] if jobs else _train_job(config, [])


def main(config: EvaluateJob, summary: Summary) -> None:
    """Ranks the held-out items by every model; writes metrics, costs, and the report."""
    config = _with_training_data(config, check_training(config))
    target = Store.at(config.resolve(config.evaluation, "evaluation"))
    inputs = _evaluation_inputs(config)
    target.check_writable()
    inputs = dataclasses.replace(inputs, models=_evaluated_stores(config, summary))
    with summary.phase("prepare"):
        data = submit(prepare_evaluation, inputs)
        overview = call(EvaluationData.overview, data)
    if config.resources.workers or overview.users > _MAX_LOCAL_USERS:
        ensure_ray(config, summary)
        data = share(data)
    spec = AggregationSpec(
        labels=overview.labels,
        items=overview.items,
        pairs=_compared_pairs(config, overview.labels),
        costs=overview.costs,
        digests=_digests(overview.labels, inputs.models.values()),
        target=target,
    )
    _print_overview(overview)
    summary.has_written = True
    tables = _rank(config, data, overview.users, summary)
    with summary.phase("aggregate"):
        results, costs = call(aggregate, spec, *tables)
        target.write_json(COSTS, {label: cost.to_dict() for label, cost in costs.items()})
    with summary.phase("report"):
        seconds = dict(summary.phases)
        evaluated = Evaluated(
            data=data, overview=overview, results=results, costs=costs, seconds=seconds
        )
        report_inputs = _report_inputs(config, inputs, overview.labels, target)
        verdict, html = _write_results(target, report_inputs, evaluated)
    if why := attach_report(next(iter(inputs.models.values())), REPORT, html):
        place = target.uri(REPORT)
        say(f"MLflow did not take the report ({why}); it is at {place}.", "warning")
    print_results(results, costs, verdict)
    summary.rows = {
        "model": ", ".join(store.name for store in inputs.models.values()),
        "verdict": verdict.sentence,
        "users": overview.users,
        "items": overview.items,
        **({"held-out rows missing": overview.missing} if overview.missing else {}),
        **overview.read_report.summary,
        "metrics at": target.uri(METRICS),
        "report at": target.uri(REPORT),
    }


def _write_results(
    target: Store, inputs: ReportInputs, evaluated: Evaluated
) -> tuple[Verdict, str]:
    """Writes the report, its record and the metrics; returns the verdict and the report's page."""
    report, record = make_report(inputs, evaluated)
    html = render(report)
    target.write(REPORT, html.encode())
    target.write_json(RECORD, record.to_dict())
    # Last, because where there are metrics, readers expect everything else.
    target.write_json(METRICS, evaluated.results.to_dict())
    return report.verdict, html


def _evaluation_inputs(config: EvaluateJob) -> EvaluationInputs:
    """Where evaluation reads; the models come later, because some are trained first."""
    truth = config.resolve_file_if_exists(config.truth, "truth/items.parquet")
    return EvaluationInputs(
        models={},
        features=Store.at(config.resolve(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=interactions_uri(config, config.interactions),
        items_table=items_table(config, config.items, config.items_columns),
        truth=Store.at(truth.removesuffix("/items.parquet")) if truth else None,
        text_features=Store.at(config.resolve(config.text_features, "text_features")),
        prepared=prepared_store(config),
    )


def _evaluated_stores(config: EvaluateJob, summary: Summary) -> dict[str, Store]:
    """The directories of the trained models by label, variants of an ablation included."""
    models = _model_stores(config, summary)
    if not config.ablate:
        return models
    (model,) = models.values()
    variants = train_variants(model, _train_job(config, []), summary)
    return {store.name: store for store in (model, *variants)}


def _model_stores(config: EvaluateJob, summary: Summary) -> dict[str, Store]:
    """The directories of the configured models by label; trains those that are not trained yet."""
    if config.models is None:
        return {"": model_store(config, config.model)}
    models = Store.at(config.resolve(None, "models"))
    untrained, stores = _untrained_kinds(config), {}
    for name in _split_list(config.models):
        if "/" in name:
            store = Store.at(name)
        elif name in untrained:
            say(f"evaluate: {name}")
            store = train(_train_job(config, ["--model.name", name]), summary).store
        else:
            store = models / name
        label = store.name if "/" in name else name
        if label in stores:
            raise InputError(
                f"Found {label!r} for more than one row of the table; expected different models in "
                "--models."
            )
        stores[label] = store
    return stores


def _untrained_kinds(config: EvaluateJob) -> list[str]:
    """The names of models in --models that are trained first."""
    models = Store.at(config.resolve(None, "models"))
    names = _split_list(config.models or "")
    return [name for name in names if name in MODELS and not (models / name).exists(MODEL_MANIFEST)]


def _train_job(config: EvaluateJob, flags: list[str]) -> TrainJob:
    """The configuration for a model that is trained first: on the same data."""
    flags = ["--workspace", config.workspace, *flags]
    job = defaults = parse_in_workspace(TrainJob, flags)
    if path := config.train_config:
        job = parse_in_workspace(TrainJob, ["--config", path, *flags])
    file = StepFile(path=config.train_config, defaults=defaults, command="the evaluation")
    if config.ablate:
        file.refuse(dict.fromkeys(_OF_MODEL, "variants of --ablate take it from the model"), job)
    elif len(_untrained_kinds(config)) > 1:
        file.refuse({"model_id": "--models trains several models"}, job)
    return dataclasses.replace(file.merge(_DATA_KEYS, job, config), local=config.local)


def _with_training_data(config: EvaluateJob, job: TrainJob) -> EvaluateJob:
    """The evaluation of the data that --train_config names, if it does."""
    return dataclasses.replace(config, **{key: getattr(job, key) for key in _DATA_KEYS})


def _digests(labels: Sequence[str], stores: Iterable[Store]) -> dict[str, str]:
    """The artifact digests of the trained models, which come first among the labels."""
    return {
        label: store.read_json(MODEL_MANIFEST)["digest"]
        for label, store in zip(labels, stores, strict=False)
    }


def _compared_pairs(config: EvaluateJob, labels: Sequence[str]) -> list[tuple[str, str]]:
    """The first model with each other one, and the two of --compare.

    Raises:
        InputError: --compare names something that is no row of the table.
    """
    pairs = [(labels[0], other) for other in labels[1:]]
    if config.compare:
        one, other = _split_list(config.compare)
        unknown = [label for label in (one, other) if label not in labels]
        if unknown:
            raise InputError(
                f"Found {unknown[0]!r} in --compare; expected two of {', '.join(labels)}."
            )
        pairs.append((one, other))
    return list(dict.fromkeys(pairs))


def _print_overview(overview: EvaluationOverview) -> None:
    say(
        f"{overview.users:,} users with held-out items, {overview.items:,} items, "
        f"{len(overview.labels)} models",
    )
    if overview.missing:
        say(
            f"{overview.missing:,} rows that training held out are no longer in the interactions, "
            "and do not count.",
        )


def _rank(config: EvaluateJob, data: Ref, users: int, summary: Summary) -> list[Ref]:
    """Ranks the users on all workers; returns the tables of their metrics."""
    resources = config.resources
    blocks = -(-users // USERS)
    with track_progress("rank", users, summary, unit="users") as progress_actor:
        if not on_ray():
            return rank_in_process(data, users, progress_actor)
        cpus = resources.cpus_per_worker
        workers = min(resources.workers or default_cpu_workers(cpus, 64), blocks)
        require_resources({"CPU": workers * cpus + 1.0}, config, "resources.workers")
        dataset = ranking_dataset(data, users, workers, cpus, progress_actor)
        tables: list[Ref] = dataset.to_arrow_refs()
    return tables


def _report_inputs(
    config: EvaluateJob, inputs: EvaluationInputs, labels: Sequence[str], target: Store
) -> ReportInputs:
    """Where the report finds pictures and the rest of the workspace."""
    models = dict(zip(labels, inputs.models.values(), strict=False))  # trained models come first
    kind = read_provenance(models[labels[0]]).data.item_features
    return ReportInputs(
        sources=FactSources(
            models=models,
            features=FeatureTables.of(kind, inputs.features, inputs.text_features).catalogue,
            sweeps=Store.at(config.resolve(None, "sweeps")),
            recommendations=Store.at(config.resolve(None, "recommendations")),
            summaries=Store.at(config.resolve(None, "summaries")),
        ),
        evaluations=Store.at(config.resolve(None, "evaluation")),
        target=target,
        images=picture_source(config.resolve(config.images, "images"), inputs.features),
        items_table=inputs.items_table,
        examples=config.examples,
        hash_users=config.hash_users,
    )
