"""Evaluates models by the exact ranks of held-out items, compared with VisRank, popularity and
random."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.evaluate()
