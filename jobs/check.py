"""Says what is in a workspace before anything runs, and whether a night can run on it."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.check()
