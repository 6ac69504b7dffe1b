"""The terminal's tables: every figure is in its column, whatever is missing."""

from tests.evaluation.test_report import METRICS
from visrec.evaluation.table import (
    format_costs,
    format_differences,
    format_interval,
    format_metrics,
)
from visrec.text import width


def test_models_are_rows_by_decreasing_auc_with_the_oracle_last() -> None:
    lines = format_metrics({**METRICS, "unmeasured": {}}).splitlines()
    header = "model AUC [low, high] RR R@20 P@20 nDCG@20 R@100 P@100 nDCG@100"
    assert lines[0].split() == header.split()
    first = "curatornet 0.850 [0.840, 0.870] 0.820 0.790 0.760 0.730 0.700 0.670 –"
    assert lines[1].split() == first.split()
    assert [line.split()[0] for line in lines[-2:]] == ["unmeasured", "oracle"]
    assert len({len(line) for line in lines}) == 1


def test_table_without_models_is_its_header() -> None:
    assert format_metrics({}).split()[0] == "model"


def test_differences_have_signs_and_a_star_if_the_interval_excludes_0() -> None:
    paired = {
        "a - b": {
            "auc": {"mean": 0.1, "low": 0.02, "high": 0.2},
            "rr": {"mean": -0.1, "low": -0.2, "high": -0.05},
            "recall@20": {"mean": 0.1, "low": -0.02, "high": 0.2},
            "ndcg@20": {"mean": -0.0001, "low": -0.001, "high": 0.001},
        }
    }
    header, row, note = format_differences(paired).splitlines()
    assert header.split()[:5] == ["difference", "AUC", "[low,", "high]", "RR"]
    expected = "a - b +0.100* [0.020, 0.200] −0.100* +0.100 – −0.0001 – – –"
    assert row.split() == expected.split()
    assert note == "* the 95 % interval excludes 0"


def test_bound_close_to_zero_is_not_shown_as_zero() -> None:
    figure = {"mean": 0.0104, "low": -0.0005, "high": 0.00003}
    assert format_interval(figure, ", ") == "−0.0005, 0.00003"
    assert format_interval({"mean": 0.0, "low": -0.0, "high": 0.0}, ", ") == "0.000, 0.000"


NAMES = ("m" * 70, "推荐模型", "cafe\u0301", "한국어", "👩\u200d🎨", "line\nbreak\x1b[2J\u202e")


def test_columns_are_aligned_whatever_the_models_are_called() -> None:
    figures = METRICS["curatornet"]
    for text in (
        format_metrics(dict.fromkeys(NAMES, figures)),
        format_costs({name: {"parameters": 12.0} for name in NAMES}),
    ):
        lines = text.splitlines()
        assert len(lines) == 1 + len(NAMES)
        assert len(set(map(width, lines))) == 1
        assert all(name in text for name in NAMES[:-1])
        assert not {"\x1b", "\u202e"} & set(text)


def test_table_for_a_narrow_terminal_is_split_and_loses_nothing() -> None:
    text = format_metrics(dict.fromkeys(NAMES, METRICS["curatornet"]), terminal_columns=60)
    assert max(map(width, text.splitlines())) <= 60
    parts = text.split("\n\n")
    assert len(parts) > 1
    headers = [part.split("\n")[0].split() for part in parts]
    assert [name for header in headers for name in header[1:]] == (
        ["AUC", "[low,", "high]", "RR", "R@20", "P@20", "nDCG@20", "R@100", "P@100", "nDCG@100"]
    )
    for part in parts:
        assert len(set(map(width, part.splitlines()))) == 1
        pieces = [line.split()[0] for line in part.splitlines() if line.startswith("m")][1:]
        assert "".join(pieces) == NAMES[0]


def test_terminal_without_room_still_shows_every_column() -> None:
    assert format_metrics(METRICS, terminal_columns=1).count("0.850") == 1
