"""Trains a model on features and interactions with Ray Train."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.train import TrainJob, check, main

    launch(main, TrainJob, check=check)
