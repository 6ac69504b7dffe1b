"""Every error visrec raises on purpose.

VisrecError
├── InputError      the configuration or the data is not what the job needs (exit code 2)
│   └── SchemaError a table's columns are not what was declared
├── StorageError    a store refuses or fails (exit code 2 before any work, 1 after)
├── GateError       a quality gate held publication back (exit code 3)
└── ConflictError   another writer committed first (exit code 1)

A message is one readable paragraph: what was found, what was expected, which key to change.
Each error is built from that one string alone, so that it survives pickling between processes.
"""

import difflib
from collections.abc import Iterable


class VisrecError(Exception):
    """Root of all errors raised on purpose."""


class InputError(VisrecError):
    """Bad configuration or bad input: nothing was written."""


class SchemaError(InputError):
    """A table does not have the columns or types declared for it."""


class StorageError(VisrecError):
    """A local disk or an S3 store refused or failed a request."""


class GateError(VisrecError):
    """A quality gate held the publication back."""


class ConflictError(VisrecError):
    """Another writer committed first."""


def did_you_mean(found: str, known: Iterable[object], before: str = "") -> str:
    """The end of a sentence about a misspelt name, nothing where no name is like it.

    Args:
        found: the name.
        known: names that there are; of dotted ones the last part alone is recognised too.
        before: what stands before each of them, such as dashes.
    """
    names = [str(name) for name in known] if found else []
    near = [name for name in names if _last(name) == _last(found)]
    near = near or [name for name in names if name.startswith(found)]
    # Of two keys in one group most letters agree whatever their last parts are.
    alike = [name for name in names if _alike(_last(found), _last(name)) >= _LIKE]
    near = near or difflib.get_close_matches(found, alike, n=1, cutoff=_LIKE)
    return f"; did you mean {before}{near[0]}?" if near else ""


_LIKE = 0.6  # difflib's own measure of a close match


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _alike(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
