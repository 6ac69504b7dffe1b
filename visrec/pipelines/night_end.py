"""How a night ended, for those who watch it: metrics for Prometheus, and a message."""

import time

from visrec.cli.launch import JobEnd
from visrec.cli.notify import notify
from visrec.cli.output import say
from visrec.errors import ExitCode
from visrec.pipelines.nightly import NightlyJob, load_jobs
from visrec.pipelines.recommend_job import recommendations_store
from visrec.publication.prometheus import metrics_text
from visrec.storage.store import Store

METRICS_FILE = "metrics.prom"
_OUTCOMES = {
    ExitCode.FAILED: "failed",
    ExitCode.REFUSED: "was refused",
    ExitCode.HELD_BACK: "was held back by a gate",
}


def report_end(config: NightlyJob, end: JobEnd) -> None:
    """Writes `metrics.prom` into the workspace, and sends a message if the night needs people.

    A night that ends with exit code 2 leaves the metrics unchanged, even if earlier steps wrote
    data. So does a start that found another process at work, with or without `--exit_if_running`:
    the other process reports how the night ended.

    Raises:
        StorageError: the workspace cannot be written.
        InputError: the pointer or the published manifest is damaged.
    """
    if end.is_busy:
        return
    if end.exit_code in _OUTCOMES:
        title = f"visrec: the night {config.night_date()} {_OUTCOMES[end.exit_code]}"
        if not notify(config.notify, title, f"{config.workspace}: {end.message}"):
            say(
                f"{end.job}: the service of --notify.url did not accept the message.",
                level="warning",
            )
    if end.exit_code != ExitCode.REFUSED:
        text = metrics_text(
            recommendations_store(load_jobs(config).recommend),
            job=end.job,
            exit_code=int(end.exit_code),
            ended_at=round(time.time(), 3),
            seconds=round(end.seconds, 3),
        )
        Store.at(config.workspace).write(METRICS_FILE, text.encode())
