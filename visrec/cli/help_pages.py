"""The help of each command, written beforehand, because making it takes seconds of imports.

`make help-pages` writes the pages of `visrec/cli/help_pages/`; a test compares them with the keys.
"""

import functools
import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

PROGRAM = "PROGRAM"  # stands in a page for the name by which the command was called
WIDTH = 100  # columns of a page
_FOLDER = Path(__file__).with_suffix("")


def page(command: str) -> Path:
    """The file of a command's help.

    Args:
        command: name of its function in `visrec.commands`.
    """
    return _FOLDER / f"{command}.txt"


def with_help_page(command: Callable[[], NoReturn]) -> Callable[[], NoReturn]:
    """Wraps a command: asked for nothing but `--help`, it prints the stored page and exits.

    Help that depends on other arguments, such as `--model.name vbpr --help`, comes from the job.
    """

    @functools.wraps(command)
    def run() -> NoReturn:
        if sys.argv[1:] in (["--help"], ["-h"]):
            text = page(command.__name__).read_text()
            print(text.replace(PROGRAM, Path(sys.argv[0]).name), end="")
            sys.exit(0)
        # A job's imports make a million objects and no garbage; looking for garbage takes a tenth
        # of their time. `launch` enables collection again.
        gc.disable()
        command()

    return run
