"""Features and interactions to a model, by Ray Train."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.train import TrainJob, check, main

    launch(main, TrainJob, check=check)
