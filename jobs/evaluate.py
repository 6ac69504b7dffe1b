"""Evaluates models by the exact ranks of held-out items, beside VisRank, popularity and random."""

from visrec.cli.signals import exit_on_signals

if __name__ == "__main__":
    exit_on_signals()  # before the other imports, which take seconds

    from visrec.cli.launch import launch
    from visrec.pipelines.evaluate import EvaluateJob, check, main

    launch(main, EvaluateJob, check=check)
