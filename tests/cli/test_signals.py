"""Signals to a job: one sentence, exit code 130, no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

# A job whose child process has started a process of its own, as Ray's do.
JOB = """
import subprocess, sys
from visrec.cli.signals import exit_on_signals, ignore_signals
exit_on_signals()
tree = ["sh", "-c", "sleep 300 2>/dev/null & echo $! $$; wait"]
child = subprocess.Popen(tree, stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), flush=True)
{moment}
print("went on", flush=True)
"""
MOMENTS = {
    "in Python": "import time; time.sleep(60)",
    "in C": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 1 << 30)",
    "with a foreign handler that exits with 0": (
        "import signal, time\n"
        "for n in (signal.SIGINT, signal.SIGTERM): signal.signal(n, lambda *_: sys.exit(0))\n"
        "time.sleep(60)"
    ),
    "where every exception is swallowed": (
        "import time\nwhile True:\n    try: time.sleep(60)\n    except BaseException: pass"
    ),
    "with standard error redirected": (
        "import os, time; os.dup2(os.open('/dev/null', 1), 2); time.sleep(60)"
    ),
}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def stopped(moment: str, number: signal.Signals) -> tuple[int, str, str, list[int]]:
    """Exit code, outputs and living children of a job that got a signal while it ran `moment`."""
    script = JOB.format(moment=moment)
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    time.sleep(0.3)  # until the job runs `moment`
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=30)
    finally:
        left = [pid for pid in children if alive(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    return process.returncode, out, err, left


@pytest.mark.parametrize(
    ("moment", "number"),
    [("in Python", signal.SIGTERM), *((moment, signal.SIGINT) for moment in MOMENTS)],
)
def test_signal_ends_a_job_and_its_processes_with_one_sentence(
    moment: str, number: signal.Signals
) -> None:
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    code, out, err, left = stopped(MOMENTS[moment], number)
    assert code == 130
    assert err.strip() == (
        f"-c: stopped by {name}. Nothing half done was published; start the same command again to "
        "go on."
    )
    assert "went on" not in out
    assert left == []


def test_signal_after_the_work_does_not_change_the_exit_code() -> None:
    moment = "ignore_signals()\nimport time; time.sleep(1)\nchild.kill(); child.wait()"
    code, out, err, left = stopped(moment, signal.SIGTERM)
    assert len(left) == 1  # `sleep`, since the job has killed only its shell
    assert (code, err) == (0, "")
    assert "went on" in out
