"""Features made elsewhere into a workspace, where there are no pictures to make them from."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.import_features import ImportJob, check, main

    launch(main, ImportJob, check=check)
