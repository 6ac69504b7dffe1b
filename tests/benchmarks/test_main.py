"""What moved between two results, and what is not told."""

import json

from benchmarks.__main__ import committed, moved


def test_search_is_compared_with_a_result_that_names_its_kernel() -> None:
    found = json.loads(committed("topk").read_text())
    assert (found["asked"]["vectors"], found["asked"]["isa"]) == ("random", "native")
    assert found["kernel"]["visrec"] == "avx512vnni"


def test_numbers_that_moved_by_more_than_a_fifth_are_told() -> None:
    before = {"rate": 100.0, "runs": [{"s": 1.0}, {"s": 2.0}], "same": 5, "was_none": 0}
    now = {"rate": 70.0, "runs": [{"s": 1.1}, {"s": 3.0}], "same": 5, "was_none": 1, "new": 3}
    rate, run = moved(before, now)
    assert rate == "  rate: 100 before, 70 now (-30%)"
    assert run.startswith("  runs[1].s: 2 before, 3 now (+50%)")


def test_machine_and_questions_are_no_figures() -> None:
    before = {"load": 0.1, "cores": 2, "asked": {"users": 10}, "identical": True}
    now = {"load": 9.0, "cores": 16, "asked": {"users": 99}, "identical": False}
    assert moved(before, now) == []
