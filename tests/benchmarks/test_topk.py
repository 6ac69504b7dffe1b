"""The benchmark of the kernel, small: it measures what it says, and the lists are exact."""

import json
import os
import sys

import numpy as np
import pytest

pytest.importorskip("faiss", reason="the peers come with the extra `bench`")

from benchmarks import topk
from visrec.jagged import Jagged
from visrec.retrieval.topk import TopKResult


def test_it_tells_rates_ratios_and_that_the_lists_are_exact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--users", "70", "--items", "500", "--dimensions", "8", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["topk", *small, "--k", "10", "--threads", "1", "--json"])
    monkeypatch.setattr(topk, "PEERS", {"faiss": topk.by_faiss})  # each takes a process
    for name in ("OPENBLAS_CORETYPE", "OMP_NUM_THREADS", "OMP_PROC_BIND", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "Nehalem")  # is restored after the test
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None)
    topk.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["identical"] is True
    assert "openblas" in found["kernel"]["faiss"]
    assert "Nehalem" not in found["kernel"]["faiss"]
    for name in ("visrec", "faiss"):
        assert found[f"{name}_users_per_s"] > 0
    assert found["ratio_faiss"] == pytest.approx(
        found["visrec_users_per_s"] / found["faiss_users_per_s"], rel=0.01
    )


def test_lists_that_are_not_exact_are_found_out() -> None:
    item_Nd = np.arange(12, dtype=np.float32)[:, None]
    user_Bd, nothing = np.ones((1, 1), np.float32), Jagged(np.zeros(0, np.int64), np.zeros(2, int))
    good, bad, twice = ([[11, 10, 9]], [[11, 10, 8]], [[11, 10, 10]])
    for rows, right in ((good, True), (bad, False), (twice, False)):
        best = TopKResult(np.array(rows), np.zeros((1, 3), np.float32))
        assert topk.identical(best, item_Nd, user_Bd, nothing) is right
