"""Errors cross process boundaries whole, and their tree is the one the exit codes rely on."""

import copy
import inspect
import pickle

import pytest

from visrec import errors
from visrec.errors import ConflictError, GateError, InputError, SchemaError, StorageError

MESSAGE = "Found 3 % of «絵画» rejected; expected at most 1 %. Raise --max_rejected."
CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__
]


def test_all_errors_have_one_root() -> None:
    assert {InputError, SchemaError, StorageError, GateError, ConflictError} <= set(CLASSES)
    assert all(issubclass(kind, errors.VisrecError) for kind in CLASSES)


def test_only_bad_input_is_input_error() -> None:
    # The exit code is chosen by these: 2, 3 and 1 must not be taken for each other.
    assert issubclass(SchemaError, InputError)
    for kind in (StorageError, GateError, ConflictError):
        assert not issubclass(kind, InputError)
    assert not issubclass(GateError, StorageError | ConflictError)


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_keeps_its_class_and_message_between_processes(kind: type[Exception]) -> None:
    for sent in (pickle.loads(pickle.dumps(kind(MESSAGE))), copy.copy(kind(MESSAGE))):  # noqa: S301
        assert type(sent) is kind
        assert str(sent) == MESSAGE
