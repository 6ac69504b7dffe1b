"""Explains a user's published list: profile, entries with reasons, what rules kept out."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.explain()
