"""Features made elsewhere into a workspace, where there are no pictures to make them from.

python jobs/import_features.py --workspace movies --table features.parquet --name efficientnet-lite0
python jobs/import_features.py --workspace s3://shop/visrec --table s3://shop/vectors --name clip
"""

from dataclasses import dataclass

import ray

from visrec.cli.launch import JobConfig, Summary
from visrec.cli.progress import follow
from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.import_table import commit_import, import_chain, plan_import
from visrec.features.table import read_manifest
from visrec.pipelines.input_checks import require_table
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ImportJob(JobConfig):
    """Features made elsewhere into a workspace.

    The features directory then holds the items of the table and no others. A changed table takes
    the place of the one before.

    Attributes:
        name: of the network that made the features. It is all that is known of the network: models
            trained on this name take any features of this name, so give another one another name.
        table: Parquet file, or a directory of them, with item_id and feature (lists of one length);
            by default features.parquet of the workspace.
        features: where the features go; by default features of the workspace.
        max_rejected: share of the rows that may be rejected, as their numbers are not finite or do
            not fit into float16; above it nothing is committed.
    """

    name: str
    table: str | None = None
    features: str | None = None
    max_rejected: float = 0.05

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise InputError("Found an empty --name; expected that of the network.")
        check_fields(self, "", max_rejected="[0, 1]")


def check(config: ImportJob) -> None:
    require_table(config.resolve(config.table, "features.parquet"), "table")


def main(config: ImportJob, summary: Summary) -> None:
    table = config.resolve(config.table, "features.parquet")
    store = Store.at(config.resolve(config.features, "features"))
    store.check_writable()
    with summary.phase("plan"):
        plan = ray.get(ray.remote(plan_import).remote(table, config.name, store))
    if plan.chunks:
        print(f"{plan.rows:,} rows to read ({plan.identity})", flush=True)
        summary.has_written = True
        with follow("import", plan.rows, summary) as tally:
            written = [row["name"] for row in import_chain(plan, store, tally).iter_rows()]
        with summary.phase("commit"):
            manifest, rejected = ray.get(
                ray.remote(commit_import).remote(plan, written, store, config.max_rejected)
            )
    else:
        print(f"{table} is in {store.root} already: nothing to do.", flush=True)
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
