"""Examples at their own moments hold nothing of their own day or later."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.training import checkerboard, data_provenance
from visrec.errors import NoExamplesError
from visrec.interactions.activity import DAY
from visrec.interactions.split import SplitConfig
from visrec.jagged import Jagged
from visrec.models.base import ModelTraits
from visrec.sampling.triples import SamplingConfig
from visrec.training.data import TrainingData
from visrec.training.moments import MomentSource

TRAITS = ModelTraits(requires_features=True)
CPU = torch.device("cpu")
WHOLE = SamplingConfig(sub_profiles=False, max_profile=4)


def _data(users: int) -> TrainingData:
    data = checkerboard(items=20, users=users)
    return replace(data, provenance=data_provenance(split=SplitConfig(by="night")))


def _source(data: TrainingData, sampling: SamplingConfig = WHOLE) -> MomentSource:
    source = MomentSource(data, sampling, 0, TRAITS)
    source.start_epoch(0, len(data.train.values))
    return source


def _examples(batch: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    """User, positive and profile of each example, as rows of the catalogue."""
    item_M = batch.item_M.numpy()
    lists = np.split(item_M[batch.profiles.values], batch.profiles.offsets[1:-1])
    positive_B = item_M[batch.positive_B]
    return [
        (int(u), int(i), tuple(map(int, profile)))
        for u, i, profile in zip(batch.user_B, positive_B, lists, strict=True)
    ]


def test_each_row_comes_once_with_what_its_user_had_taken_before() -> None:
    data = _data(users=40)
    rows = len(data.train.values)
    batch = _source(data).batch(0, rows, 0, 1, CPU)
    expected = [
        (user, int(items[k]), tuple(map(int, items[max(0, k - 4) : k])))
        for user in range(40)
        for items in [data.train[user]]
        for k in range(len(items))
    ]
    assert sorted(_examples(batch)) == sorted(expected)


def test_every_second_step_has_profiles_of_all_other_items() -> None:
    data = _data(users=40)
    source = _source(data, SamplingConfig(sub_profiles=False))
    rows = len(data.train.values)
    source.start_epoch(0, 2 * rows)
    at_moments, taste = (source.batch(step, rows, 0, 1, CPU) for step in range(2))
    assert at_moments.ordered_profiles
    assert not taste.ordered_profiles
    for user, positive, profile in _examples(taste):
        assert profile == tuple(i for i in data.train[user].tolist() if i != positive)
    # What is known of the items is that of the moment in both.
    assert _known_of_positives(taste) == _known_of_positives(at_moments)


def _known_of_positives(batch: Any) -> dict[tuple[int, int], list[float]]:
    examples = zip(_examples(batch), batch.activity.positive_BA.tolist(), strict=True)
    return {(user, positive): known for (user, positive, _), known in examples}


def test_basket_is_not_in_its_own_profiles() -> None:
    data = _data(users=40)
    # Two items a day, and each user begins a day after the one before.
    time_R = (data.time_R // (2 * DAY) + data.train.row_ids) * DAY
    data = replace(data, basket_R=data.basket_R // 2, time_R=time_R)
    batch = _source(data).batch(0, len(data.train.values), 0, 1, CPU)
    for user, positive, profile in _examples(batch):
        items = data.train[user].tolist()
        k = items.index(positive) // 2 * 2
        assert profile == tuple(items[max(0, k - 4) : k])


def test_workers_share_the_examples_of_one_worker() -> None:
    data = _data(users=6)
    source = _source(data, SamplingConfig())
    whole = _examples(source.batch(1, 12, 0, 1, CPU))
    parts = [_examples(source.batch(1, 12, rank, 3, CPU)) for rank in range(3)]
    assert whole == [example for part in parts for example in part]


def test_candidates_are_items_that_somebody_had_taken_by_then() -> None:
    data = _data(users=40)
    batch = _source(data).batch(0, len(data.train.values), 0, 1, CPU)
    assert batch.activity is not None
    assert batch.candidates is not None
    known_BC = batch.activity.candidate_GCA[batch.activity.group_B][:, :, -1] > 0
    assert not (~batch.candidates.invalid_BC & ~known_BC).any()
    # A first day has no candidate at all, a later one has some.
    assert (~batch.candidates.invalid_BC).any(dim=1).sum() > len(known_BC) / 2
    position_B = batch.positive_B
    candidates = len(batch.candidates)
    inside_B = position_B < candidates
    of_candidate = batch.activity.candidate_GCA[
        batch.activity.group_B, position_B.clamp(max=candidates - 1)
    ]
    torch.testing.assert_close(batch.activity.positive_BA[inside_B], of_candidate[inside_B])


def test_marker_in_the_future_changes_no_earlier_example() -> None:
    data = _data(users=40)
    last_R = data.time_R == data.time_R.max()
    marked = np.where(last_R, (data.train.values + 2) % 20, data.train.values)
    other = replace(data, train=Jagged(marked, data.train.offsets))
    sources = [_source(one) for one in (data, other)]
    for source in sources:
        source._order_E = np.flatnonzero(~last_R)
    one, two = (source.batch(0, int((~last_R).sum()), 0, 1, CPU) for source in sources)
    assert _examples(one) == _examples(two)
    assert one.activity is not None
    assert two.activity is not None
    torch.testing.assert_close(one.activity.positive_BA, two.activity.positive_BA)


def test_unique_works_are_compared_with_all_items_by_all_others_of_their_user() -> None:
    data = _data(users=2)  # each item has one user
    source = _source(data, SamplingConfig(sub_profiles=False))
    assert any("first with their item" in note for note in source.notes)
    batch = source.batch(0, 20, 0, 1, CPU)
    assert batch.candidates is not None
    assert (~batch.candidates.invalid_BC).any(dim=1).all()
    for user, positive, profile in _examples(batch):
        assert profile == tuple(i for i in data.train[user].tolist() if i != positive)
    assert not batch.ordered_profiles
    assert batch.activity is not None
    assert not batch.activity.candidate_GCA.any()
    assert not batch.activity.positive_BA.any()


def test_what_is_not_used_is_said() -> None:
    sampling = SamplingConfig(guidelines={"random": 1, "own_profile": 1}, negatives="drawn")
    notes = MomentSource(_data(users=40), sampling, 0, TRAITS).notes
    assert [note.split(" ")[0] for note in notes] == [
        "--sampling.guidelines",
        "--sampling.negatives",
    ]


def test_data_without_training_rows_are_refused() -> None:
    data = _data(users=6)
    nothing = replace(
        data, train=Jagged.empty(6), basket_R=data.basket_R[:0], time_R=data.time_R[:0]
    )
    with pytest.raises(NoExamplesError, match=r"None of the 6 users has .* two baskets"):
        MomentSource(nothing, WHOLE, 0, TRAITS)
