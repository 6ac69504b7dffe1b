"""The pointer back to an earlier run, whose files are read whole before."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.rollback import RollbackJob, main

    launch(main, RollbackJob, needs_ray=False)
