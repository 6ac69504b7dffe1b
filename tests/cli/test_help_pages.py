"""The help that was written beforehand is what the jobs would print, and needs none of them."""

import subprocess
import sys

import pytest

from tests.write_help_pages import PAGES, help_of
from visrec.cli.help_pages import page
from visrec.commands import COMMANDS


@pytest.mark.parametrize("name", PAGES)
def test_page_is_what_the_job_prints(name: str) -> None:
    written = page(COMMANDS[name].__name__).read_text()
    assert written == help_of(name), "The keys have changed: run `make help-pages`."


def test_help_alone_imports_no_job() -> None:
    program = (
        "import sys; from visrec.commands import main\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'pyarrow', 'ray') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, "train", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: visrec train " in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"


def test_help_with_another_key_is_about_that_key() -> None:
    command = [sys.executable, "-m", "visrec", "train", "--model.name", "vbpr", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--model.name NAME" in ended.stdout
    assert "(default: vbpr)" in ended.stdout
