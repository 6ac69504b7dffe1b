"""A night as an Airflow DAG, written for Airflow 3: a task that submits it to the Ray cluster.

The worker needs visrec and RAY_ADDRESS. Airflow retries a failure (1), with the same date, and the
night continues. It does not retry what would end the same way: 2 (refused), 3 (held back by a gate)
and 4 (complete, while another run stays published).
"""

import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task


@dag(schedule="15 1 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def visrec_nightly() -> None:
    @task(retries=2, retry_delay=timedelta(minutes=5))
    def night(dag_run: Any = None) -> None:  # Airflow passes the run of the DAG
        # A run that is started by hand has a logical date only if one was chosen.
        moment = dag_run.logical_date or dag_run.run_after
        date = moment.astimezone(UTC).date().isoformat()
        code = subprocess.run(
            ["visrec", "submit", "nightly", "--config", "configs/nightly.yaml", "--as_of", date],
            cwd="/srv/shop",
            check=False,
        ).returncode
        if code in (2, 3, 4):
            raise AirflowFailException(f"The night {date} ended with {code}: see the log.")
        if code:
            raise RuntimeError(f"The night {date} failed with {code}.")

    night()


visrec_nightly()
