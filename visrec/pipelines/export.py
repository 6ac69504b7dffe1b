"""Exports the published run to where a shop reads it: PostgreSQL, Redis, DynamoDB, or one file.

python jobs/export.py --workspace shop --to postgresql://visrec@db.shop:5432/shop
python jobs/export.py --workspace shop --to redis://cache.shop:6379/0 --only_changed true
python jobs/export.py --workspace shop --to 'dynamodb://visrec?region=eu-west-1'
python jobs/export.py --workspace shop --to s3://shop/export/lists.jsonl.gz
python jobs/export.py --workspace shop --to similar.csv --recommendations shop/similar_items

Readers see a whole run, this one or the one before, at any moment. An export that was stopped goes
on when it is started again.
"""

from dataclasses import dataclass

from visrec.cli.job import JobConfig
from visrec.cli.summary import Summary
from visrec.config import digest
from visrec.errors import ConflictError, InputError
from visrec.exports.generations import ExportReport
from visrec.exports.run_lists import open_published_run, published_key
from visrec.exports.targets import EXPECTED, Target, parse_target
from visrec.storage.lease import Lease
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class ExportJob(JobConfig):
    """Exports the published run.

    Attributes:
        to: where the lists go: postgresql://, redis://, rediss:// or dynamodb://, or the path of a
            file, local or s3://, that ends in .jsonl, .jsonl.gz, .csv or .csv.gz. The environment
            may supply the password: PGPASSWORD, REDISCLI_AUTH, or what boto3 reads.
        recommendations: directory of the runs; by default recommendations of the workspace.
            similar_items has lists of similar items.
        only_changed: write only lists that differ from those that the store holds. All are written
            where that is not known. A file is always written whole.
    """

    to: str = ""
    recommendations: str | None = None
    only_changed: bool = False

    def __post_init__(self) -> None:
        if not self.to:
            raise InputError(f"Found no --to; expected {EXPECTED}.", key="to")


def check(config: ExportJob) -> None:
    parse_target(config.to)
    open_published_run(_recommendations(config))


def main(config: ExportJob, summary: Summary) -> None:
    target, recommendations = parse_target(config.to), _recommendations(config)
    summary.rows["to"] = target.shown
    leases = Store.at(config.resolve(None, "exports"))
    with summary.phase("export"):
        report = export_published(
            target, recommendations, leases, summary, only_changed=config.only_changed
        )
    summary.rows |= {
        "exported run": report.run_id,
        "lists written": report.written,
        "lists unchanged": report.unchanged,
        "lists removed": report.removed,
        "old entries removed": report.swept,
        "all written because": report.note,
    }


def export_published(
    target: Target,
    recommendations: Store,
    leases: Store,
    summary: Summary,
    *,
    only_changed: bool,
) -> ExportReport:
    """Exports the published run, and again if another run has been published meanwhile.

    It runs in one process, without Ray: formatting and sending take turns on two threads, and one
    such process keeps a server busy. More of them would only wait for each other there.

    Args:
        target: where to.
        recommendations: where the runs are.
        leases: for the file that lets one process at a time export to the target.
        summary: of the job.
        only_changed: write only lists that differ from those of the target.

    Raises:
        ConflictError: another process is exporting to the target.
        InputError: nothing is published, or the run is damaged.
        StorageError: the target, or the workspace, refused or failed a request.
    """
    with Lease(leases, f"{digest(target.shown)}.lease") as lease:
        if not lease.held:
            raise ConflictError(
                f"Another process is exporting to {target.shown}; nothing was done here. It "
                "exports what is published when it ends."
            )

        def check_before_write() -> None:
            lease.check()
            summary.has_written = True

        while True:
            run = open_published_run(recommendations)
            report = target.export(
                run, recommendations, only_changed=only_changed, check=check_before_write
            )
            if published_key(recommendations) == run.key:
                return report


def _recommendations(config: ExportJob) -> Store:
    return Store.at(config.resolve(config.recommendations, "recommendations"))
