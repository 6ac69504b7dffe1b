"""Whether a run is possible here: tests the store, asks every node, and says what is missing.

visrec doctor --local
visrec doctor s3://shop/visrec --train_config configs/train.yaml

Exit code 0: all checks passed; 2: a check failed, and its finding says why. Nothing but the summary
stays in the workspace.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ray

from visrec.cli.job import JobConfig
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.extract import ExtractResources
from visrec.pipelines.capacity_checks import (
    ProcessRequest,
    check_memory,
    check_room,
    check_workspace_disk,
    estimate_workload,
)
from visrec.pipelines.cluster_checks import (
    ask_nodes,
    check_answers,
    check_clocks,
    check_session_disk,
    check_token,
    check_versions,
    check_workspace_access,
)
from visrec.pipelines.extract_features import ExtractJob
from visrec.pipelines.night_jobs import load_job
from visrec.pipelines.recommend_job import RecommendJob
from visrec.pipelines.train import TrainJob
from visrec.recommend.score import ScoreResources
from visrec.storage.preflight import WRITABLE, Finding, check_store, clean_up, scratch_store
from visrec.storage.store import Store
from visrec.training.task import TrainResources


@dataclass(frozen=True, kw_only=True)
class DoctorJob(JobConfig):
    """Whether a run is possible here.

    Attributes:
        users: number of users of the run; by default estimated from the interactions, at 20 a
            user.
        items: number of items of the run; by default that of the workspace's features.
        feature_dim: D of the features; by default that of the workspace's features, or 1280.
        extract_config: YAML with keys of `visrec extract`, whose resources the run will
            need; by default its defaults.
        train_config: YAML with keys of `visrec train`.
        recommend_config: YAML with keys of `visrec recommend`.
        may_grow: the cluster adds nodes when a job needs them; a job that is too large for it now
            is reported, but is no failure.
        answer_within_s: seconds in which each node must answer.
    """

    users: int = 0
    items: int = 0
    feature_dim: int = 0
    extract_config: str | None = None
    train_config: str | None = None
    recommend_config: str | None = None
    may_grow: bool = False
    answer_within_s: float = 60.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            "",
            users="[0, 1000000000000]",
            items="[0, 1000000000000]",
            feature_dim="[0, 65536]",
            answer_within_s="(0, 86400]",
        )


@dataclass(frozen=True)
class RunResources:
    """The resources that the jobs of a run request: from their YAML files, otherwise the
    defaults."""

    extract: ExtractResources
    train: TrainResources
    recommend: ScoreResources


def check(config: DoctorJob) -> None:
    load_resources(config)


def load_resources(config: DoctorJob) -> RunResources:
    """Reads the resources from the YAML file of each job.

    Raises:
        InputError: a file has an unknown key or a wrong value.
    """
    return RunResources(
        load_job(ExtractJob, config.extract_config, config).resources,
        load_job(TrainJob, config.train_config, config).resources,
        load_job(RecommendJob, config.recommend_config, config).resources,
    )


def main(config: DoctorJob, summary: Summary) -> None:
    workspace = Store.at(config.workspace)
    scratch = scratch_store(workspace)
    try:
        with summary.phase("store"):
            findings = check_store(workspace, scratch)
        is_writable = any(found.name == WRITABLE and found.passed for found in findings)
        with summary.phase("cluster"):
            findings += examine_cluster(config, workspace, scratch if is_writable else None)
    finally:
        with summary.phase("clean up"):
            cleaned_up = clean_up(scratch)
    if is_writable:
        findings.append(cleaned_up)
    report(findings, workspace if is_writable else None, summary)


def examine_cluster(config: DoctorJob, workspace: Store, scratch: Store | None) -> list[Finding]:
    """Asks every node, and compares what the cluster has with what the jobs will need.

    Args:
        config: the doctor's configuration.
        workspace: the workspace of the run.
        scratch: the folder whose probe file every node should read; None if it has none.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes, silent = ask_nodes(alive, scratch, config.answer_within_s)
    resources = [node["Resources"] for node in alive]
    job = load_job(RecommendJob, config.recommend_config, config)
    workload = estimate_workload(job, config.users, config.items, config.feature_dim)
    run = load_resources(config)
    return [
        check_answers(nodes, silent, config.answer_within_s),
        check_versions(nodes),
        check_clocks(nodes),
        check_token(nodes, is_local=config.local),
        *([check_workspace_access(nodes, on_s3=workspace.is_s3)] if scratch else []),
        *[check_room(request, resources, may_grow=config.may_grow) for request in requests(run)],
        *check_memory(workload, resources, run.recommend),
        check_session_disk(nodes),
        *([] if workspace.is_s3 else [check_workspace_disk(workspace, workload)]),
    ]


def requests(run: RunResources) -> list[ProcessRequest]:
    """The processes that each job will start. A job that chooses their number can do with one."""
    extract, train, score = run.extract, run.train, run.recommend
    return [
        ProcessRequest(
            "extract",
            extract.workers or 1,
            _per_worker(extract),
            feeder_cpus=extract.task_cpus,
        ),
        ProcessRequest("train", train.workers, _per_worker(train)),
        ProcessRequest("recommend", score.workers or 1, _per_worker(score)),
    ]


def _per_worker(resources: ExtractResources | TrainResources | ScoreResources) -> dict[str, float]:
    gpus = 1.0 if resources.use_gpu else 0.0
    return {"CPU": float(resources.cpus_per_worker), "GPU": gpus}


def report(findings: Sequence[Finding], workspace: Store | None, summary: Summary) -> None:
    """Puts the findings into the summary.

    If a check failed, it also prints the summary and writes it to the workspace, because the job
    ends here.

    Raises:
        InputError: a check failed.
    """
    failed = [finding for finding in findings if finding.passed is False]
    summary.rows = {finding.name: str(finding) for finding in findings}
    if not failed:
        unknown = sum(finding.passed is None for finding in findings)
        suffix = f", {unknown} unknown" if unknown else ""
        summary.rows["verdict"] = f"pass: {len(findings)} findings, none failed{suffix}"
        return
    summary.rows["verdict"] = f"FAIL: {', '.join(finding.name for finding in failed)}"
    summary.print()
    if workspace is not None:
        summary.write(workspace)
    # Findings with the same advice share one sentence of it.
    paragraphs = [
        "; ".join(f.complaint for f in failed if f.advice == advice) + f". {advice}"
        for advice in dict.fromkeys(finding.advice for finding in failed)
    ]
    raise InputError(f"The checks failed. {' '.join(paragraphs)}")
