"""One run of lists: reads model and tables, scores, checks by the gates, and publishes."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from visrec.cli.cluster import ensure_ray
from visrec.cli.output import say, warn
from visrec.cli.progress_line import track_progress
from visrec.cli.resources import default_cpu_workers, scoring_workers
from visrec.cli.summary import Summary
from visrec.errors import InputError
from visrec.evaluation.results import METRICS
from visrec.pipelines.recommend_job import (
    RecommendJob,
    recommendations_store,
    scoring_inputs,
)
from visrec.pipelines.recommend_summary import QUERY_NOUNS, summary_rows, warn_if_not_compared
from visrec.publication.claims import claim_run
from visrec.publication.completion import finish_run, read_complete_run
from visrec.publication.gate_context import NO_LAST, ServingChoice
from visrec.publication.held_out_gates import HeldOutFigures
from visrec.publication.manifest import RunManifest, ShardFile, read_run_manifest
from visrec.publication.pointer import read_published
from visrec.publication.publish import publication_status, publish_run
from visrec.publication.run_spec import RunSpec, run_store
from visrec.recommend.fingerprint_files import write_item_fingerprints
from visrec.recommend.inputs import ScoringData, ScoringInputs, ScoringOverview, prepare_scoring
from visrec.recommend.published_run import PublishedRun
from visrec.recommend.readback import RunChecks, WrittenRun, read_back_and_rescore
from visrec.recommend.run_gates import GateInputs, GateResults, gates_of_run
from visrec.recommend.run_inputs import ListSettings, RunSource, read_run_source
from visrec.recommend.score import ScoringTask, score_in_process, scoring_dataset
from visrec.recommend.writer import WrittenShard
from visrec.storage.store import Store
from visrec.storage.table_pieces import has_more_rows
from visrec.storage.tables import require_unchanged
from visrec.tasks import Ref, call, get, map_calls, on_ray, share, submit

# Above this number of queries, separate processes are faster, although they take 9 s to start (two
# cores). A query costs 0.14 ms of a core in addition to the search, and that part does not run on
# several threads.
_MAX_LOCAL_QUERIES = 65_536
# 20 interactions for each of these users; larger tables are read in partitions, so that no process
# holds all.
_MAX_LOCAL_INTERACTIONS = 20 * _MAX_LOCAL_QUERIES


@dataclass(frozen=True)
class _Run:
    """The run that the job works on.

    Attributes:
        config: the configuration of the job.
        choice: why a night chose the model; None if no night chose it.
        inputs: where the job reads.
        source: the model, and digests of all inputs.
        store: the run's directory.
        last: the manifest of the last publication, if any.
    """

    config: RecommendJob
    choice: ServingChoice | None
    inputs: ScoringInputs
    source: RunSource
    store: Store
    last: RunManifest | None

    @property
    def run_id(self) -> str:
        return self.store.name.removeprefix("run=")

    @property
    def query_noun(self) -> str:
        """What the queries are: users or items."""
        return QUERY_NOUNS[self.config.kind]


@dataclass(frozen=True)
class _Prepared:
    """The scoring data, which may be in Ray's object store, and what the driver knows of it.

    Attributes:
        data: queries and items.
        arrays: the model's item arrays.
        overview: counts of the data.
        spec: the files that the run will have.
        fingerprints: SHA-256 of the file with the items' fingerprints, by name.
    """

    data: Ref
    arrays: Ref
    overview: ScoringOverview
    spec: RunSpec
    fingerprints: dict[str, str]


def main(config: RecommendJob, summary: Summary, choice: ServingChoice | None = None) -> None:
    """Reads the model and the tables, writes `run=<run_id>/`, and moves `_latest.json` to it.

    Args:
        config: the configuration of the job.
        summary: receives what was done.
        choice: why a night chose the model; None if no night chose it.
    """
    recommendations = recommendations_store(config)
    recommendations.check_writable()
    with summary.phase("read"):
        run = _read_run(config, choice, recommendations)
        manifest = _find_complete(run)
    written: list[WrittenShard] = []
    completed_by_another = manifest is not None
    if manifest is None:
        manifest, completed_by_another, written = _make_run(run, summary)
    else:
        say(f"The run {run.run_id} is complete already: nothing to score.")
    with summary.phase("publish"):
        moved = publish_run(
            recommendations,
            run.run_id,
            completed_by_another=completed_by_another,
            tables=config.publish.tables,
        )
    status = publication_status(
        recommendations, run.run_id, completed_by_another=completed_by_another
    )
    published = "now" if moved else status.summary
    summary.rows = summary_rows(manifest, written, published, run.store.root)
    summary.rows |= status.tables_row(config.publish.tables)
    summary.not_published = status.explanation
    warn_if_not_compared(manifest, summary)
    if any(not shard.kept for shard in written):
        rate = manifest.queries / summary.phases["score"]
        summary.rows[f"{run.query_noun} per second"] = round(rate, 1)


def _make_run(run: _Run, summary: Summary) -> tuple[RunManifest, bool, list[WrittenShard]]:
    """Scores, checks and completes a run.

    Returns:
        The manifest, whether another start had completed the run meanwhile, and the shards.
    """
    config = run.config
    if not on_ray() and (
        config.resources.workers or config.resources.use_gpu or _is_large(run.inputs)
    ):
        ensure_ray(config, summary)
        # Ray runs now, so the inputs also name the folder of prepared partitions.
        run = dataclasses.replace(run, inputs=scoring_inputs(config))
    with summary.phase("prepare"):
        prepared = _prepare(run)
    # Reached by many queries with few interactions, or by item-to-item lists. If Ray runs already,
    # nothing changes.
    if prepared.overview.queries > _MAX_LOCAL_QUERIES:
        ensure_ray(config, summary)
        shared = {"data": share(prepared.data), "arrays": share(prepared.arrays)}
        prepared = dataclasses.replace(prepared, **shared)
    written = _score(run, prepared, summary)
    with summary.phase("check"):
        gates = _evaluate_gates(run, prepared, written)
    draft = _draft_manifest(run, prepared, written, gates, summary)
    with summary.phase("publish"):
        manifest, completed_by_another = finish_run(
            run.store, draft, gates.gates, config.force_publish, draft.inputs_digest
        )
    return manifest, completed_by_another, written


def _read_run(config: RecommendJob, choice: ServingChoice | None, recommendations: Store) -> _Run:
    """Reads the model and digests all inputs; without `run_id`, the digest is the run's id."""
    inputs = scoring_inputs(config)
    source = call(read_run_source, inputs, _list_settings(config))
    store = run_store(recommendations, config.run_id or source.digests.digest)
    _, last = read_published(recommendations, warn)
    return _Run(config, choice, inputs, source, store, last)


def _is_large(inputs: ScoringInputs) -> bool:
    """Whether the tables are too large to be read by one process."""
    uri, users = inputs.interactions_uri, inputs.users_table
    if uri and has_more_rows(inputs.interactions.table(uri), _MAX_LOCAL_INTERACTIONS):
        return True
    return users is not None and has_more_rows(users, _MAX_LOCAL_QUERIES)


def _list_settings(config: RecommendJob) -> ListSettings:
    return ListSettings(k=config.k, shards=config.shards, layout=config.layout, kind=config.kind)


def _find_complete(run: _Run) -> RunManifest | None:
    """The manifest of the run, if it is complete.

    Raises:
        InputError: the run was made from other inputs.
    """
    manifest = read_run_manifest(run.store)
    if manifest is not None and manifest.inputs != run.source.digests.to_dict():
        raise InputError(
            f"The run {run.run_id} at {run.store.root} is complete and was made from other inputs "
            "or settings; choose another --run_id."
        )
    # Only now are stray files removed: not from a run of other inputs.
    return read_complete_run(run.store)


def _prepare(run: _Run) -> _Prepared:
    """Loads the scoring data into the object store, claims the run and writes its first file.

    That file has the fingerprints of the items.
    """
    config, inputs_digest = run.config, run.source.digests.digest
    # Two results, so that the item arrays are an object of their own.
    data, arrays = submit(
        prepare_scoring, run.inputs, config.shards, config.kind, config.k, results=2
    )
    overview = call(ScoringData.overview, data)
    metadata = {
        "visrec.model_id": run.source.model_id,
        "visrec.run_id": run.run_id,
        "visrec.inputs": inputs_digest,
    }
    spec = RunSpec(run.store, overview.shards, config.k, config.layout, config.kind, metadata)
    claim_run(run.store, inputs_digest)
    name, sha256 = call(write_item_fingerprints, data, spec)
    return _Prepared(data, arrays, overview, spec, {name: sha256})


def _score(run: _Run, prepared: _Prepared, summary: Summary) -> list[WrittenShard]:
    """Scores the shards that are missing, and writes their files."""
    config, overview = run.config, prepared.overview
    say(
        f"{overview.queries:,} {run.query_noun}  {overview.items:,} in the catalogue  "
        f"{overview.available:,} available",
    )
    if overview.block_list_warning:
        say(overview.block_list_warning, "warning")
    summary.has_written = True
    with track_progress("score", overview.queries, summary, unit=run.query_noun) as progress_actor:
        task = ScoringTask(
            data=prepared.data,
            arrays=prepared.arrays,
            model=run.inputs.model,
            last=_run_to_carry_over(run, overview.shards),
            spec=prepared.spec,
            resources=config.resources,
        )
        if on_ray():
            workers = scoring_workers(config, config.resources, overview.shards)
            rows = scoring_dataset(task, workers, progress_actor).iter_rows()
            written = list(map(WrittenShard.from_row, rows))
        else:
            written = score_in_process(task, progress_actor)
        return sorted(written, key=lambda shard: shard.name)


def _run_to_carry_over(run: _Run, shards: int) -> PublishedRun | None:
    """The last publication, if its lists may be carried over."""
    last = run.last
    if last is None or not run.config.incremental or not last.fingerprints:
        return None
    if not run.source.digests.allows_reuse_of(last.inputs):
        return None
    if len(last.files) != shards or last.forced:  # lists that failed a gate are not carried over
        return None
    return PublishedRun.of(recommendations_store(run.config), last)


def _evaluate_gates(run: _Run, prepared: _Prepared, written: Sequence[WrittenShard]) -> GateResults:
    """Reads the files back, and evaluates the gates in one task.

    Raises:
        InputError: the inputs changed while they were read.
    """
    reread = submit(read_run_source, run.inputs, _list_settings(run.config))
    last, why_no_last = _run_to_compare_with(run)
    checks = _read_back(run, prepared, written, last)
    require_unchanged(run.source.digests.to_dict(), get(reread).digests.to_dict())
    gate_inputs = GateInputs(
        source=run.source,
        items_table=run.inputs.items_table,
        last=last,
        why_no_last=why_no_last,
        evaluation=_read_evaluation(run),
        thresholds=run.config.gates,
        choice=run.choice,
    )
    return call(gates_of_run, gate_inputs, prepared.data, *checks)


def _run_to_compare_with(run: _Run) -> tuple[RunManifest | None, str]:
    """The publication that the gates compare the run with, or None; and why it is None."""
    if run.last is None:
        return None, NO_LAST
    why_no_last = _why_not_compared(run.last, run.config)
    return (run.last, NO_LAST) if why_no_last is None else (None, why_no_last)


def _read_back(
    run: _Run, prepared: _Prepared, written: Sequence[WrittenShard], last: RunManifest | None
) -> list[RunChecks]:
    """Reads the files back in tasks of some shards each, and returns the counts of each task.

    The counts of one shard have a number for each item, so sent one by one they would be larger
    than the lists. So a task adds up the counts of its shards.
    """
    written_run = WrittenRun(
        spec=prepared.spec,
        sha256={shard.name: shard.sha256 for shard in written},
        last=PublishedRun.of(recommendations_store(run.config), last) if last else None,
    )
    shards = prepared.spec.shards
    tasks = default_cpu_workers(1, min(64, shards)) if on_ray() else 1
    arguments = (prepared.data, prepared.arrays, run.inputs.model, written_run)
    checks = map_calls(
        read_back_and_rescore, [(*arguments, range(task, shards, tasks)) for task in range(tasks)]
    )
    if written_run.last is not None and any(each.lists.damaged_last_files for each in checks):
        say(
            f"Files of the last publication, {written_run.last.run.root}, are missing or are not "
            "what was published: the gates compare with the rest of it.",
            "warning",
        )
    return checks


def _read_evaluation(run: _Run) -> Any:
    """The metrics.json that the gates check; None if there is none.

    If the workspace's evaluation does not include this model, the evaluation that a night made of
    the model is used. So a model that a night rejected for its figures fails the gates here too.
    """
    config = run.config
    evaluation = Store.at(config.resolve(config.evaluation, "evaluation"))
    metrics = _read_metrics(evaluation)
    digest = run.source.digests.model
    row = HeldOutFigures.from_json(metrics).row_of(digest)
    if config.evaluation is not None or row is not None:
        return metrics
    return _read_metrics(evaluation / run.source.model_id)


def _read_metrics(evaluation: Store) -> Any:
    return evaluation.read_json(METRICS) if evaluation.exists(METRICS) else None


def _why_not_compared(last: RunManifest, config: RecommendJob) -> str | None:
    """Why the gates do not compare the run with the last publication; None if they do.

    A backfilled night is not compared with a later state of the shop.
    """
    if last.kind != config.kind:
        return f"the last publication, {last.run_id}, has lists of another kind"
    cutoff, last_cutoff = config.interactions.cutoff_timestamp(), last.cutoff_timestamp
    if cutoff is not None and last_cutoff is not None and last_cutoff > cutoff:
        return f"the last publication, {last.run_id}, has a later cutoff"
    return None


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
        model_name=source.model_name,
        choice=run.choice.reason if run.choice else None,
        inputs=source.digests.to_dict(),
        inputs_digest=source.digests.digest,
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
