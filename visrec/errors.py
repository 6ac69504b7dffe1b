"""Every error that visrec raises on purpose.

VisrecError
├── InputError              the configuration or the data is not what the job needs (exit code 2)
│   ├── SchemaError         a table's columns are not the declared ones
│   └── NoExamplesError     the interactions give a model nothing to train on
├── StorageError            a disk or an S3 store refused or failed a request (exit code 1, or 2 if
│   │                       the job has written nothing yet)
│   └── MissingFileError    the file does not exist
├── GateError               a gate held the publication back (exit code 3)
├── BusyError               another process does this work now, and nothing was done here (exit
│                           code 3)
└── ConflictError           another writer committed first (exit code 1)

A message is one readable paragraph: what was found, what was expected, which key to change. It
names configuration keys as `--key`, and `VisrecError.keys` has them. Errors also have attributes
(path, key, code), None if they do not apply. So no other code parses messages.

The message is the only positional argument: pickle, which carries an error from one process to
another, calls the class with the positional arguments and then sets the attributes.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of all commands.

    If a job ends with `REFUSED`, readers notice nothing, although earlier steps of a night may have
    written data.
    """

    DONE = 0  # and published, or another process is at work on this night
    FAILED = 1  # any failure that is not listed here
    REFUSED = 2  # bad configuration or input
    HELD_BACK = 3  # by a gate; or, with `--exit_if_running 3`, another process is at work
    NOT_PUBLISHED = 4  # done, but an older or a later run stays published
    STOPPED = 130  # by the user


_KEY = re.compile(r"--([a-z_](?:[a-z_.]*[a-z_])?)")


class VisrecError(Exception):
    """Root of all errors that are raised on purpose."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The configuration keys that the message names, without dashes, each once."""
        return tuple(dict.fromkeys(_KEY.findall(str(self))))


class InputError(VisrecError):
    """Bad configuration or bad input: the step that found it has published nothing.

    Attributes:
        path: location of the file or table.
        key: configuration key that names it, without dashes.
    """

    def __init__(self, message: str, *, path: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.path, self.key = path, key


class SchemaError(InputError):
    """A table does not have the columns, types or values declared for it.

    Attributes:
        column: name of the column.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        key: str | None = None,
        column: str | None = None,
    ) -> None:
        super().__init__(message, path=path, key=key)
        self.column = column


class NoExamplesError(InputError):
    """The interactions give a model nothing to train on, as those of a young shop may.

    Attributes:
        found: what the interactions have, as the end of a sentence.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        key: str | None = None,
        found: str | None = None,
    ) -> None:
        super().__init__(message, path=path, key=key)
        self.found = found


def no_examples_error(found: str, advice: str) -> NoExamplesError:
    """The error that begins with what was found.

    Args:
        found: what the interactions have, as the end of a sentence.
        advice: what was expected, and which key to change.
    """
    return NoExamplesError(f"{found[0].upper()}{found[1:]}; {advice}", found=found)


class StorageError(VisrecError):
    """A local disk or an S3 store refused or failed a request.

    Attributes:
        path: location of the file or directory.
        code: S3's error code, or the name of the Python exception.
        reason: the part of the message that says why and what to check.
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | None = None,
        code: str | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.path, self.code, self.reason = path, code, reason


class MissingFileError(StorageError):
    """The file does not exist."""


class GateError(VisrecError):
    """A gate held the publication back."""


class BusyError(VisrecError):
    """Another process does this work now, and nothing was done here."""


class ConflictError(VisrecError):
    """Another writer committed first.

    Attributes:
        path: location of the file that both wanted to write.
    """

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


_SIMILARITY = 0.6  # difflib's default for a close match


@contextmanager
def extended_errors(explain: Callable[[InputError], str]) -> Iterator[None]:
    """Appends to the message of an error what there is to add.

    Args:
        explain: given the error, returns the text to append; empty for none.

    Raises:
        InputError: the same error.
    """
    try:
        yield
    except InputError as error:
        error.args = (f"{error}{explain(error)}",)
        raise


def did_you_mean(found: str, known: Iterable[object], before: str = "") -> str:
    """The end of a sentence about a misspelt name; empty if no known name is similar.

    Args:
        found: the misspelt name.
        known: the valid names. The last part of a dotted name is also recognized on its own.
        before: prefix of the suggested name, such as dashes.
    """
    names = [str(name) for name in known] if found else []
    close = [name for name in names if _last_part(name) == _last_part(found)]
    close = close or [name for name in names if name.startswith(found)]
    # Two keys of one group share most of their letters, so the last parts must be similar too.
    similar = [n for n in names if _similarity(_last_part(found), _last_part(n)) >= _SIMILARITY]
    close = close or difflib.get_close_matches(found, similar, n=1, cutoff=_SIMILARITY)
    return f"; did you mean {before}{close[0]}?" if close else ""


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _similarity(first: str, second: str) -> float:
    return difflib.SequenceMatcher(None, first, second).ratio()
