"""A model to lists: scores every user against every available item, publishes the best 100 each.

python jobs/recommend.py --local
python jobs/recommend.py --local --kind item_to_item
python jobs/recommend.py --workspace s3://shop/visrec --run_id 2026-11-22
python jobs/recommend.py --local --force_publish "half of the shop is closed today"
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import ray

from visrec.cli.launch import JobConfig, Summary, cpu_actors
from visrec.cli.progress import follow
from visrec.cli.reserve import scoring_actors
from visrec.config import check_fields, digest, plain
from visrec.errors import InputError
from visrec.features.table import read_manifest
from visrec.interactions.log import Reading
from visrec.models.arrays import Arrays
from visrec.models.artifact import LATEST, load_artifact
from visrec.paths import require_folder_name
from visrec.pipelines.input_checks import (
    require_features,
    require_interactions,
    require_model,
    require_table,
)
from visrec.publication.claims import claim
from visrec.publication.gates import NOT_EVALUATED, GateContext, GatesConfig, judge
from visrec.publication.list_tables import Layout
from visrec.publication.run import (
    Gate,
    complete,
    find_complete,
    point_to,
    publication_status,
    read_last,
    read_published,
    run_store,
    why_not_published,
)
from visrec.publication.run_spec import RunSpec
from visrec.publication.verify import ShardFacts
from visrec.recommend.incremental import Last, write_item_fingerprints
from visrec.recommend.inputs import ScoringData, ScoringInputs, prepare_scoring
from visrec.recommend.popular import popular_entries
from visrec.recommend.readback import LastPublication, check_and_rescore, without_feature
from visrec.recommend.score import ScoreResources, recommend_chain
from visrec.retrieval.rules import RulesConfig
from visrec.retrieval.similar import Kind
from visrec.sources.interactions import InteractionsConfig, digest_interactions
from visrec.storage.store import Store
from visrec.storage.tables import digest_files, require_unchanged

_OWNERS = {"user_to_item": "users", "item_to_item": "items"}  # whose lists they are
METRICS = "metrics.json"  # of the evaluation


@dataclass(frozen=True, kw_only=True)
class RecommendJob(JobConfig):
    """A model to lists.

    Attributes:
        model: the model's directory; by default the one that was trained last in the workspace.
        features: features directory; by default features of the workspace.
        interactions: what was taken by whom; taken items are not recommended.
        items: items table with an available column; by default items.parquet of the workspace,
            where it is there. Items it marks as not available are not recommended.
        users: users table, for users without any interaction; by default users.parquet of the
            workspace, where it is there. They get the most popular available items.
        kind: user_to_item gives each user items; item_to_item gives each item the items most like
            it, by the cosine of the model's item vectors.
        recommendations: where the run goes; by default recommendations of the workspace, or
            similar_items for item_to_item.
        run_id: name of the run; by default a digest of all inputs. A second start of a run does
            what is missing.
        k: entries a user.
        layout: nested, one row a user; or long, one row an entry.
        shards: files of the run; users are dealt to them by a hash of their id. By default as many
            as their lists need: at most about 32 MB each, and at least 8 files.
        resources: what scoring may take of the cluster.
        rules: what a list may hold.
        incremental: carry over the last publication's lists where nothing has changed for a user,
            and score only the rest and the new items; the lists are the same.
        gates: when a publication is held back.
        evaluation: where jobs/evaluate.py wrote how good the model is; by default evaluation of the
            workspace. Where it says nothing of this model, that gate is skipped, which the job
            says.
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
                "Found --force_publish without a reason; expected one in words, which the manifest "
                "records."
            )
        check_fields(self, "", k="[1, 1000000]", shards="[1, 1000000]")


def check(config: RecommendJob) -> None:
    require_features(config.resolve(config.features, "features"))
    check_tables(config)
    require_model(model_store(config, config.model))


def check_tables(config: RecommendJob) -> None:
    """What a night needs before its first step.

    Raises:
        InputError: a table is not there or not as declared.
    """
    require_interactions(config.interactions, _interactions_uri(config))
    require_table(config.items, "items")
    require_table(config.users, "users")
    require_table(config.rules.blocked, "rules.blocked")


def main(config: RecommendJob, summary: Summary) -> None:
    inputs = ScoringInputs(
        model=model_store(config, config.model),
        features=Store.at(config.resolve(config.features, "features")),
        interactions=config.interactions,
        interactions_uri=_interactions_uri(config),
        items_uri=config.resolve_if_exists(config.items, "items.parquet"),
        users_uri=config.resolve_if_exists(config.users, "users.parquet"),
        rules=config.rules,
    )
    recommendations = target_of(config)
    recommendations.check_writable()
    whose = _OWNERS[config.kind]
    with summary.phase("read"):
        described = ray.get(ray.remote(_describe).remote(inputs, config))
        run_id = config.run_id or described["digest"]
        run = run_store(recommendations, run_id)
        last, manifest = read_last(recommendations), read_published(run)
        if manifest is not None and manifest["inputs"] != described["inputs"]:
            raise InputError(
                f"The run {run_id} at {run.root} is complete and was made from other inputs or "
                "settings; choose another --run_id."
            )
        manifest, first = find_complete(run), False
    if manifest is None:
        manifest, first = _score(config, summary, inputs, described, run, last)
    else:
        print(f"The run {run_id} is complete already: nothing to score.", flush=True)
    forced = [gate["name"] for gate in manifest["gates"] if gate["outcome"] == "forced"]
    with summary.phase("publish"):
        moved = point_to(recommendations, run_id, rerun=not first)
    summary.rows = {
        "run": run_id,
        "model": described["model_id"],
        whose: manifest[whose],
        **({"cold users": manifest["cold_users"]} if whose == "users" else {}),
        "rows": manifest["rows"],
        **Reading(**manifest["interactions"]).summary,
        "files": len(manifest["files"]),
        "shards scored now": described.get("scored", 0),
        "lists carried over": described.get("carried", 0),
        "gates": gates_row(manifest["gates"]),
        **({"forced past": "; ".join(forced)} if forced else {}),
        "published": "now"
        if moved
        else publication_status(recommendations, run_id, rerun=not first),
        "run at": run.root,
    }
    _say_if_not_evaluated(manifest, summary)
    summary.not_published = why_not_published(recommendations, run_id, rerun=not first)
    if described.get("scored") and "score" in summary.phases:
        summary.rows[f"{whose} per second"] = round(manifest[whose] / summary.phases["score"], 1)


def _score(
    config: RecommendJob,
    summary: Summary,
    inputs: ScoringInputs,
    described: dict[str, Any],
    run: Store,
    last: Mapping[str, Any] | None,
) -> tuple[Mapping[str, Any], bool]:
    """Scores the shards that are missing and completes the run; returns its manifest, and whether
    this call wrote it."""
    run_id = run.name.removeprefix("run=")
    # Two results, so that the item arrays are an object of their own; Ray's types know of one.
    prepare: Any = ray.remote(prepare_scoring).options(num_returns=2)
    with summary.phase("prepare"):
        data, arrays = prepare.remote(inputs, config.shards, config.kind, config.k)
        counts, reading, shards, note = ray.get(_counts.remote(data, _OWNERS[config.kind]))
        target = RunSpec(
            run=run,
            shards=shards,
            k=config.k,
            layout=config.layout,
            kind=config.kind,
            marks={
                "visrec.model_id": described["model_id"],
                "visrec.run_id": run_id,
                "visrec.inputs": described["digest"],
            },
        )
        claim(run, described["digest"])
        fingerprints = dict([ray.get(ray.remote(write_item_fingerprints).remote(data, target))])
    print("  ".join(f"{value:,} {name}" for name, value in counts.items()), flush=True)
    if note:
        print(note, flush=True)
    summary.has_written = True
    whose = _OWNERS[config.kind]
    with follow("score", counts[whose], summary, unit=whose) as tally:
        actors = scoring_actors(config, config.resources, shards)
        carried = _carried_from(config, described["inputs"], last, shards)
        chain = recommend_chain(
            data, arrays, inputs.model, carried, target, config.resources, actors, tally
        )
        found = {row.pop("name"): row for row in chain.iter_rows()}
    described["scored"] = sum(not row["kept"] for row in found.values())
    described["carried"] = _total(found, "carried")
    with summary.phase("check"):
        sha256 = {name: str(facts["sha256"]) for name, facts in found.items()}
        gates, without_feature = _check(
            config, inputs, described, data, arrays, target, sha256, last
        )
    manifest = {
        **_described_run(config, described, run_id, found),
        "available": counts["available"],
        "interactions": plain(reading),
        "without_feature": without_feature,
        "fingerprints": fingerprints
        | {str(row["fingerprints"]): str(row["fingerprints_sha256"]) for row in found.values()},
        "seconds": {name: round(s, 2) for name, s in summary.phases.items()},
    }
    with summary.phase("publish"):
        return complete(run, manifest, gates, config.force_publish, described["digest"])


def _described_run(
    config: RecommendJob, described: Mapping[str, Any], run_id: str, found: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run's manifest says of what it was made from, and of its files.

    Args:
        config: of the job.
        described: digests of the inputs.
        run_id: of the run.
        found: what scoring says of each file, by its name.
    """
    return {
        "run_id": run_id,
        "model_id": described["model_id"],
        "inputs": described["inputs"],
        "config_digest": described["digest"],
        "layout": config.layout,
        "kind": config.kind,
        "k": config.k,
        "before": config.interactions.before(),
        _OWNERS[config.kind]: _total(found, "owners"),
        "cold_users": _total(found, "cold"),
        "rows": _total(found, "rows"),
        "files": {
            name: {
                "rows": int(row["rows"]),
                "bytes": int(row["bytes"]),
                "sha256": str(row["sha256"]),
            }
            for name, row in sorted(found.items())
        },
    }


def _total(found: Mapping[str, Any], what: str) -> int:
    return sum(int(row[what]) for row in found.values())


def gates_row(gates: Sequence[Mapping[str, Any]]) -> str:
    """How many gates a run passed, and how many it did not: those that were skipped are no proof of
    anything."""
    count = Counter(gate["outcome"] for gate in gates)
    parts = [f"{count[key]} {key}" for key in ("passed", "skipped", "forced") if count[key]]
    why = " (the manifest says why)" if count["skipped"] else ""
    return f"{', '.join(parts)}{why}"


def _say_if_not_evaluated(manifest: Mapping[str, Any], summary: Summary) -> None:
    """Says of a model that nobody has judged that its lists may be worse than no model's."""
    if any(gate["note"] == NOT_EVALUATED for gate in manifest["gates"]):
        summary.rows["evaluation"] = NOT_EVALUATED
        print(
            "This model has not been evaluated: nothing says whether its lists are better than "
            "VisRank's or than the most popular items. Run jobs/evaluate.py before "
            "jobs/recommend.py to have the gates compare them.",
            flush=True,
        )


def _carried_from(
    config: RecommendJob, inputs: dict[str, Any], last: Mapping[str, Any] | None, shards: int
) -> Last | None:
    """The last publication, where its lists are what tonight's would be but for users and items."""
    alike = ("model", "k", "shards", "layout", "kind", "rules")
    if last is None or not config.incremental or "fingerprints" not in last:
        return None
    if any(last["inputs"].get(key) != inputs[key] for key in alike):
        return None
    if len(last["files"]) != shards or last["forced"]:  # what the gates found may be in its lists
        return None
    sha256 = {**_sha256(last), **last["fingerprints"]}
    return Last(run_store(target_of(config), last["run_id"]), last["config_digest"], sha256)


def _sha256(manifest: Mapping[str, Any]) -> dict[str, str]:
    return {name: facts["sha256"] for name, facts in manifest["files"].items()}


def _check(
    config: RecommendJob,
    inputs: ScoringInputs,
    described: dict[str, Any],
    data: "ray.ObjectRef[ScoringData]",
    arrays: "ray.ObjectRef[Arrays]",
    target: RunSpec,
    sha256: dict[str, str],
    last: Mapping[str, Any] | None,
) -> tuple[list[Gate], Mapping[str, float]]:
    """Reads the files back, some shards a task, and judges them all in one.

    Returns:
        The gates, and the shares of what has no feature, by which the next night's are judged.

    Raises:
        InputError: the inputs are not what they were before they were read.
    """
    again = ray.remote(_describe).remote(inputs, config)
    lists = None
    if last is not None and (last["kind"] != config.kind or _is_later(last, config)):
        last = None
    if last is not None:
        lists = LastPublication(run_store(target_of(config), last["run_id"]), _sha256(last))
    # A task sums up the shards it reads: of each shard on its own, the counts of all items would
    # be more than the lists.
    tasks = cpu_actors(1, min(64, target.shards))
    check = ray.remote(check_and_rescore)
    facts = ray.get(
        [
            check.remote(
                data, arrays, inputs.model, target, sha256, lists, range(task, target.shards, tasks)
            )
            for task in range(tasks)
        ]
    )
    if lists is not None and any(each.damaged_of_last for each in facts):
        print(
            f"Files of the last publication, {lists.run.root}, are missing or are not what was "
            "published: the gates compare with the rest of it.",
            flush=True,
        )
    require_unchanged(described["inputs"], ray.get(again)["inputs"])
    evaluation = Store.at(config.resolve(config.evaluation, "evaluation"))
    judged: tuple[list[Gate], Mapping[str, float]] = ray.get(
        ray.remote(_judge).remote(config, data, inputs, described, last, evaluation, *facts)
    )
    return judged


def _is_later(last: Any, config: RecommendJob) -> bool:
    """Whether a publication knew what this run does not: a night that is filled in is not judged by
    a shop of later."""
    before = config.interactions.before()
    return None not in (before, last["before"]) and last["before"] > before


def _judge(
    config: RecommendJob,
    data: ScoringData,
    inputs: ScoringInputs,
    described: dict[str, Any],
    last: Any,
    evaluation: Store,
    *facts: ShardFacts,
) -> tuple[list[Gate], Mapping[str, float]]:
    """All gates of the run, from the facts of its shards and what else is known of the night; and
    the shares of what has no feature."""
    known = evaluation.read_json(METRICS) if evaluation.exists(METRICS) else None
    context = GateContext(
        kind=config.kind,
        k=config.k,
        available_N=data.available_N,
        artist_N=data.artist_N,
        taken_N=data.count_N,
        popular_N=popular_entries(data, config.k),
        personal=described["personal"],
        interactions=(len(data.profiles.values) + data.without_item, data.without_item),
        items=without_feature(inputs.items_uri, data.item_ids),
        model=described["inputs"]["model"],
        tables=[name for name in ("items", "users") if described["inputs"][name]],
        last=last,
        evaluation=known,
    )
    return judge(reduce(add, facts), context, config.gates), context.without_feature


def _interactions_uri(config: RecommendJob) -> str | None:
    """The interactions; lists of items are made without, too, by a model that needs none."""
    if config.kind == "item_to_item":
        return config.resolve_if_exists(config.interactions.path, "interactions.parquet")
    return config.resolve(config.interactions.path, "interactions.parquet")


def target_of(config: RecommendJob) -> Store:
    folder = "recommendations" if config.kind == "user_to_item" else "similar_items"
    return Store.at(config.resolve(config.recommendations, folder))


def model_store(config: JobConfig, given: str | None) -> Store:
    """A model's directory: the one given, or that of the workspace's last trained.

    Raises:
        InputError: none was given and none is there.
    """
    if given:
        return Store.at(given)
    models = Store.at(config.resolve(None, "models"))
    if not models.exists(LATEST):
        raise InputError(
            f"Found no trained model at {models.root}; expected one that jobs/train.py wrote. "
            "Train first, or name a model's directory with --model."
        )
    return models / str(models.read_json(LATEST)["model_id"])


def _describe(inputs: ScoringInputs, config: RecommendJob) -> dict[str, Any]:
    """Digests of all that decides the lists."""
    artifact = load_artifact(inputs.model)
    tables = {"items": inputs.items_uri, "users": inputs.users_uri}
    rules = config.rules
    facts = {
        "model": artifact.digest,
        "features": read_manifest(inputs.features).digest,
        # With those that do not count for their rating: they are not recommended.
        "interactions": inputs.interactions_uri
        and digest_interactions(
            dataclasses.replace(inputs.interactions, min_rating=None), inputs.interactions_uri
        ),
        **{name: digest_files(uri, name) if uri else None for name, uri in tables.items()},
        "min_rating": inputs.interactions.min_rating,
        "as_of": inputs.interactions.as_of,
        "k": config.k,
        "shards": config.shards,
        "layout": config.layout,
        "kind": config.kind,
        "rules": {**plain(rules), "blocked": None},  # what is blocked stands beside
        "blocked": rules.blocked and digest_files(rules.blocked, "rules.blocked"),
    }
    return {
        "model_id": artifact.model_id,
        "personal": artifact.model.needs.personal,
        "inputs": facts,
        "digest": digest(facts),
    }


@ray.remote
def _counts(data: ScoringData, whose: str) -> tuple[dict[str, int], Reading, int, str | None]:
    counts = {
        whose: len(data.query_ids),
        "in the catalogue": len(data.item_ids),
        "available": int(data.available_N.sum()),
    }
    return counts, data.reading, len(data.shard_offsets) - 1, data.note
