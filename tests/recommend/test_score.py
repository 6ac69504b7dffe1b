"""What a scoring worker says about its search."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.recommend.changing_shop import quiet_timer
from tests.retrieval import TableScorer
from visrec.models.scorers import DotScorer, ReRankScorer, Scorer
from visrec.recommend import score
from visrec.recommend.score import ScoreResources, ScoreShards, search_kernel_label
from visrec.retrieval.kernel import kernel_label

DOT = DotScorer(torch.zeros(3, 2), lambda profiles, _: torch.zeros(len(profiles), 2))
RE_RANK = ReRankScorer(
    DOT, 2, lambda profiles, _: torch.zeros(len(profiles), 2), lambda _, row_BC: row_BC.float()
)
TILED = TableScorer(np.zeros((1, 3), np.float32))


@pytest.mark.parametrize(("scorer", "has_kernel"), [(DOT, True), (RE_RANK, True), (TILED, False)])
def test_kernel_is_named_only_if_it_searches_the_items(scorer: Scorer, has_kernel: bool) -> None:
    assert search_kernel_label(scorer) == (kernel_label() if has_kernel else "")


@pytest.mark.parametrize(("scorer", "is_slower"), [(DOT, True), (RE_RANK, True), (TILED, False)])
def test_missing_kernel_is_reported_only_if_the_search_is_slower_for_it(
    scorer: Scorer, is_slower: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[str] = []
    task: Any = SimpleNamespace(data=None, spec=None, last=None, resources=ScoreResources())
    monkeypatch.setattr(score, "_load_scorer", lambda _: scorer)
    monkeypatch.setattr(score, "ShardRecommender", lambda *_: None)
    monkeypatch.setattr(score, "ShardWriter", lambda *_: None)
    monkeypatch.setattr(score, "Timer", lambda _: quiet_timer(messages.append))
    monkeypatch.setattr(score, "kernel_unavailable_reason", lambda: "no compiler")
    ScoreShards(task, None)  # type: ignore[arg-type]
    expected = "no compiled kernel, so the search is slower: no compiler"
    assert messages == ([expected] if is_slower else [])
