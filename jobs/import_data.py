"""Takes over data sets and exports of other systems as the tables of a workspace."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec import commands

    commands.import_data()
