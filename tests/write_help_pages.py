"""Writes the help pages of the commands: python -m tests.write_help_pages."""

import contextlib
import inspect
import io
import os
import sys
from unittest import mock

from visrec.cli.help_pages import PROGRAM, WIDTH, page
from visrec.commands import COMMANDS

PAGES = [name for name in COMMANDS if name != "submit"]  # whose help is in its error


def help_of(name: str) -> str:
    """What a command prints when its job is asked for help."""
    text = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [PROGRAM, "--help"]),
        mock.patch.dict(os.environ, COLUMNS=str(WIDTH)),
        contextlib.redirect_stdout(text),
        contextlib.suppress(SystemExit),
    ):
        inspect.unwrap(COMMANDS[name])()
    return text.getvalue()


def main() -> None:
    for name in PAGES:
        page(COMMANDS[name].__name__).write_text(help_of(name))


if __name__ == "__main__":
    main()
