"""The line of progress."""

from jobs.progress import _line


def test_line_before_the_first_row_says_how_many_are_to_come() -> None:
    assert _line("tune", 0, 16, "trials", 496.0) == "tune: 0 of 16 trials done after 496 s"
    assert "8 of 16 trials" in _line("tune", 8, 16, "trials", 496.0)
