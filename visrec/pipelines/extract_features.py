"""Pictures to features: reads new pictures, runs a pretrained network on them, commits the table.

python jobs/extract_features.py --local
python jobs/extract_features.py --images s3://shop/pictures --workspace s3://shop/visrec
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import ray

from visrec.cli.launch import JobConfig, Summary, cluster_has, cpu_actors, require_resources
from visrec.cli.progress import follow
from visrec.cli.reserve import reserved
from visrec.config import check_fields
from visrec.features.backbones import BackboneConfig
from visrec.features.decode import PictureLimits
from visrec.features.extract import (
    CHUNK,
    ExtractResources,
    Plan,
    commit,
    describe_backbone,
    extract_chain,
    make_plan,
)
from visrec.pipelines.input_checks import require_pictures
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ExtractJob(JobConfig):
    """Pictures to features.

    Attributes:
        images: directory or prefix of <item_id>.jpg (.png, .webp, .gif), or Parquet with item_id
            and image (bytes) or uri; by default images of the workspace.
        features: where the features go; by default features of the workspace.
        backbone: the network.
        limits: pictures beyond these are rejected before they are decoded.
        max_rejected: share of the pictures that may be rejected; above it nothing is committed.
        resources: what the network may take of the cluster.
    """

    images: str | None = None
    features: str | None = None
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    limits: PictureLimits = field(default_factory=PictureLimits)
    max_rejected: float = 0.05
    resources: ExtractResources = field(default_factory=ExtractResources)

    def __post_init__(self) -> None:
        check_fields(self, "", max_rejected="[0, 1]")


def check(config: ExtractJob) -> None:
    require_pictures(config.resolve(config.images, "images"))


def main(config: ExtractJob, summary: Summary) -> None:
    images = config.resolve(config.images, "images")
    store = Store.at(config.resolve(config.features, "features"))
    store.check_writable()
    with summary.phase("plan"):
        identity, preprocessing = ray.get(ray.remote(describe_backbone).remote(config.backbone))
        plan_ref = ray.remote(make_plan).remote(images, store, identity, config.limits)
        listed, todo, left_out = ray.get(_counts.remote(plan_ref))
    print(
        f"{listed:,} pictures, {listed - todo:,} known, {todo:,} to read ({identity})", flush=True
    )

    written, computed = [], 0
    if todo:
        actors = min(_actors(config), -(-todo // CHUNK))
        with (
            reserved(actors, config.resources.of_an_actor) as places,
            follow("extract", todo, summary) as tally,
        ):
            summary.has_written = True
            chain = extract_chain(
                plan_ref, todo, store, config.backbone, config.limits, identity, preprocessing,
                config.resources, places, tally,
            )  # fmt: skip
            for row in chain.iter_rows():
                written.append(row["name"])
                computed += row["computed"]
    with summary.phase("commit"):
        manifest, rejected = ray.get(
            ray.remote(commit).remote(
                plan_ref, written, store, identity, config.limits, config.max_rejected
            )
        )
    summary.rows = {
        "pictures": listed,
        "run through the network": computed,
        "features": manifest.rows,
        "rejected": sum(rejected.values()),
        "rejected by reason": rejected,
        "files left out": left_out,
        "backbone": str(identity),
        "features at": store.root,
        "digest": manifest.digest,
    }
    if computed:
        summary.rows["pictures per second"] = round(computed / summary.phases["extract"], 1)


@ray.remote
def _counts(plan: Plan) -> tuple[int, int, Mapping[str, int]]:
    return plan.listed, plan.todo.num_rows, plan.left_out


def _actors(config: ExtractJob) -> int:
    """How many copies of the network run; leaves room for the tasks that feed them."""
    resources = config.resources
    if resources.actors:
        actors = resources.actors
    elif resources.gpus_per_actor:
        actors = max(1, cluster_has("GPU") // resources.gpus_per_actor)
    else:
        actors = cpu_actors(resources.cpus_per_actor, 8)
    # One more CPU for the tasks that read and decode, and one for those that write.
    wanted = {name: actors * n for name, n in resources.of_an_actor.items()}
    wanted["CPU"] += 2
    require_resources(wanted, config, "resources.actors")
    return actors
