"""The evaluation benchmark at toy size: the same counts as a sort's, and figures that add up."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import evaluate

FLAGS = ["--users=150", "--items=1000", "--dimensions=16", "--sample=40", "--threads=1"]


def test_both_ways_find_the_same_and_the_figures_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *FLAGS, "--json"])
    threads = torch.get_num_threads()
    evaluate.main()
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["identical"] is True
    assert 0 < found["start_rss_mb"] <= found["peak_rss_mb"]
    for name in ("users_per_s", "argsort_users_per_s", "gemm_users_per_s", "ratio_argsort"):
        assert found["spread"][name] >= 0
        assert found[name] > 0
    assert {"cpu", "cores", "versions"} <= found.keys()


def test_one_place_off_is_not_identical() -> None:
    scorer = evaluate.made_scorer(1000, 16)
    profiles, targets = evaluate.made_users(40, 1000)
    ours = evaluate.by_visrec(scorer, profiles, targets)
    theirs = evaluate.by_sorting(scorer, profiles, targets)
    held = len(targets.values)
    assert evaluate.same(ours, theirs, 40, held)
    for name in ("above", "others_above", "others_equal"):
        off = theirs[name].copy()
        off[-1] += 1
        assert not evaluate.same(ours, {**theirs, name: off}, 40, held)
    assert not evaluate.same(ours, {**theirs, "auc": theirs["auc"] - 1e-6}, 40, held)


def test_made_users_have_no_item_twice() -> None:
    profiles, targets = evaluate.made_users(200, 300)
    for user in range(200):
        items = [*profiles[user], *targets[user]]
        assert len(set(items)) == len(items)
    assert set(np.unique(targets.lengths)) == set(range(1, 6))
