"""Errors survive pickling with their fields, and their tree is the one that exit codes rely on."""

import copy
import inspect
import pickle

import pytest

from visrec import errors
from visrec.errors import (
    BusyError,
    ConflictError,
    GateError,
    InputError,
    MissingFileError,
    SchemaError,
    StorageError,
)

MESSAGE = "Found 3 % of «絵画» rejected; expected at most 1 %. Raise --max_rejected."
CLASSES = [
    value
    for _, value in inspect.getmembers(errors, inspect.isclass)
    if value.__module__ == errors.__name__ and issubclass(value, Exception)
]


def test_all_errors_have_one_root() -> None:
    known = {InputError, SchemaError, StorageError, GateError, BusyError, ConflictError}
    assert known <= set(CLASSES)
    assert all(issubclass(kind, errors.VisrecError) for kind in CLASSES)


def test_only_bad_input_is_an_input_error() -> None:
    # The class decides the exit code: 2, 3 and 1 must not be confused.
    assert issubclass(SchemaError, InputError)
    for kind in (StorageError, GateError, BusyError, ConflictError):
        assert not issubclass(kind, InputError)
    assert not issubclass(GateError, StorageError | ConflictError)


def test_error_has_the_keys_that_its_message_names() -> None:
    message = "Found --items a.csv (--items); expected --interactions.columns '{a: b}' with --k."
    assert InputError(message).keys == ("items", "interactions.columns", "k")
    assert InputError("Found a -- b; expected 3 --- 4.").keys == ()


@pytest.mark.parametrize("kind", CLASSES)
def test_pickled_error_keeps_its_class_and_message(kind: type[Exception]) -> None:
    for sent in (pickle.loads(pickle.dumps(kind(MESSAGE))), copy.copy(kind(MESSAGE))):  # noqa: S301
        assert type(sent) is kind
        assert str(sent) == MESSAGE


@pytest.mark.parametrize(
    "error",
    [
        InputError(MESSAGE, path="s3://shop/items.csv", key="items"),
        SchemaError(MESSAGE, path="s3://shop/items.csv", key="items", column="item_id"),
        StorageError(MESSAGE, path="s3://shop/x", code="AccessDenied", reason="access denied."),
        MissingFileError(MESSAGE, path="/shop/x", code="FileNotFoundError", reason="no such file."),
        ConflictError(MESSAGE, path="s3://shop/night.lease"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pickled_error_keeps_its_fields(error: errors.VisrecError) -> None:
    sent = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert vars(sent) == vars(error)
    assert str(sent) == MESSAGE
