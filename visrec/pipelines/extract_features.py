"""Pictures to features: reads new pictures, runs a pretrained network on them, commits the table.

python jobs/extract_features.py --local
python jobs/extract_features.py --images s3://shop/pictures --workspace s3://shop/visrec
python jobs/extract_features.py --local --text.model sentence-transformers/all-MiniLM-L6-v2

With --text.model the titles and descriptions of the items become features of their own as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from visrec.cli.job import JobConfig
from visrec.cli.progress import track_progress
from visrec.cli.reserve import reserve_workers
from visrec.cli.resources import cluster_total, default_cpu_workers, require_resources
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.features.backbones import BackboneConfig
from visrec.features.commit import commit_extraction
from visrec.features.decode import PictureLimits
from visrec.features.extract import (
    CHUNK,
    Extraction,
    ExtractResources,
    describe_backbone,
    extract_chain,
)
from visrec.features.planning import ExtractionPlan, plan_extraction
from visrec.features.sentences import TextConfig
from visrec.features.table import MANIFEST, read_manifest
from visrec.pipelines.extract_texts import TextJob, extract_texts
from visrec.pipelines.input_checks import require_pictures, require_table
from visrec.storage.store import Store

_MAX_CPU_WORKERS = 8  # unless --resources.workers says otherwise
_TASK_CPUS = 2  # beside the workers: one for tasks that read and decode, one for tasks that write


@dataclass(frozen=True, kw_only=True)
class ExtractJob(JobConfig):
    """Pictures to features.

    Attributes:
        images: directory or prefix of <item_id>.jpg (.png, .webp, .gif), or Parquet with item_id
            and image (bytes) or uri; by default `images` in the workspace.
        features: directory of the features; by default `features` in the workspace.
        items: items table with the columns title and description, for --text.model; by default
            items.parquet in the workspace.
        text: the model that embeds them. Then the workspace may be without pictures.
        text_features: directory of the texts' features; by default `text_features` in the
            workspace.
        backbone: the network.
        limits: larger pictures are rejected before they are decoded.
        max_rejected: share of the pictures, and of the texts, that may be rejected; above it
            nothing is committed.
        resources: workers that run the network, and the resources of each.
    """

    images: str | None = None
    features: str | None = None
    items: str | None = None
    text: TextConfig = field(default_factory=TextConfig)
    text_features: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    limits: PictureLimits = field(default_factory=PictureLimits)
    max_rejected: float = 0.05
    resources: ExtractResources = field(default_factory=ExtractResources)

    def __post_init__(self) -> None:
        check_fields(self, "", max_rejected="[0, 1]")


def check(config: ExtractJob) -> None:
    if takes_pictures(config):
        require_pictures(config.resolve(config.images, "images"))
    if config.text.model is not None:
        require_table(items_uri(config), "items")


def takes_pictures(config: ExtractJob) -> bool:
    """Whether pictures are extracted: not if only texts can be.

    With --text.model, a workspace may have no pictures, or features that were imported.
    """
    if config.text.model is None or config.images is not None:
        return True
    features = Store.at(config.resolve(config.features, "features"))
    if features.exists(MANIFEST) and read_manifest(features).identity.is_imported:
        return False
    return any(config.resolve_if_exists(None, name) for name in ("images", "images.parquet"))


def items_uri(config: ExtractJob) -> str:
    """Where the items with their texts are."""
    return config.resolve(config.items, "items.parquet")


def main(config: ExtractJob, summary: Summary) -> None:
    """Extracts the features of the pictures, and those of the texts if there is a text model."""
    rows: dict[str, Any] = {}  # values of any type that a summary shows
    if takes_pictures(config):
        extract_pictures(config, summary)
        rows = summary.rows
    if config.text.model is not None:
        job = TextJob(
            items_uri=items_uri(config),
            store=Store.at(config.resolve(config.text_features, "text_features")),
            text=config.text,
            max_rejected=config.max_rejected,
            resources=config.resources,
            workers=count_workers(config),
        )
        extract_texts(job, summary)
        summary.rows = {**rows, **summary.rows}


def extract_pictures(config: ExtractJob, summary: Summary) -> None:
    """Reads new and changed pictures, runs the network on them and commits the table."""
    images = config.resolve(config.images, "images")
    store = Store.at(config.resolve(config.features, "features"))
    store.check_writable()
    with summary.phase("plan"):
        identity, preprocessing = ray.get(ray.remote(describe_backbone).remote(config.backbone))
        plan = ray.remote(plan_extraction).remote(images, store, identity, config.limits)
        pictures, pending, not_pictures = ray.get(_counts.remote(plan))
    print(f"{pictures:,} pictures, {pending:,} to read ({identity})", flush=True)

    written, computed = [], 0
    if pending:
        workers = min(count_workers(config), -(-pending // CHUNK))
        with (
            reserve_workers(workers, config.resources.per_worker) as reserved,
            track_progress("extract", pending, summary) as progress_actor,
        ):
            summary.has_written = True
            extraction = Extraction(
                plan=plan,
                store=store,
                backbone=config.backbone,
                identity=identity,
                preprocessing=preprocessing,
                limits=config.limits,
                resources=config.resources,
                progress_actor=progress_actor,
            )
            for row in extract_chain(extraction, pending, reserved).iter_rows():
                written.append(row["name"])
                computed += row["computed"]
    with summary.phase("commit"):
        manifest, rejected = ray.get(
            ray.remote(commit_extraction).remote(
                plan, written, store, identity, config.limits, config.max_rejected
            )
        )
    summary.rows = {
        "pictures": pictures,
        "run through the network": computed,
        "features": manifest.rows,
        "rejected": sum(rejected.values()),
        "rejected by reason": rejected,
        "files left out": not_pictures,
        "backbone": str(identity),
        "features at": store.root,
        "digest": manifest.digest,
    }
    if computed:
        summary.rows["pictures per second"] = round(computed / summary.phases["extract"], 1)


@ray.remote
def _counts(plan: ExtractionPlan) -> tuple[int, int, Mapping[str, int]]:
    return plan.picture_count, plan.pending.num_rows, plan.not_pictures


def count_workers(config: ExtractJob) -> int:
    """How many workers run the network; leaves CPUs for the tasks that feed them."""
    resources = config.resources
    if resources.workers:
        workers = resources.workers
    elif resources.use_gpu:
        workers = max(1, cluster_total("GPU"))
    else:
        workers = default_cpu_workers(resources.cpus_per_worker, _MAX_CPU_WORKERS)
    needed = {name: workers * n for name, n in resources.per_worker.items()}
    needed["CPU"] += _TASK_CPUS
    require_resources(needed, config, "resources.workers")
    return workers
