"""Runs `visrec import` as a Ray job: see visrec/pipelines/import_data.py."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.import_data()
