"""The summary of a job as text and as JSON."""

import pytest

from visrec.cli.summary import Summary
from visrec.text import width


def test_render_formats_values_and_leaves_out_empty_ones() -> None:
    summary = Summary(
        "extract_features",
        rows={
            "rejected by reason": {},
            "files left out": {".txt": 0},
            "validation AUC": None,
            "nights removed": [],
            "rows left out": {"no feature": 12_000, "too_old": 1},
            "shards": ["a", "b"],
            "best": 0.00123456789,
            "rejected": 0,
        },
    )
    lines = [" ".join(line.split()) for line in summary.render().splitlines()[2:]]
    assert lines == [
        "rows left out 12,000 no feature, 1 too old",
        "shards a, b",
        "best 0.00123457",
        "rejected 0",
    ]


def test_render_aligns_wide_and_control_characters() -> None:
    rows = {"short": "one", "validation AUC of the refit": "two", "模型的名字是这个": "three"}
    _, *lines = (
        Summary("x", rows={**rows, "hostile": "a\nb\x1b[2J\ud800"}).render().strip().splitlines()
    )
    assert len(lines) == 4
    starts = {
        width(line[: line.index(value)]) for line, value in zip(lines, rows.values(), strict=False)
    }
    assert len(starts) == 1
    assert lines[-1].endswith("a␊b␛[2J\ufffd")


def test_long_value_wraps_beside_its_label_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visrec.cli.summary.terminal_width", lambda: 60)
    path = "/" + "long/" * 20
    text = Summary("x", rows={"reasons": "too many of them " * 8, "at": path}).render()
    beside = [line for line in text.splitlines()[2:] if path not in line]
    assert len(beside) > 2
    assert all(len(line) <= 60 for line in beside)
    assert all(line.startswith(" " * 25) for line in beside[1:])
    assert path in text  # unbroken, so that it can be copied


def test_phases_and_worker_seconds_are_added_up() -> None:
    summary = Summary("train", rows={"items": 12_345})
    for _ in range(2):
        with summary.phase("fit"):
            pass
    summary.add_worker_seconds({"fit_s": 2.5, "rows": 7})
    assert summary.phases.keys() == {"fit"}
    assert summary.to_dict()["worker_s"] == {"fit": 2.5}
    assert "12,345" in summary.render()
