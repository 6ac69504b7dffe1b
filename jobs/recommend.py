"""Recommends items with a trained model: scores all users, checks the lists, publishes them."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.recommend()
