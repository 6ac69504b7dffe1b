"""The terminal's tables: every figure in its place, whatever is missing."""

from tests.evaluation.test_report import METRICS
from visrec.evaluation.table import interval_text, text_differences, text_table


def test_text_table() -> None:
    lines = text_table({**METRICS, "unmeasured": {}}).splitlines()
    header = "model AUC [low, high] RR R@20 P@20 nDCG@20 R@100 P@100 nDCG@100"
    assert lines[0].split() == header.split()
    first = "curatornet 0.850 [0.840, 0.870] 0.820 0.790 0.760 0.730 0.700 0.670 –"
    assert lines[1].split() == first.split()
    assert [line.split()[0] for line in lines[-2:]] == ["unmeasured", "oracle"]
    assert len({len(line) for line in lines}) == 1


def test_text_table_of_nothing_is_its_header() -> None:
    assert text_table({}).split()[0] == "model"


def test_differences_have_signs_and_a_star_where_the_interval_excludes_0() -> None:
    paired = {
        "a - b": {
            "auc": {"mean": 0.1, "low": 0.02, "high": 0.2},
            "rr": {"mean": -0.1, "low": -0.2, "high": -0.05},
            "recall@20": {"mean": 0.1, "low": -0.02, "high": 0.2},
            "ndcg@20": {"mean": -0.0001, "low": -0.001, "high": 0.001},
        }
    }
    header, row, note = text_differences(paired).splitlines()
    assert header.split()[:5] == ["difference", "AUC", "[low,", "high]", "RR"]
    expected = "a - b +0.100* [0.020, 0.200] −0.100* +0.100 – −0.0001 – – –"
    assert row.split() == expected.split()
    assert note == "* the 95 % interval excludes 0"


def test_bound_beside_zero_is_not_shown_as_zero() -> None:
    figure = {"mean": 0.0104, "low": -0.0005, "high": 0.00003}
    assert interval_text(figure, ", ") == "−0.0005, 0.00003"
    assert interval_text({"mean": 0.0, "low": -0.0, "high": 0.0}, ", ") == "0.000, 0.000"
