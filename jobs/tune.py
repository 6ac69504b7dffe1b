"""Searches training settings for the highest validation AUC with Ray Tune."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.tune import TuneJob, check, main

    launch(main, TuneJob, check=check)
