"""The commands: each names a job's configuration, its checks and its main function, and launches
them.

`visrec train ...` and `python jobs/train.py ...` are the same. A command imports its job only when
it is called, and its help is written beforehand, so that neither `visrec --help` nor
`visrec train --help` takes seconds.
"""

import sys
from collections.abc import Callable
from typing import NoReturn

from visrec import __version__
from visrec.cli.help_pages import with_help_page
from visrec.cli.signals import exit_on_signals
from visrec.errors import ExitCode, InputError, VisrecError, did_you_mean


@with_help_page
def demo() -> NoReturn:
    """the whole chain on a painted sample gallery"""
    from visrec.cli.launch import launch
    from visrec.pipelines.demo import DemoJob, main

    launch(main, DemoJob, needs_ray="on a cluster")


@with_help_page
def make_gallery() -> NoReturn:
    """paint the demo's sample gallery into a workspace"""
    from visrec.cli.launch import launch
    from visrec.pipelines.make_gallery import GalleryJob, main

    launch(main, GalleryJob, needs_ray="never")


@with_help_page
def init() -> NoReturn:
    """write visrec.yaml: the keys that own data need"""
    from visrec.cli.launch import launch
    from visrec.pipelines.init import InitJob, main

    launch(main, InitJob, needs_ray="never")


@with_help_page
def check() -> NoReturn:
    """the facts of the data before anything runs"""
    from visrec.cli.launch import launch
    from visrec.pipelines.check import CheckJob, main

    launch(main, CheckJob, needs_ray="never", only_reads=True)


@with_help_page
def import_data() -> NoReturn:
    """import MovieLens, RecBole, Amazon Reviews or an order export"""
    from visrec.cli.launch import launch
    from visrec.pipelines.import_data import ImportDataJob, check, format_help, main

    name, *rest = [*sys.argv[1:], "-"]
    if not name.startswith("-"):  # visrec import movielens PATH
        if {"--help", "-h"} & {*rest} and (text := format_help(name)):
            print(text)
            sys.exit(0)
        sys.argv.insert(1, "--format")
        if not rest[0].startswith("-"):
            sys.argv.insert(3, "--path")
    launch(main, ImportDataJob, check=check, needs_ray="never")


@with_help_page
def extract() -> NoReturn:
    """turn new pictures into features"""
    from visrec.cli.launch import launch
    from visrec.pipelines.extract_features import ExtractJob, check, main

    launch(main, ExtractJob, check=check, needs_ray="on a cluster")


@with_help_page
def import_features() -> NoReturn:
    """import features that were computed elsewhere"""
    from visrec.cli.launch import launch
    from visrec.pipelines.import_features import ImportFeaturesJob, check, main

    launch(main, ImportFeaturesJob, check=check)


@with_help_page
def train() -> NoReturn:
    """fit a model to the interactions"""
    from visrec.cli.launch import launch
    from visrec.pipelines.train import TrainJob, check, main

    launch(main, TrainJob, check=check, needs_ray="on a cluster")


@with_help_page
def tune() -> NoReturn:
    """search hyperparameters by validation AUC"""
    from visrec.cli.launch import launch
    from visrec.pipelines.tune import TuneJob, check, main

    launch(main, TuneJob, check=check)


@with_help_page
def evaluate() -> NoReturn:
    """judge models on held-out items; writes the report"""
    from visrec.cli.launch import launch
    from visrec.pipelines.evaluate import EvaluateJob, check, main

    launch(main, EvaluateJob, check=check, needs_ray="on a cluster")


@with_help_page
def recommend() -> NoReturn:
    """make the lists of all users, check and publish them"""
    from visrec.cli.launch import launch
    from visrec.pipelines.recommend import main
    from visrec.pipelines.recommend_job import RecommendJob, check

    launch(main, RecommendJob, check=check, needs_ray="on a cluster")


@with_help_page
def nightly() -> NoReturn:
    """one night: extract, train when due, evaluate, recommend"""
    from visrec.cli.launch import launch
    from visrec.pipelines.night_end import report_end
    from visrec.pipelines.nightly import NightlyJob, check, main

    launch(main, NightlyJob, check=check, after=report_end, needs_ray="on a cluster")


@with_help_page
def rollback() -> NoReturn:
    """publish an earlier run again"""
    from visrec.cli.launch import launch
    from visrec.pipelines.rollback import RollbackJob, main

    launch(main, RollbackJob, needs_ray="never")


@with_help_page
def explain() -> NoReturn:
    """show why a user has this list"""
    from visrec.cli.launch import launch
    from visrec.pipelines.explain import ExplainJob, check, main

    launch(main, ExplainJob, check=check, needs_ray="never", only_reads=True)


@with_help_page
def export() -> NoReturn:
    """copy the published lists to PostgreSQL, Redis, DynamoDB or a file"""
    from visrec.cli.launch import launch
    from visrec.pipelines.export import ExportJob, check, main

    launch(main, ExportJob, check=check, needs_ray="never")


@with_help_page
def forget() -> NoReturn:
    """remove users from everything that was written"""
    from visrec.cli.launch import launch
    from visrec.pipelines.forget import ForgetJob, check, main

    launch(main, ForgetJob, check=check)


@with_help_page
def doctor() -> NoReturn:
    """test the store and the cluster before the first night"""
    from visrec.cli.launch import launch
    from visrec.pipelines.doctor import DoctorJob, check, main

    launch(main, DoctorJob, check=check)


def submit() -> NoReturn:
    """run a command on a cluster, and keep its exit code"""
    from visrec.pipelines.submit import submit as submit_command

    try:
        sys.exit(submit_command(sys.argv[1:]))
    except VisrecError as error:
        print(f"submit: {error}", file=sys.stderr)
        sys.exit(ExitCode.REFUSED if isinstance(error, InputError) else ExitCode.FAILED)


COMMANDS: dict[str, Callable[[], NoReturn]] = {
    "demo": demo,
    "init": init,
    "check": check,
    "import": import_data,
    "extract": extract,
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "recommend": recommend,
    "nightly": nightly,
    "rollback": rollback,
    "explain": explain,
    "export": export,
    "forget": forget,
    "doctor": doctor,
    "submit": submit,
    "import-features": import_features,
    "make-gallery": make_gallery,
}


def main() -> NoReturn:
    """The `visrec` command: runs the command that the first argument names."""
    exit_on_signals()  # before a command's imports, which take seconds
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--version", "version"):
        print(f"visrec {__version__}")
        sys.exit(0)
    if name in ("--help", "-h", "help"):
        print(_help())
        sys.exit(0)
    command = COMMANDS.get(name.replace("_", "-"))
    if command is None:
        from visrec.cli.keys import without_secrets

        hint = did_you_mean(name, COMMANDS) or f"; expected one of {', '.join(COMMANDS)}."
        found = f"Found {without_secrets(name)!r}, which is not a command{hint}"
        print(f"visrec: {found}", file=sys.stderr)
        sys.exit(ExitCode.REFUSED)
    sys.argv = [f"visrec {name}", *arguments]
    command()


def _help() -> str:
    commands = "\n".join(f"  {name:<16} {call.__doc__}" for name, call in COMMANDS.items())
    return (
        "Nightly recommendations from pictures and past interactions.\n\n"
        "usage: visrec COMMAND [WORKSPACE] [--local] [--config FILE] [--key value ...]\n\n"
        f"{commands}\n\n"
        "visrec COMMAND --help lists the command's keys. Start with: visrec demo"
    )
