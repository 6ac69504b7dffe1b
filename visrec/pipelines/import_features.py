"""Imports features that were computed elsewhere into a workspace.

visrec import-features --workspace movies --table vectors.parquet --backbone resnet50
visrec import-features --workspace s3://shop/visrec --table s3://vectors --backbone clip
"""

from dataclasses import dataclass

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.progress_line import track_progress
from visrec.cli.summary import Summary
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.import_planning import plan_import
from visrec.features.import_table import commit_import, import_chain
from visrec.features.table import read_manifest
from visrec.storage.store import Store
from visrec.storage.table_files import find_table_files
from visrec.tasks import call


@dataclass(frozen=True, kw_only=True)
class ImportFeaturesJob(JobConfig):
    """Imports features that were computed elsewhere into a workspace.

    Afterwards the features directory holds the items of the table and no others. A changed table
    replaces the one imported before.

    Attributes:
        backbone: name of the network that computed the features. Nothing else is known about the
            network, and models trained on features of this name accept all features of this name,
            so use another name for another network.
        table: Parquet file, or a directory of them, with item_id and feature (lists of one length);
            by default `features.parquet` in the workspace.
        features: directory of the features; by default `features` in the workspace.
        max_rejected: share of the rows that may be rejected because a number is NaN, infinite or
            too large for float16; above it nothing is committed.
    """

    backbone: str
    table: str | None = None
    features: str | None = None
    max_rejected: float = 0.05

    def __post_init__(self) -> None:
        if not self.backbone.strip():
            raise InputError(
                "Found an empty --backbone; expected the name of the network that computed the "
                "features.",
                key="backbone",
            )
        check_fields(self, "", max_rejected="[0, 1]")


def check(config: ImportFeaturesJob) -> None:
    find_table_files(config.resolve(config.table, "features.parquet"), "table")


def main(config: ImportFeaturesJob, summary: Summary) -> None:
    table = config.resolve(config.table, "features.parquet")
    store = Store.at(config.resolve(config.features, "features"))
    store.check_writable()
    with summary.phase("plan"):
        plan = call(plan_import, table, config.backbone, store)
    if plan.chunks:
        say(f"{plan.rows:,} rows to read ({plan.identity})")
        summary.has_written = True
        with track_progress("import", plan.rows, summary) as progress_actor:
            written = [row["name"] for row in import_chain(plan, store, progress_actor).iter_rows()]
        with summary.phase("commit"):
            manifest, rejected = call(commit_import, plan, written, store, config.max_rejected)
    else:
        say(f"{store.root} holds {table} already: nothing to do.")
        manifest, rejected = read_manifest(store), {}
    summary.rows = {
        "rows read": plan.rows,
        "features": manifest.rows,
        "rejected": sum(manifest.rejected.values()),
        "rejected by reason": rejected,
        "backbone": str(manifest.identity),
        "features at": store.root,
        "digest": manifest.digest,
    }
