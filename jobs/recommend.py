"""A model to lists: scores every user against every available item, publishes the best 100 each."""

from visrec.cli.signals import listen

if __name__ == "__main__":
    listen()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.recommend import RecommendJob, check, main

    launch(main, RecommendJob, check=check)
