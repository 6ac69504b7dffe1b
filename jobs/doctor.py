"""Checks whether a run is possible here: tries the store, asks every node, says what is missing."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.doctor()
