"""The explanation of ids that do not match between two tables."""

import pyarrow as pa
import pytest

from visrec.sources.id_mismatch import explain_id_mismatch


@pytest.mark.parametrize(
    ("first", "second", "difference"),
    [
        ("A7", "a7", "upper and lower case"),
        ("7", "007", "leading zeros"),
        ("x/7", "7", "the folder"),
        ("7.jpg", "7", "the file extension"),
        (
            "TAS/10 46",
            "TAS-10_46",
            "the difference between slashes, spaces, dashes and underscores",
        ),
        ("7.0", "7", "the file extension"),
        ("red%20shirt", "red shirt", "percent-encoding"),
        ("cafe\u0301", "caf\u00e9", "Unicode normalization"),  # as macOS names files
        ("010/0108775015.JPG", "108775015", "case, file extension, folder and zeros"),
    ],
)
def test_difference_is_named_with_examples(first: str, second: str, difference: str) -> None:
    for one, other in ((first, second), (second, first)):
        text = explain_id_mismatch(
            pa.array([one, "a"]), "The log", pa.array(["b", other]), "the shop"
        )
        assert f"some would match without {difference}, as {one!r} and {other!r}" in text
