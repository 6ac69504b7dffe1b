"""The night: new pictures, a model where one is due, lists, gates, publication."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.nightly import NightlyJob, check, main

    launch(main, NightlyJob, check=check)
