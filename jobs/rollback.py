"""Moves the publication pointer back to an earlier run, after reading all files of that run."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.rollback()
