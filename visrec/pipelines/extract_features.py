"""Computes the features of pictures: runs a pretrained network on new ones, commits the table.

visrec extract --local
visrec extract --images s3://shop/pictures --workspace s3://shop/visrec
visrec extract --local --text.model sentence-transformers/all-MiniLM-L6-v2

With --text.model the titles and descriptions of the items become features of their own as well.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from visrec.cli.cluster import ensure_ray
from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.progress_line import track_progress
from visrec.cli.reserve import reserve_workers
from visrec.cli.resources import count_workers, require_resources
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.cores import usable_cores
from visrec.features.backbones import Backbone, BackboneConfig, load_backbone
from visrec.features.commit import commit_extraction
from visrec.features.decode import PictureLimits, Preprocessing
from visrec.features.extract import (
    ExtractionContext,
    ExtractResources,
    describe,
    describe_backbone,
    extract_chain,
    extract_in_process,
)
from visrec.features.planning import CHUNK, ExtractionPlan, extraction_settings, plan_extraction
from visrec.features.sentences import TextConfig
from visrec.features.table import FEATURES_MANIFEST, Identity, Manifest, read_manifest
from visrec.pipelines.extract_texts import TextJob, extract_texts
from visrec.pipelines.input_checks import require_pictures, require_table
from visrec.pipelines.job_tables import items_table
from visrec.progress import ProgressHandle
from visrec.sources.images import PictureSource
from visrec.sources.name_patterns import NamePattern
from visrec.storage import schemas
from visrec.storage.input_table import InputTable
from visrec.storage.store import Store
from visrec.storage.workspace_tables import missing_table
from visrec.tasks import Ref, call, on_ray, submit

_MAX_CPU_WORKERS = 16  # unless --resources.workers says otherwise
# More threads in one process gain nothing: Python code, about a tenth of the network's time, runs
# in one thread at a time.
_MAX_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class ExtractJob(JobConfig):
    """Computes the features of pictures.

    Attributes:
        images: directory or prefix of <item_id>.jpg (.png, .webp, .gif, .avif), or Parquet with
            item_id and image (bytes) or uri (a path, s3:// or https://), and several rows for
            several pictures of an item; by default `images` in the workspace.
        image_pattern: names of several pictures of an item, such as {item_id}_{view}.jpg or
            {item_id}/{view}.jpg; by default a name is an item id.
        features: directory of the features; by default `features` in the workspace.
        items: items table with the columns title and description, for the text model; by default
            items.* in the workspace.
        items_columns: its columns that have other names in the files, such as {item_id: sku}.
        text: the sentence model for titles and descriptions. With it, pictures are optional.
        text_features: directory of the texts' features; by default `text_features` in the
            workspace.
        backbone: the network.
        limits: larger pictures are rejected before they are decoded.
        max_rejected: share of the pictures, and of the texts, that may be rejected; above it
            nothing is committed.
        resources: workers that run the network, and the resources of each.
    """

    images: str | None = None
    image_pattern: str | None = None
    features: str | None = None
    items: str | None = None
    items_columns: dict[str, str] = field(default_factory=dict)
    text: TextConfig = field(default_factory=TextConfig)
    text_features: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    limits: PictureLimits = field(default_factory=PictureLimits)
    max_rejected: float = 0.05
    resources: ExtractResources = field(default_factory=ExtractResources)

    def __post_init__(self) -> None:
        check_fields(self, "", max_rejected="[0, 1]")
        if self.image_pattern is not None:
            NamePattern(self.image_pattern)

    @property
    def pictures(self) -> PictureSource:
        """Where the pictures are."""
        return PictureSource(self.resolve(self.images, "images"), self.image_pattern)


def check(config: ExtractJob) -> None:
    if takes_pictures(config):
        require_pictures(config.pictures)
    if config.text.model is not None:
        require_table(texts_table(config), schemas.TEXTS)


def takes_pictures(config: ExtractJob) -> bool:
    """Whether pictures are extracted; False if the workspace can provide only texts.

    With --text.model, a workspace may have no pictures, or features that were imported.
    """
    if config.text.model is None or config.images is not None:
        return True
    features = Store.at(config.resolve(config.features, "features"))
    if features.exists(FEATURES_MANIFEST) and read_manifest(features).identity.is_imported:
        return False
    return any(True for _ in Store.at(config.pictures.uri).list(follow_links=True))


def texts_table(config: ExtractJob) -> InputTable:
    """The items table with the texts.

    Raises:
        InputError: there is none.
    """
    table = items_table(config, config.items, config.items_columns)
    if table is None:
        raise missing_table(Store.at(config.workspace), "items", "items")
    return table


def main(config: ExtractJob, summary: Summary) -> None:
    """Extracts the features of the pictures, and those of the texts if there is a text model."""
    rows: dict[str, Any] = {}  # values of any type that a summary shows
    if takes_pictures(config):
        extract_pictures(config, summary)
        rows = summary.rows
    if config.text.model is not None:
        ensure_ray(config, summary)
        job = TextJob(
            items_table=texts_table(config),
            store=Store.at(config.resolve(config.text_features, "text_features")),
            text=config.text,
            max_rejected=config.max_rejected,
            resources=config.resources,
            workers=network_workers(config),
        )
        extract_texts(job, summary)
        summary.rows = {**rows, **summary.rows}


def extract_pictures(config: ExtractJob, summary: Summary) -> None:
    """Reads new and changed pictures, runs the network on them and commits the table."""
    store = Store.at(config.resolve(config.features, "features"))
    store.check_writable()
    resources = config.resources
    if resources.workers or resources.use_gpu or usable_cores() > _MAX_THREADS:
        ensure_ray(config, summary)
    with summary.phase("plan"):
        chosen = _with_precision(config.backbone, store, resources)
        backbone = None if on_ray() else load_backbone(chosen)
        identity, preprocessing = (
            call(describe_backbone, chosen) if backbone is None else describe(backbone)
        )
        plan = submit(plan_extraction, config.pictures, store, identity, config.limits)
        counts = call(_count, plan)
    say(f"{counts.pictures:,} pictures, {counts.pending:,} to read ({identity})")
    if counts.hint:
        say(f"{counts.hint}.")

    written: list[str] = []
    amounts = Counter[str]()
    if counts.pending:
        with track_progress("extract", counts.pending, summary) as progress_actor:
            summary.has_written = True
            extraction = extraction_context(config, plan, (identity, preprocessing), progress_actor)
            with run_chain(config, extraction, counts, backbone) as rows:
                for row in rows:
                    written += [row["name"]] if row["name"] else []
                    amounts.update({name: row[name] for name in ("computed", "unchanged")})
    settings = extraction_settings(config.pictures, config.limits)
    with summary.phase("commit"):
        manifest, rejected = call(
            commit_extraction, plan, written, store, identity, settings, config.max_rejected
        )
    summary.rows = {
        **_rows(counts, amounts, manifest, rejected),
        "backbone": str(identity),
        "features at": store.root,
        "digest": manifest.digest,
    }
    if computed := amounts["computed"]:
        summary.rows["pictures per second"] = round(computed / summary.phases["extract"], 1)


def _with_precision(
    backbone: BackboneConfig, store: Store, resources: ExtractResources
) -> BackboneConfig:
    """The backbone with the precision of the existing features, unless a key sets the precision."""
    if backbone.precision is not None:
        return backbone
    if store.exists(FEATURES_MANIFEST):
        identity = read_manifest(store).identity
        if identity.backbone == backbone.full_name and not identity.is_imported:
            return _set_precision(backbone, identity.precision)
    return _set_precision(backbone, "bfloat16") if resources.use_gpu else backbone


def _set_precision(backbone: BackboneConfig, precision: str) -> BackboneConfig:
    return replace(backbone, precision="bfloat16" if precision == "bfloat16" else "float32")


def extraction_context(
    config: ExtractJob, plan: Ref, network: tuple[Identity, Preprocessing], progress: ProgressHandle
) -> ExtractionContext:
    """What the steps of the job's extraction share.

    Args:
        config: the configuration of the job.
        plan: what to read.
        network: as `describe` describes it.
        progress: counts the rows of each step.
    """
    return ExtractionContext(
        plan=plan,
        store=Store.at(config.resolve(config.features, "features")),
        # Workers may have other processors than the one that chose the precision.
        backbone=_set_precision(config.backbone, network[0].precision),
        identity=network[0],
        preprocessing=network[1],
        limits=config.limits,
        resources=config.resources,
        progress_actor=progress,
    )


@contextmanager
def run_chain(
    config: ExtractJob, extraction: ExtractionContext, counts: "_Counts", backbone: Backbone | None
) -> Iterator[Iterable[dict[str, Any]]]:
    """Runs the chain while its workers are reserved.

    Yields an iterable of its rows, each of which names a written file.

    Args:
        config: the configuration of the job.
        extraction: what the steps share.
        counts: what there is to do.
        backbone: the network, if this process runs it.
    """
    if backbone is not None:
        yield extract_in_process(extraction, counts.chunks, usable_cores(), backbone)
        return
    workers = min(network_workers(config), -(-counts.pending // CHUNK))
    with reserve_workers(workers, config.resources.per_worker) as reserved:
        yield extract_chain(extraction, counts.chunks, reserved).iter_rows()


def _rows(
    counts: "_Counts", amounts: Counter[str], manifest: Manifest, rejected: Mapping[str, int]
) -> dict[str, Any]:
    """Summary rows about pictures; some appear only for sources that they apply to."""
    rows = {
        "pictures": counts.pictures,
        "run through the network": amounts["computed"],
        "features": manifest.rows,
        "rejected": sum(rejected.values()),
        "rejected by reason": rejected,
        "files left out": counts.not_pictures,
    }
    if amounts["unchanged"]:
        rows["not sent again by their servers"] = amounts["unchanged"]
    if manifest.image_pattern is not None:
        rows["names that the pattern does not match"] = counts.unmatched
    return rows


@dataclass(frozen=True)
class _Counts:
    """What the driver knows of a plan.

    Attributes:
        pictures: number of pictures.
        pending: number of those that have to be read.
        chunks: number of tasks that read them.
        not_pictures: number of other files, by file extension.
        unmatched: number of pictures whose names the pattern does not match.
        hint: a sentence about the names, or an empty text.
    """

    pictures: int
    pending: int
    chunks: int
    not_pictures: Mapping[str, int]
    unmatched: int
    hint: str


def _count(plan: ExtractionPlan) -> _Counts:
    return _Counts(
        pictures=plan.picture_count,
        pending=plan.pending.num_rows,
        chunks=len(plan.chunks) - 1,
        not_pictures=plan.not_pictures,
        unmatched=plan.unmatched,
        hint=plan.hint,
    )


def network_workers(config: ExtractJob) -> int:
    """How many workers run the network on Ray; leaves a CPU for the other tasks."""
    resources = config.resources
    workers = count_workers(config, resources, _MAX_CPU_WORKERS, cpus_beside=1)
    needed = {name: workers * n for name, n in resources.per_worker.items()}
    needed["CPU"] += resources.task_cpus
    require_resources(needed, config, "resources.workers")
    return workers
