"""A night as an Airflow DAG, written for Airflow 3: a task that submits it to the Ray cluster.

The worker needs visrec and RAY_ADDRESS. Airflow retries a failure (1), with the same date, and the
night continues. It does not retry what would end the same way: 2 (refused), 3 (held back by a gate)
and 4 (complete, while another run stays published).
"""

import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowFailException
from airflow.sdk import dag, task


@dag(schedule="15 1 * * *", start_date=datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def visrec_nightly() -> None:
    @task(retries=2, retry_delay=timedelta(minutes=5))
    def night(ds: str = "") -> None:  # Airflow passes the date of the run
        code = subprocess.run(
            ["visrec", "submit", "nightly", "--config", "configs/nightly.yaml", "--as_of", ds],
            cwd="/srv/shop",
            check=False,
        ).returncode
        if code in (2, 3, 4):
            raise AirflowFailException(f"The night {ds} ended with {code}: see the log.")
        if code:
            raise RuntimeError(f"The night {ds} failed with {code}.")

    night()


visrec_nightly()
