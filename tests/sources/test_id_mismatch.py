"""What is told of ids of two tables that should be the same."""

import pyarrow as pa
import pytest

from visrec.sources.id_mismatch import differing_ids


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("A7", "a7", "upper and lower case"),
        ("7", "007", "leading zeros"),
        ("x/7", "7", "the folder"),
        ("7.jpg", "7", "the ending"),
        ("7.0", "7", "the ending"),
        ("red%20shirt", "red shirt", "percent-encoding"),
        ("cafe\u0301", "caf\u00e9", "Unicode normalization"),  # as macOS names files
        ("010/0108775015.JPG", "108775015", "case, ending, folder and zeros"),
    ],
)
def test_what_differs_is_named_with_examples(ours: str, theirs: str, words: str) -> None:
    for one, other in ((ours, theirs), (theirs, ours)):
        text = differing_ids(pa.array([one, "a"]), "The log", pa.array(["b", other]), "the shop")
        assert f"some would agree without {words}, as {one!r} and {other!r}" in text
