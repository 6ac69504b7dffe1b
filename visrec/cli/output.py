"""Reports what a job does: as text for people or as JSON lines for programs.

`launch` chooses before the job runs; from Python it is text. docs/operations.md has the fields of
the JSON lines.
"""

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from visrec.config import plain

Level = Literal["info", "warning", "error"]


@dataclass
class _Output:
    """How this process reports what it does.

    Attributes:
        job: the name of the job that it runs.
        quiet: only warnings and errors.
        log_json: one JSON object a line, all on standard output.
    """

    job: str = ""
    quiet: bool = False
    log_json: bool = False


_output = _Output()


def choose_output(job: str, *, quiet: bool, log_json: bool) -> None:
    """Sets how this process reports what it does, as in `_Output`."""
    _output.job, _output.quiet, _output.log_json = job, quiet, log_json


def is_terminal() -> bool:
    """Whether people read along on a terminal, where a line may be replaced by the next."""
    return sys.stdout.isatty() and not (_output.quiet or _output.log_json)


def say(text: str, level: Level = "info", **fields: Any) -> None:
    """Reports one thing: an error on standard error, the rest on standard output.

    Args:
        text: for people; a line or several.
        level: `warning` and `error` are shown with --quiet, too.
        fields: the same for programs, any values that JSON can hold.
    """
    if _output.quiet and level == "info":
        return
    if _output.log_json:
        _write_line(level, {"text": text.strip(), **fields})
    else:
        print(text, file=sys.stderr if level == "error" else sys.stdout, flush=True)


def warn(text: str) -> None:
    """Tells of something that does not stop the job."""
    say(text, "warning")


def say_end(exit_code: int, message: str) -> None:
    """Reports how the job ended: the message if there is one, and in JSON the exit code."""
    if _output.log_json:
        level: Level = "error" if message else "info"
        _write_line(level, {"text": message, "event": "end", "exit_code": exit_code})
    elif message:
        say(f"\n{_output.job}: {message}", "error")


def _write_line(level: Level, fields: dict[str, Any]) -> None:
    """Writes an object of any values that JSON can hold; sets as sorted lists."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "level": level, "job": _output.job, **fields}
    print(json.dumps(plain(line), ensure_ascii=False, default=sorted), flush=True)
