"""Exports the published run to where a shop reads it: PostgreSQL, Redis, DynamoDB, or one file.

visrec export --workspace shop --to postgresql://visrec@db.shop:5432/shop
visrec export --workspace shop --to redis://cache.shop:6379/0 --only_changed
visrec export --workspace shop --to 'dynamodb://visrec?region=eu-west-1'
visrec export --workspace shop --to s3://shop/export/lists.jsonl.gz
visrec export --workspace shop --to similar.csv --recommendations shop/similar_items

Readers see a whole run, this one or the one before, at any moment. An export that was stopped
continues when it is started again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visrec.cli.job import JobConfig
from visrec.cli.output import say
from visrec.cli.progress_line import StepProgress
from visrec.cli.summary import Summary
from visrec.errors import VisrecError
from visrec.exports.published import export_published
from visrec.exports.run_lists import open_published_run
from visrec.exports.targets import parse_target
from visrec.storage.store import Store

LEASES = "exports"  # folder of the workspace for the leases and records of exports


@dataclass(frozen=True, kw_only=True)
class ExportJob(JobConfig):
    """Exports the published run.

    Attributes:
        to: where the lists go: postgresql://, redis://, rediss:// or dynamodb://, or the path of a
            file, local or s3://, that ends in .jsonl, .jsonl.gz, .csv or .csv.gz. The environment
            may supply the password: PGPASSWORD, REDISCLI_AUTH, or what boto3 reads.
        recommendations: directory of the runs; by default recommendations of the workspace.
            similar_items has lists of similar items.
        only_changed: write only lists that differ from those that the store holds. If the store's
            lists cannot be compared, all lists are written. A file is always written whole.
    """

    to: str = ""
    recommendations: str | None = None
    only_changed: bool = False


def check(config: ExportJob) -> None:
    parse_target(config.to)
    open_published_run(_recommendations(config))


def main(config: ExportJob, summary: Summary) -> None:
    target = parse_target(config.to)
    recommendations = _recommendations(config)
    leases = Store.at(config.resolve(None, LEASES))
    progress = StepProgress("export", "files")

    def before_shard(done: int, shards: int) -> None:
        summary.has_written = True
        progress.report(done, shards)

    with summary.phase("export"):
        report = export_published(
            target,
            recommendations,
            leases,
            only_changed=config.only_changed,
            before_shard=before_shard,
        )
    summary.rows = {
        "exported run": report.run_id,
        "to": target.shown,
        "lists written": report.written,
        "lists unchanged": report.unchanged,
        "lists removed": report.removed,
        "old entries removed": report.old_entries,
        "all written because": report.note,
    }


def export_or_raise(urls: Sequence[str], recommendations: Store, leases: Store) -> dict[str, str]:
    """Exports to several targets; raises an error if any export failed.

    Returns:
        What became of each target, for a summary.

    Raises:
        VisrecError: an export failed.
    """
    rows, failed = export_to_each(urls, recommendations, leases)
    if failed:
        raise VisrecError(
            f"The published run could not be exported to {', '.join(failed)}; the messages above "
            "say why. The night is otherwise complete. Start it again; it will only export."
        )
    return rows


def export_to_each(
    urls: Sequence[str], recommendations: Store, leases: Store
) -> tuple[dict[str, str], list[str]]:
    """Exports changed lists of the published run to several targets.

    A failure of one target is printed, and does not stop the others.

    Args:
        urls: the URLs of the targets.
        recommendations: where the runs are.
        leases: as in `export_published`.

    Returns:
        What became of each target, for a summary, and the targets that failed.
    """
    rows: dict[str, str] = {}
    failed: list[str] = []
    for target in map(parse_target, urls):
        try:
            report = export_published(target, recommendations, leases, only_changed=True)
        except VisrecError as error:
            say(f"  {error}", "error")
            failed.append(target.shown)
        else:
            rows[f"at {target.shown}"] = f"{report.run_id}, {report.written:,} lists written"
    return rows, failed


def _recommendations(config: ExportJob) -> Store:
    return Store.at(config.resolve(config.recommendations, "recommendations"))
