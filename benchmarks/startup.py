"""Seconds to the first work of each local job, and of a small night, beside an earlier commit.

python -m benchmarks.startup --json
python -m benchmarks.startup --before f8cfcf3 --repeats 3 --json

The data are the demo's gallery. Each job is started as a process of its own on what the ones before
it have left. `extract` has 64 pictures to read, so its seconds are those to the first features;
`train` is timed to the line of its first epoch; `recommend`, `evaluate` and `night` to their ends;
`help` is the slowest `--help` of these jobs. The commit before is unpacked beside this one and runs
the same, by turns with it. `ratio_before` is its seconds by this commit's, of the medians.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from visrec.demo.gallery import GalleryConfig, write_gallery
from visrec.storage.store import Store

CHECKOUT = Path(__file__).parents[1]
JOBS = ("extract_features", "train", "evaluate", "recommend", "nightly")
FIRST_EPOCH = "epoch   1 "
NIGHT = "2026-11-20"
TRAIN = ("--config", "configs/demo_train.yaml")


def seconds(checkout: Path, job: str, *flags: str, until: str | None = None) -> float:
    """Seconds of a job, or until its first line with these words; it runs to its end either way.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-u", f"jobs/{job}.py", *flags]
    start, seen = time.perf_counter(), None
    process = subprocess.Popen(
        command, cwd=checkout, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    for line in process.stdout:
        if until is not None and seen is None and until in line:
            seen = time.perf_counter() - start
    if process.wait():
        raise subprocess.CalledProcessError(process.returncode, command)
    return seen or time.perf_counter() - start


def round_of(checkout: Path, gallery: Path, works: list[str]) -> dict[str, float]:
    """Seconds of each job.

    Args:
        checkout: whose jobs run.
        gallery: a workspace with nothing but inputs.
        works: names of the 64 pictures of the extraction.
    """
    with tempfile.TemporaryDirectory() as folder:
        shop, few = Path(folder, "shop"), Path(folder, "few")
        shutil.copytree(gallery, shop)
        (few / "images").mkdir(parents=True)
        for name in works:
            shutil.copy(gallery / "images" / name, few / "images" / name)
        local = ("--local", "--workspace", str(shop))
        night = (*local, "--as-of", NIGHT, "--train_config", TRAIN[1])
        return {
            "help": max(seconds(checkout, job, "--help") for job in JOBS),
            "extract": seconds(checkout, "extract_features", "--local", "--workspace", str(few)),
            "night": seconds(checkout, "nightly", *night),
            "train": seconds(checkout, "train", *local, *TRAIN, until=FIRST_EPOCH),
            "evaluate": seconds(checkout, "evaluate", *local),
            "recommend": seconds(checkout, "recommend", *local),
        }


def unpack(commit: str, folder: Path) -> Path:
    """The files of a commit."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=CHECKOUT, check=True, capture_output=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def measure(before: str, repeats: int) -> dict[str, Any]:
    """Medians of both commits, and their ratios."""
    rounds: dict[str, list[dict[str, float]]] = {"now": [], "before": []}
    with tempfile.TemporaryDirectory() as folder:
        earlier, gallery = unpack(before, Path(folder, "before")), Path(folder, "gallery")
        write_gallery(GalleryConfig(), Store.at(str(gallery)).write)
        works = sorted(path.name for path in (gallery / "images").iterdir())[:64]
        for _ in range(repeats):
            for name, checkout in (("now", CHECKOUT), ("before", earlier)):
                rounds[name].append(round_of(checkout, gallery, works))
                print(name, {job: round(s, 1) for job, s in rounds[name][-1].items()}, flush=True)
    jobs = rounds["now"][0]
    medians = {
        name: {job: statistics.median(each[job] for each in found) for job in jobs}
        for name, found in rounds.items()
    }
    ratios = {job: medians["before"][job] / medians["now"][job] for job in jobs}
    return {"seconds": medians, "rounds": rounds, "ratio_before": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", default="f8cfcf3", help="a commit to compare with (f8cfcf3)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()
    found = {**machine(), "asked": vars(args), **measure(args.before, args.repeats)}
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
