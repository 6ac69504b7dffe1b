"""Recommends items with a trained model: scores all users, checks the lists, publishes them.

python jobs/recommend.py --local
python jobs/recommend.py --local --kind item_to_item
python jobs/recommend.py --workspace s3://shop/visrec --run_id 2026-11-22
python jobs/recommend.py --local --force_publish "half of the shop is closed today"
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from visrec.cli.job import JobConfig
from visrec.cli.progress import track_progress
from visrec.cli.resources import default_cpu_workers, scoring_workers
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.evaluation.results import METRICS
from visrec.models.arrays import ItemArrays
from visrec.models.artifact import LATEST
from visrec.paths import require_folder_name
from visrec.pipelines.input_checks import (
    require_features,
    require_interactions,
    require_model,
    require_table,
)
from visrec.publication.claims import claim_run
from visrec.publication.completion import complete_run, find_complete_run
from visrec.publication.gate import Gate, Outcome
from visrec.publication.gates import NOT_EVALUATED, GatesConfig
from visrec.publication.list_tables import Layout
from visrec.publication.manifest import RunManifest, ShardFile, read_run_manifest
from visrec.publication.pointer import read_published_manifest
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.run_spec import RunSpec, run_store
from visrec.recommend.fingerprint_files import write_item_fingerprints
from visrec.recommend.inputs import ScoringData, ScoringInputs, ScoringOverview, prepare_scoring
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.readback import WrittenRun, check_and_rescore
from visrec.recommend.run_gates import GateInputs, GateResults, evaluate_gates
from visrec.recommend.run_inputs import ListSettings, RunSource, read_run_source
from visrec.recommend.score import ScoreResources, ScoringTask, scoring_dataset
from visrec.recommend.writer import WrittenShard
from visrec.retrieval.rules import RulesConfig
from visrec.retrieval.similar import Kind
from visrec.sources.interactions import InteractionsConfig
from visrec.storage.store import Store
from visrec.storage.tables import require_unchanged

_QUERIES: dict[Kind, str] = {"user_to_item": "users", "item_to_item": "items"}


@dataclass(frozen=True, kw_only=True)
class RecommendJob(JobConfig):
    """Recommends items with a trained model.

    Attributes:
        model: directory of the model; by default the model that was trained last in the workspace.
        features: features directory; by default features of the workspace.
        interactions: which users took which items; taken items are not recommended.
        items: items table with an available column; by default items.parquet of the workspace, if
            it exists. Items that are not available are not recommended.
        users: users table, for users without any interaction; by default users.parquet of the
            workspace, if it exists. These users get the most popular available items.
        kind: user_to_item recommends items to each user; item_to_item lists for each item those
            most similar to it, by the cosine of the model's item vectors.
        recommendations: where the run goes; by default recommendations of the workspace, or
            similar_items for item_to_item.
        run_id: name of the run; by default a digest of all inputs. A second start with the same
            name does only what is missing.
        k: entries per list.
        layout: nested, one row per user; or long, one row per entry.
        shards: number of files; users are dealt to them by a hash of their id. By default as many
            as the lists need: at most about 32 MB each, and at least 8 files.
        resources: what scoring may take of the cluster.
        rules: what a list may hold.
        incremental: take over the last publication's lists of users for whom nothing has changed,
            and score only the others and the new items. The lists are the same either way.
        gates: when a publication is held back.
        evaluation: directory that jobs/evaluate.py wrote; by default evaluation of the workspace.
            If this model is not in it, the gates on its quality are skipped, and the job says so.
        force_publish: the reason to publish what the gates would hold back; the manifest records
            it. A run that was held back is not scored again.
    """

    model: str | None = None
    features: str | None = None
    interactions: InteractionsConfig = field(default_factory=InteractionsConfig)
    items: str | None = None
    users: str | None = None
    kind: Kind = "user_to_item"
    recommendations: str | None = None
    run_id: str | None = None
    k: int = 100
    layout: Layout = "nested"
    shards: int | None = None
    resources: ScoreResources = field(default_factory=ScoreResources)
    rules: RulesConfig = field(default_factory=RulesConfig)
    incremental: bool = True
    gates: GatesConfig = field(default_factory=GatesConfig)
    evaluation: str | None = None
    force_publish: str | None = None

    def __post_init__(self) -> None:
        if self.run_id is not None:
            require_folder_name(self.run_id, "run_id")
        if self.force_publish is not None and not self.force_publish.strip():
            raise InputError(
                "Found --force_publish without a reason; expected one in words, for the manifest."
            )
        check_fields(self, "", k="[1, 1000000]", shards="[1, 1000000]")


def check(config: RecommendJob) -> None:
    require_features(config.resolve(config.features, "features"))
    check_tables(config)
    require_model(model_store(config, config.model))


def check_tables(config: RecommendJob) -> None:
    """Checks the tables of a run, which a night does before its first step.

    Raises:
        InputError: a table is missing or has other columns than declared.
    """
    require_interactions(config.interactions, _interactions_uri(config))
    require_table(config.items, "items")
    require_table(config.users, "users")
    require_table(config.rules.blocked, "rules.blocked")


@dataclass(frozen=True)
class _Run:
    """The run that the job works on.

    Attributes:
        config: of the job.
        inputs: where it reads.
        source: the model, and digests of all inputs.
        store: the run's directory.
        last: the manifest of the last publication, if any.
    """

    config: RecommendJob
    inputs: ScoringInputs
    source: RunSource
    store: Store
    last: RunManifest | None

    @property
    def run_id(self) -> str:
        return self.store.name.removeprefix("run=")

    @property
    def queries(self) -> str:
        """What the queries are: users or items."""
        return _QUERIES[self.config.kind]


@dataclass(frozen=True)
class _Prepared:
    """The scoring data, in the object store, and what the driver knows of it.

    Attributes:
        data: queries and items.
        arrays: the model's item arrays.
        overview: counts of the data.
        spec: the files that the run will have.
        fingerprints: SHA-256 of the file with the items' fingerprints, by name.
    """

    data: "ray.ObjectRef[ScoringData]"
    arrays: "ray.ObjectRef[ItemArrays]"
    overview: ScoringOverview
    spec: RunSpec
    fingerprints: dict[str, str]


def main(config: RecommendJob, summary: Summary) -> None:
    """Reads the model and the tables, writes `run=<run_id>/`, and moves `_latest.json` to it."""
    recommendations = recommendations_store(config)
    recommendations.check_writable()
    with summary.phase("read"):
        run = _read_run(config, recommendations)
        manifest = _find_complete(run)
    written: list[WrittenShard] = []
    rerun = manifest is not None
    if manifest is None:
        with summary.phase("prepare"):
            prepared = _prepare(run)
        written = _score(run, prepared, summary)
        with summary.phase("check"):
            gates = _check(run, prepared, written)
        draft = _draft_manifest(run, prepared, written, gates, summary)
        with summary.phase("publish"):
            manifest, is_first = complete_run(
                run.store, draft, gates.gates, config.force_publish, draft.inputs_digest
            )
            rerun = not is_first
    else:
        print(f"The run {run.run_id} is complete already: nothing to score.", flush=True)
    with summary.phase("publish"):
        moved = publish_run(recommendations, run.run_id, rerun=rerun)
    status = publication_status(recommendations, run.run_id, rerun=rerun)
    summary.rows = _summary_rows(run, manifest, written, "now" if moved else status.summary)
    summary.not_published = status.explanation
    _warn_if_not_evaluated(manifest, summary)
    if any(not shard.kept for shard in written):
        rate = manifest.queries / summary.phases["score"]
        summary.rows[f"{run.queries} per second"] = round(rate, 1)


def _read_run(config: RecommendJob, recommendations: Store) -> _Run:
    """Digests all inputs, which name the run by default."""
    inputs = ScoringInputs(
        model=model_store(config, config.model),
        features=Store.at(config.resolve(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=_interactions_uri(config),
        items_uri=config.resolve_if_exists(config.items, "items.parquet"),
        users_uri=config.resolve_if_exists(config.users, "users.parquet"),
        rules=config.rules,
    )
    source: RunSource = ray.get(ray.remote(read_run_source).remote(inputs, _list_settings(config)))
    store = run_store(recommendations, config.run_id or source.inputs.digest)
    return _Run(config, inputs, source, store, read_published_manifest(recommendations))


def _list_settings(config: RecommendJob) -> ListSettings:
    return ListSettings(k=config.k, shards=config.shards, layout=config.layout, kind=config.kind)


def _find_complete(run: _Run) -> RunManifest | None:
    """The manifest of the run, if it is complete.

    Raises:
        InputError: the run was made from other inputs.
    """
    manifest = read_run_manifest(run.store)
    if manifest is not None and manifest.inputs != run.source.inputs.to_dict():
        raise InputError(
            f"The run {run.run_id} at {run.store.root} is complete and was made from other inputs "
            "or settings; choose another --run_id."
        )
    return find_complete_run(run.store)


def _prepare(run: _Run) -> _Prepared:
    """Loads the scoring data into the object store, claims the run and writes the items'
    fingerprints."""
    config, inputs_digest = run.config, run.source.inputs.digest
    # Two results, so that the item arrays are an object of their own; Ray's types know only one.
    prepare: Any = ray.remote(prepare_scoring).options(num_returns=2)
    data, arrays = prepare.remote(run.inputs, config.shards, config.kind, config.k)
    overview: ScoringOverview = ray.get(ray.remote(ScoringData.overview).remote(data))
    metadata = {
        "visrec.model_id": run.source.model_id,
        "visrec.run_id": run.run_id,
        "visrec.inputs": inputs_digest,
    }
    spec = RunSpec(run.store, overview.shards, config.k, config.layout, config.kind, metadata)
    claim_run(run.store, inputs_digest)
    name, sha256 = ray.get(ray.remote(write_item_fingerprints).remote(data, spec))
    return _Prepared(data, arrays, overview, spec, {name: sha256})


def _score(run: _Run, prepared: _Prepared, summary: Summary) -> list[WrittenShard]:
    """Scores the shards that are missing, and writes their files."""
    config, overview = run.config, prepared.overview
    print(
        f"{overview.queries:,} {run.queries}  {overview.items:,} in the catalogue  "
        f"{overview.available:,} available",
        flush=True,
    )
    if overview.block_list_warning:
        print(overview.block_list_warning, flush=True)
    summary.has_written = True
    with track_progress("score", overview.queries, summary, unit=run.queries) as progress_actor:
        workers = scoring_workers(config, config.resources, overview.shards)
        task = ScoringTask(
            data=prepared.data,
            arrays=prepared.arrays,
            model=run.inputs.model,
            last=_incremental_base(run, overview.shards),
            spec=prepared.spec,
            resources=config.resources,
        )
        rows = scoring_dataset(task, workers, progress_actor).iter_rows()
        return sorted(map(WrittenShard.from_row, rows), key=lambda shard: shard.name)


def _incremental_base(run: _Run, shards: int) -> PublishedRun | None:
    """The last publication, if its lists may be carried over."""
    last = run.last
    if last is None or not run.config.incremental or not last.fingerprints:
        return None
    if not run.source.inputs.gives_same_scores(last.inputs):
        return None
    if len(last.files) != shards or last.forced:  # its lists may have what the gates found
        return None
    return _published_run(run, last)


def _published_run(run: _Run, last: RunManifest) -> PublishedRun:
    store = run_store(recommendations_store(run.config), last.run_id)
    return PublishedRun(store, last.inputs_digest, {**last.sha256, **last.fingerprints})


def _check(run: _Run, prepared: _Prepared, written: Sequence[WrittenShard]) -> GateResults:
    """Reads the files back, with some shards per task, and evaluates the gates in one task.

    Raises:
        InputError: the inputs changed while they were read.
    """
    reread = ray.remote(read_run_source).remote(run.inputs, _list_settings(run.config))
    config, shards, last = run.config, prepared.spec.shards, run.last
    if last is not None and (last.kind != config.kind or _knows_more(last, config)):
        last = None
    files = WrittenRun(
        spec=prepared.spec,
        sha256={shard.name: shard.sha256 for shard in written},
        last=_published_run(run, last) if last else None,
    )
    # A task adds up the shards that it reads: counts of all items for each shard would be larger
    # than the lists.
    tasks = default_cpu_workers(1, min(64, shards))
    check = ray.remote(check_and_rescore)
    checks = ray.get(
        [
            check.remote(
                prepared.data, prepared.arrays, run.inputs.model, files, range(task, shards, tasks)
            )
            for task in range(tasks)
        ]
    )
    if files.last is not None and any(each.damaged_last_files for each in checks):
        print(
            f"Files of the last publication, {files.last.run.root}, are missing or are not what "
            "was published: the gates compare with the rest of it.",
            flush=True,
        )
    require_unchanged(run.source.inputs.to_dict(), ray.get(reread).inputs.to_dict())
    evaluation = Store.at(config.resolve(config.evaluation, "evaluation"))
    gate_inputs = GateInputs(
        source=run.source,
        items_uri=run.inputs.items_uri,
        last=last,
        evaluation=evaluation.read_json(METRICS) if evaluation.exists(METRICS) else None,
        thresholds=config.gates,
    )
    results: GateResults = ray.get(
        ray.remote(evaluate_gates).remote(gate_inputs, prepared.data, *checks)
    )
    return results


def _knows_more(last: RunManifest, config: RecommendJob) -> bool:
    """Whether a publication has a later cutoff than this run.

    A night that is filled in later is not compared with a later state of the shop.
    """
    cutoff, last_cutoff = config.interactions.cutoff_timestamp(), last.cutoff_timestamp
    return cutoff is not None and last_cutoff is not None and last_cutoff > cutoff


def _draft_manifest(
    run: _Run,
    prepared: _Prepared,
    written: Sequence[WrittenShard],
    gates: GateResults,
    summary: Summary,
) -> RunManifest:
    config, source = run.config, run.source
    fingerprints = {shard.fingerprints: shard.fingerprints_sha256 for shard in written}
    return RunManifest(
        run_id=run.run_id,
        model_id=source.model_id,
        inputs=source.inputs.to_dict(),
        inputs_digest=source.inputs.digest,
        layout=config.layout,
        kind=config.kind,
        k=config.k,
        cutoff_timestamp=config.interactions.cutoff_timestamp(),
        queries=sum(shard.queries for shard in written),
        cold_users=sum(shard.cold_users for shard in written),
        rows=sum(shard.rows for shard in written),
        available=prepared.overview.available,
        interactions=prepared.overview.read_report,
        without_feature=gates.without_feature,
        files={shard.name: ShardFile(shard.rows, shard.bytes, shard.sha256) for shard in written},
        fingerprints=prepared.fingerprints | fingerprints,
        seconds={name: round(seconds, 2) for name, seconds in summary.phases.items()},
    )


def _summary_rows(
    run: _Run, manifest: RunManifest, written: Sequence[WrittenShard], published: str
) -> dict[str, object]:
    forced = [gate.name for gate in manifest.gates if gate.outcome == "forced"]
    return {
        "run": run.run_id,
        "model": run.source.model_id,
        run.queries: manifest.queries,
        **({"cold users": manifest.cold_users} if run.queries == "users" else {}),
        "rows": manifest.rows,
        **manifest.interactions.summary,
        "files": len(manifest.files),
        "shards scored now": sum(not shard.kept for shard in written),
        "lists carried over": sum(shard.carried for shard in written),
        "gates": _gates_row(manifest.gates),
        **({"forced past": "; ".join(forced)} if forced else {}),
        "published": published,
        "run at": run.store.root,
    }


def _gates_row(gates: Sequence[Gate]) -> str:
    """How many gates passed, were skipped and were forced; a skipped gate proves nothing."""
    count = Counter(gate.outcome for gate in gates)
    outcomes: tuple[Outcome, ...] = ("passed", "skipped", "forced")
    parts = [f"{count[outcome]} {outcome}" for outcome in outcomes if count[outcome]]
    why = " (the manifest says why)" if count["skipped"] else ""
    return f"{', '.join(parts)}{why}"


def _warn_if_not_evaluated(manifest: RunManifest, summary: Summary) -> None:
    if any(gate.note == NOT_EVALUATED for gate in manifest.gates):
        summary.rows["evaluation"] = NOT_EVALUATED
        print(
            "This model has not been evaluated: nothing says whether its lists are better than "
            "VisRank's or than the most popular items. Run jobs/evaluate.py before "
            "jobs/recommend.py, and the gates compare them.",
            flush=True,
        )


def _interactions_uri(config: RecommendJob) -> str | None:
    """The interactions; item-to-item lists of a model that needs none are made without, too."""
    if config.kind == "item_to_item":
        return config.resolve_if_exists(config.interactions.path, "interactions.parquet")
    return config.resolve(config.interactions.path, "interactions.parquet")


def recommendations_store(config: RecommendJob) -> Store:
    """Where the runs of this kind are."""
    folder = "recommendations" if config.kind == "user_to_item" else "similar_items"
    return Store.at(config.resolve(config.recommendations, folder))


def model_store(config: JobConfig, model: str | None) -> Store:
    """A model's directory: the one that is named, or the one that was trained last.

    Raises:
        InputError: none is named, and the workspace has none.
    """
    if model:
        return Store.at(model)
    models = Store.at(config.resolve(None, "models"))
    if not models.exists(LATEST):
        raise InputError(
            f"Found no trained model at {models.root}; expected one that jobs/train.py wrote. "
            "Train first, or name a model's directory with --model."
        )
    return models / str(models.read_json(LATEST)["model_id"])
