"""Runs `visrec forget` as a Ray job: see visrec/pipelines/forget.py."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.forget()
