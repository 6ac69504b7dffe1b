"""The plain side's triples and gradient against loops, and how times to an AUC are read."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks import backbones, text, train
from benchmarks.quality import CURATORNET
from benchmarks.train import (
    BATCH,
    CYCLE,
    WEIGHT_DECAY,
    Measured,
    Plain,
    best_of,
    first_at,
    job_flags,
    rates,
    times_to_auc,
    until,
)
from tests.training import checkerboard, jagged_lists
from visrec.cli.parse import parse
from visrec.pipelines.train import TrainJob

WHOLE = checkerboard()
# Users of 2, 8 and 14 items.
DATA = dataclasses.replace(
    WHOLE,
    train=jagged_lists(
        [WHOLE.train[u][: 2 + 6 * (u % 3)].tolist() for u in range(len(WHOLE.train))]
    ),
    basket_R=np.concatenate([np.arange(2 + 6 * (u % 3)) for u in range(len(WHOLE.train))]),
    time_R=np.concatenate([np.arange(2 + 6 * (u % 3)) for u in range(len(WHOLE.train))]),
)


@pytest.mark.parametrize("by_interaction", [False, True])
def test_triples_are_a_users_items_less_one_that_one_and_a_foreign_one(
    by_interaction: bool,
) -> None:
    side, lists = Plain(DATA, 1e-3, by_interaction=by_interaction), DATA.train
    known = {tuple(sorted(lists[u])) for u in range(len(lists))}
    for _ in range(CYCLE):
        profile_BP, positive_B, negative_B = (rows.numpy() for rows in side.batch())
        assert len(profile_BP) == len(positive_B) == len(negative_B) == BATCH
        for profile, positive, negative in zip(profile_BP, positive_B, negative_B, strict=True):
            whole = tuple(sorted([*profile, positive]))
            assert whole in known
            assert negative not in whole


def test_sizes_come_as_often_as_users_or_as_interactions_have_them() -> None:
    length_U = DATA.train.lengths
    for by_interaction in (False, True):
        side = Plain(DATA, 1e-3, by_interaction=by_interaction)
        batches = 40 * CYCLE
        seen = Counter(side.batch()[0].shape[1] + 1 for _ in range(batches))
        weight_U = length_U if by_interaction else np.ones(len(length_U))
        for length in np.unique(length_U):
            expected = weight_U[length_U == length].sum() / weight_U[length_U > 1].sum()
            assert seen[int(length)] / batches == pytest.approx(expected, abs=0.03)


def test_a_step_is_adam_on_the_summed_bpr_loss_of_each_triple_by_itself() -> None:
    side, other = Plain(DATA, 1e-2, seed=3), Plain(DATA, 1e-2, seed=3)
    side.step()
    loss = torch.zeros(())
    input_ND = other.model.feature_scale(torch.from_numpy(DATA.feature_ND).float())
    encode = other.model.item_tower
    for profile, positive, negative in zip(*other.batch(), strict=True):
        item_Pd = torch.stack([encode(input_ND[item]) for item in profile])
        pooled = torch.cat([item_Pd.max(dim=0).values, item_Pd.mean(dim=0)])
        user = other.model.user_tower(pooled)
        score = user @ encode(input_ND[positive]) - user @ encode(input_ND[negative])
        loss = loss - torch.log(torch.sigmoid(score))
    loss.backward()
    parameters = list(other.model.parameters())
    torch.optim.Adam(parameters, lr=1e-2, weight_decay=WEIGHT_DECAY).step()
    for mine, expected in zip(side.model.parameters(), parameters, strict=True):
        # Adam's first step has the sign of the gradient: where that is next to nothing, any.
        sure = expected.grad.abs() > 1e-3
        assert torch.allclose(mine[sure], expected[sure], atol=1e-5)


def test_times_are_the_first_at_the_target_and_the_best_curve_goes_on() -> None:
    quick = [(1.0, 0.5), (2.0, 0.6), (3.0, 0.65), (4.0, 0.8), (5.0, 0.9)]
    slow = [(1.0, 0.5), (2.0, 0.55), (3.0, 0.99)]
    assert first_at(quick, 0.6) == 2.0
    assert first_at(quick, 0.95) is None
    assert until(iter(quick), 0.6, 9) == quick[:2]
    assert until(iter(quick), 0.99, 3) == quick[:3]
    # After 2 of 8 seconds quick is higher; it goes on from there to the target.
    assert best_of({1e-4: iter(slow), 1e-3: iter(quick)}, 0.8, 8) == (1e-3, quick[:4])
    # Who gets there first in that quarter is chosen, and not run on.
    assert best_of({1e-4: iter(slow), 1e-3: iter(quick[2:])}, 0.55, 8) == (1e-4, slow[:2])


def test_all_figures_of_a_toy_are_there_and_are_ratios_of_each_other() -> None:
    flags = ["--train.batch_size=64", "--train.triples_per_epoch=640", "--train.epochs=50"]
    flags += [*CURATORNET, "--model.item_width=16", "--model.user_width=16"]
    config = parse(TrainJob, flags)
    asked = Measured(config, DATA, repeats=2, seconds=0.01, target=0.6, limit=20)
    found = rates(asked)
    assert found["visrec_triples_per_s"] > 0
    for suffix in ("", "_same_users", "_same_profiles"):
        low, high = found[f"ratio_triples{suffix}_spread"]
        assert 0 < low <= found[f"ratio_triples{suffix}"] <= high
    found = times_to_auc(asked)
    assert found["target_auc"] == 0.6
    ratio = found["plain_time_to_auc_s"] / found["visrec_time_to_auc_s"]
    assert found["ratio_time_to_auc"] == pytest.approx(ratio)
    assert found["plain_reached"] == (found["plain_best_auc"] >= 0.6)
    assert found["visrec_curve"][-1][1] >= 0.6


def test_figures_of_curatornet_are_of_curatornet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "movies", lambda *_: [])
    for flags in (job_flags("", ""), text.TRAINED, backbones.TRAINED):
        assert parse(TrainJob, flags).model.name == "curatornet"
