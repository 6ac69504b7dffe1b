"""Moves the publication pointer back to an earlier run, after reading all files of that run."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.rollback import RollbackJob, main

    launch(main, RollbackJob, needs_ray=False)
