"""The GPU's benchmark runs on a CPU at a toy size, so that it will run where there is a GPU."""

import json
import sys

import pytest

from benchmarks import gpu


def test_it_runs_on_a_cpu_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--users", "64", "--items", "500", "--pictures", "2", "--seconds", "0.01"]
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", *small, "--json"])
    gpu.main()
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["device"] == "no GPU: the CPU"
    assert found["top_k"]["share_of_product"] > 0
    assert found["training"]["triples_per_s"] > 0
    assert set(found["networks"]) == {"efficientnet-lite0", "resnet50"}
    for figures in found["networks"].values():
        assert figures["pictures_per_s"] > 0
