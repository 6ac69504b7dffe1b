"""The progress line."""

import pytest

from visrec.cli.progress_line import _duration, _progress_line, _rate, _Step


def test_line_before_the_first_row_has_the_total_and_no_rate() -> None:
    step = _Step("tune", 16, "trials")
    assert _progress_line(step, 0, "", 496.0) == "tune: 0 of 16 trials done after 496 s"
    assert "8 of 16 trials" in _progress_line(step, 8, "", 496.0)


def test_line_includes_rows_of_earlier_runs_and_the_status() -> None:
    step = _Step("tune", 16, "trials", done=4)
    assert _progress_line(step, 6, "2 running", 1200.0) == (
        "tune: 10 of 16 trials, 18.0 an hour, 20 min left, 2 running"
    )
    assert (
        _progress_line(step, 0, "2 running", 5.0)
        == "tune: 4 of 16 trials done after 5 s, 2 running"
    )
    assert _progress_line(step, 12, "", 12.0) == "tune: 16 of 16 trials, 1.0 a second"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (599, "599 s"), (3_500, "58 min"), (90_000, "25 h 0 min")]
)
def test_duration_in_words(seconds: float, words: str) -> None:
    assert _duration(seconds) == words


@pytest.mark.parametrize(
    ("rate", "words"), [(1234, "1,234 a second"), (0.5, "30.0 a minute"), (0.001, "3.6 an hour")]
)
def test_slow_rate_is_given_by_minute_or_hour(rate: float, words: str) -> None:
    assert _rate(rate) == words
