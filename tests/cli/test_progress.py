"""The line of progress."""

import pytest

from visrec.cli.progress import _duration, _line, _rate, _Work


def test_line_before_the_first_row_says_how_many_are_to_come() -> None:
    work = _Work("tune", 16, "trials")
    assert _line(work, 0, "", 496.0) == "tune: 0 of 16 trials done after 496 s"
    assert "8 of 16 trials" in _line(work, 8, "", 496.0)


def test_line_counts_what_earlier_runs_did_and_says_how_things_stand() -> None:
    work = _Work("tune", 16, "trials", done=4)
    assert _line(work, 6, "2 running", 1200.0) == (
        "tune: 10 of 16 trials, 18.0 an hour, 20 min left, 2 running"
    )
    assert _line(work, 0, "2 running", 5.0) == "tune: 4 of 16 trials done after 5 s, 2 running"
    assert _line(work, 12, "", 12.0) == "tune: 16 of 16 trials, 1.0 a second"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (599, "599 s"), (3_500, "58 min"), (90_000, "25 h 0 min")]
)
def test_duration(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(1234, "1,234 a second"), (0.5, "30.0 a minute"), (0.001, "3.6 an hour")]
)
def test_slow_rate_is_not_zero(rate: float, words: str) -> None:
    assert _rate(rate) == words
