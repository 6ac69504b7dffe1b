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
