"""The pointer back to an earlier run, whose files are read whole before.

python jobs/rollback.py --workspace shop
python jobs/rollback.py --workspace shop --run_id 2026-11-20
"""

from dataclasses import dataclass

from visrec.cli.launch import JobConfig, Summary
from visrec.publication.run import roll_back
from visrec.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class RollbackJob(JobConfig):
    """The pointer back to an earlier run.

    Attributes:
        recommendations: where the runs are; by default recommendations of the workspace.
        run_id: to which run; by default the one before the one that is published.
    """

    recommendations: str | None = None
    run_id: str | None = None


def main(config: RollbackJob, summary: Summary) -> None:
    recommendations = Store.at(config.resolve(config.recommendations, "recommendations"))
    with summary.phase("read"):
        left, now = roll_back(recommendations, config.run_id)
    summary.rows = {"was published": left, "is published": now, "at": recommendations.root}
