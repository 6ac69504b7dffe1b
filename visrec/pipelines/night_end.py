"""How a night ended, for those who watch it: metrics for Prometheus, and a message."""

import time

from visrec.cli.launch import JobEnd
from visrec.cli.notify import notify
from visrec.cli.output import say
from visrec.errors import BusyError
from visrec.pipelines.nightly import NightlyJob, load_jobs
from visrec.pipelines.recommend_job import recommendations_store
from visrec.publication.prometheus import metrics_text
from visrec.storage.store import Store

METRICS_FILE = "metrics.prom"
_NOTHING_WRITTEN = 2
_TOLD = {1: "failed", 2: "was refused", 3: "was held back by a gate"}


def tell(config: NightlyJob, end: JobEnd) -> None:
    """Writes `metrics.prom` into the workspace, and sends a message if the night needs people.

    A refused night writes nothing, so it leaves the metrics of the night before. So does a start
    that found another process at work: that process tells how the night ended.

    Raises:
        StorageError: the workspace cannot be written.
        InputError: the pointer or the published manifest is damaged.
    """
    if isinstance(end.cause, BusyError):
        return
    if end.exit_code in _TOLD:
        title = f"visrec: the night {config.night_date()} {_TOLD[end.exit_code]}"
        if not notify(config.notify, title, f"{config.workspace}: {end.message}"):
            say(f"{end.job}: the service of --notify.url took no message.", level="warning")
    if end.exit_code != _NOTHING_WRITTEN:
        text = metrics_text(
            recommendations_store(load_jobs(config).recommend),
            job=end.job,
            exit_code=end.exit_code,
            ended_at=round(time.time(), 3),
            seconds=round(end.seconds, 3),
        )
        Store.at(config.workspace).write(METRICS_FILE, text.encode())
