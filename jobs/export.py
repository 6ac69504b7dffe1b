"""Exports the published run to PostgreSQL, Redis, DynamoDB or a file."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.export import ExportJob, check, main

    launch(main, ExportJob, check=check, needs_ray=False)
