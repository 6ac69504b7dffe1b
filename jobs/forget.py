"""Removes users from everything that visrec wrote, and proves it by a search of all files."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.forget()
