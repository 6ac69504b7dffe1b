"""Ctrl-C and SIGTERM: one sentence, an exit code of their own, and no process left behind.

A job may be killed at any moment, and nothing half done is ever published. So there is no work to
wind up: the process prints that it was stopped, kills the processes it has started, and exits. A
thread does this, because Ray's libraries replace signal handlers with their own (one of which exits
with 0), and because Python runs a handler only after a call into C++ returns.
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

from visrec.errors import ExitCode

_SIGNAL_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_KILL_TIMEOUT_S = 3.0  # children may start further processes while they are being killed
_AT_EXIT = 0  # no signal has this number
_advice = ["Nothing half done was published; start the same command again to go on."]
_installed, _drained = threading.Event(), threading.Event()


def exit_on_signals() -> None:
    """Makes this process exit with 130 on SIGINT and SIGTERM.

    Call this before a job's other imports, which take seconds.
    """
    stderr = os.dup(2)  # `_without_stderr` redirects descriptor 2 while Ray starts
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    # Python writes the number of each signal to this descriptor, whichever handler it calls next.
    signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(receiver, stderr), daemon=True).start()
    atexit.register(_drain, sender)
    _installed.set()
    restore_signal_handlers()


def advise_when_stopped(advice: str) -> None:
    """Sets what a signal prints from now on, after the words that it stopped the command."""
    _advice[:] = [advice]


def restore_signal_handlers() -> None:
    """Undoes Ray's change of the signal handlers, if `exit_on_signals` was called."""
    if _installed.is_set():
        for number in _SIGNAL_NAMES:
            signal.signal(number, _do_nothing)


def ignore_signals() -> None:
    """Ignores signals from now on: the work is done, and its exit code must not change."""
    if _installed.is_set():
        for number in _SIGNAL_NAMES:
            signal.signal(number, signal.SIG_IGN)


def _drain(sender: socket.socket) -> None:
    """Waits at exit until the thread has seen every signal, also when a handler called exit."""
    sender.send(bytes([_AT_EXIT]))
    _drained.wait(_KILL_TIMEOUT_S)


def _do_nothing(*_: object) -> None:
    """Takes the place of the default handler; the thread acts on the signal."""


def _watch(receiver: socket.socket, stderr: int) -> None:
    while True:
        for number in receiver.recv(64):
            if number in _SIGNAL_NAMES:
                _stop(number, stderr)
            elif number == _AT_EXIT:
                _drained.set()


def _stop(number: int, stderr: int) -> None:
    job = os.path.basename(sys.argv[0]).removesuffix(".py")
    text = f"\n{job}: stopped by {_SIGNAL_NAMES[signal.Signals(number)]}. {_advice[0]}\n"
    with suppress(OSError):  # the terminal may be gone
        os.write(stderr, text.encode())
    # Ray logs the death of its processes, which helps nobody here.
    devnull = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(devnull, descriptor)
    _kill_descendants()
    os._exit(ExitCode.STOPPED)


def _kill_descendants() -> None:
    """Kills all processes that this one has started, and those that they have started."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (pids := _descendants(os.getpid())) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _descendants(root: int) -> list[int]:
    """Living descendants of a process by Linux's /proc; empty on other systems."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            # The name stands in parentheses and may contain anything; state and parent follow it.
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    descendants: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        descendants += below
        queue += below
    return descendants
