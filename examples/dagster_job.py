"""A night as a Dagster job with a schedule: an op that submits it to the Ray cluster.

The process needs visrec and RAY_ADDRESS. Dagster retries a failure (1), with the same date, and the
night continues. It does not retry what would end the same way: 2 (refused), 3 (held back by a gate)
and 4 (complete, while another run stays published).
"""

import subprocess

import dagster as dg


class NightConfig(dg.Config):
    """The date of the night, which all retries share."""

    as_of: str


@dg.op(retry_policy=dg.RetryPolicy(max_retries=2, delay=300))
def night(config: NightConfig) -> None:
    command = ["visrec", "submit", "nightly", "--config", "configs/nightly.yaml"]
    done = subprocess.run([*command, "--as_of", config.as_of], cwd="/srv/shop", check=False)
    code = done.returncode
    if code:
        raise dg.Failure(
            f"The night {config.as_of} ended with {code}: see the log.",
            allow_retries=code not in (2, 3, 4),
        )


@dg.job
def visrec_nightly() -> None:
    night()


@dg.schedule(job=visrec_nightly, cron_schedule="15 1 * * *", execution_timezone="UTC")
def every_night(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    date = context.scheduled_execution_time.date().isoformat()
    return dg.RunRequest(run_config=dg.RunConfig({"night": NightConfig(as_of=date)}))


defs = dg.Definitions(jobs=[visrec_nightly], schedules=[every_night])
