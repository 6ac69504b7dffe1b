"""The nightly run: new pictures, a model when one is due, lists, gates, publication."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.nightly import NightlyJob, check, main

    launch(main, NightlyJob, check=check)
