"""Publishes an earlier run again, after checking that all its files are intact.

visrec rollback --workspace shop
visrec rollback --workspace shop --run_id 2026-11-20
"""

from dataclasses import dataclass

from visrec.cli.job import JobConfig
from visrec.cli.summary import Summary
from visrec.publication.rollback import roll_back
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class RollbackJob(JobConfig):
    """Go back to an earlier run.

    Attributes:
        recommendations: directory of the runs; by default recommendations of the workspace.
        run_id: the earlier run; by default the one before the published run.
    """

    recommendations: str | None = None
    run_id: str | None = None


def main(config: RollbackJob, summary: Summary) -> None:
    recommendations = Store.at(config.resolve(config.recommendations, "recommendations"))
    with summary.phase("read"):
        previous, published = roll_back(recommendations, config.run_id)
    summary.rows = {
        "was published": previous,
        "is published": published,
        "at": recommendations.root,
    }
