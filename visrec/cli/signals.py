"""Ctrl-C and SIGTERM: one sentence, an exit code of their own, and no process left behind.

A job may be killed at any moment and nothing half done is ever published, so there is nothing to
wind up: the process says that it was stopped, ends what it has started, and ends. A thread does so,
for Ray's libraries put handlers of their own in place of any other (one of them exits with 0), and
Python's handlers wait until a call into C++ comes back.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

STOPPED = 130  # the exit code, whoever stopped the job
_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_KILLING_S = 3.0  # for processes that are starting others
_END = 0  # no signal's number
_listening, _heard_all = threading.Event(), threading.Event()


def listen() -> None:
    """From here on SIGINT and SIGTERM end this process with 130: it was stopped.

    To be called before a job's imports, which take seconds.
    """
    stderr = os.dup(2)  # what is said here is never held back with the lines of Ray's start
    heard, told = socket.socketpair()
    told.setblocking(False)
    # Python writes the number of every signal here, whoever's handler it calls after that.
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard, stderr), daemon=True).start()
    atexit.register(_hear_all, told)
    _listening.set()
    listen_again()


def listen_again() -> None:
    """Takes the signals back, where `listen` had them, from Ray's C++ handler of SIGTERM."""
    if _listening.is_set():
        for number in _SIGNALS:
            signal.signal(number, _noted)


def work_is_done() -> None:
    """From here on the exit code is that of the work: a signal comes too late to change it."""
    if _listening.is_set():
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _hear_all(told: socket.socket) -> None:
    """Lets no signal be overtaken by the end of the process, as where a handler makes it exit."""
    told.send(bytes([_END]))
    _heard_all.wait(_KILLING_S)


def _noted(*_: object) -> None:
    """The thread does what there is to do."""


def _watch(heard: socket.socket, stderr: int) -> None:
    while True:
        for number in heard.recv(64):
            if number in _SIGNALS:
                _stop(number, stderr)
            elif number == _END:
                _heard_all.set()


def _stop(number: int, stderr: int) -> None:
    job = os.path.basename(sys.argv[0]).removesuffix(".py")
    text = (
        f"\n{job}: stopped by {_SIGNALS[signal.Signals(number)]}. Nothing half done was published; "
        "start the same command again to go on.\n"
    )
    with suppress(OSError):  # a terminal that is gone
        os.write(stderr, text.encode())
    # What others say of this end, such as Ray of its own processes, is of no use to anybody.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    _kill_descendants()
    os._exit(STOPPED)


def _kill_descendants() -> None:
    """Ends all processes that this one has started, and those that they have."""
    end = time.monotonic() + _KILLING_S
    while (found := _descendants(os.getpid())) and time.monotonic() < end:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """Living processes below one, as Linux tells of them; none on other systems."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            # The name, in parentheses, may contain anything: state and parent follow it.
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
