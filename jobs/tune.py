"""Which keys of training do best: Ray Tune searches a space for the highest validation AUC."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.tune import TuneJob, check, main

    launch(main, TuneJob, check=check)
