"""Arrays that are too large for memory are in files, and small ones are not."""

import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.memory import largest_file, private_memory
from visrec.errors import InputError
from visrec.scratch import MAX_BYTES_IN_MEMORY, scratch_array

ROWS = MAX_BYTES_IN_MEMORY // 2000 + 1  # of 1,000 float16 numbers: just too many


def test_large_array_keeps_its_numbers_and_takes_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = private_memory()
    array = scratch_array((ROWS, 1000), np.float16)
    array[:] = np.arange(1000)
    assert private_memory() - before < MAX_BYTES_IN_MEMORY / 10
    np.testing.assert_array_equal(array[[0, ROWS // 2, ROWS - 1]], [np.arange(1000)] * 3)
    assert not list(tmp_path.iterdir())


def test_small_array_is_in_memory() -> None:
    array = scratch_array((ROWS - 1, 1000), np.float16)
    assert (array.shape, array.dtype) == ((ROWS - 1, 1000), np.float16)
    assert array.base is None


def test_file_without_room_is_an_input_error_that_names_the_folder() -> None:
    refused = pytest.raises(InputError, match=rf"0.3 GB.*{ROWS:,} items.*{tempfile.gettempdir()}")
    with largest_file(1_000_000), refused:
        scratch_array((ROWS, 1000), np.float16)
