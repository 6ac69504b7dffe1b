"""The profile item that is the reason for a list entry: the nearest by cosine."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.retrieval import KERNELS, TableScorer, select_kernel
from tests.training import jagged_lists
from visrec.errors import InputError
from visrec.jagged import Jagged
from visrec.retrieval.similar import nearest_profile_items, normalize_rows, similarity_arrays

Floats = npt.NDArray[np.float32]


def _nearest(space_Nd: Floats, profile: list[int], rows: list[int]) -> Iterator[int]:
    for row in rows:
        if row < 0 or not profile:
            yield -1
            continue
        cosines = [
            float(
                np.dot(space_Nd[row], space_Nd[p])
                / np.linalg.norm(space_Nd[row])
                / np.linalg.norm(space_Nd[p])
            )
            for p in profile
        ]
        yield profile[cosines.index(max(cosines))]


@KERNELS
def test_nearest_profile_item_has_the_largest_cosine(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    random = np.random.default_rng(0)
    space_Nd = (random.normal(size=(50, 6)) * random.uniform(0.1, 9, (50, 1))).astype(np.float32)
    profiles = [random.choice(50, n, replace=False).tolist() for n in range(1, 12)]
    profiles[4] = []
    row_BK = random.integers(0, 50, (len(profiles), 7))
    row_BK[3, 2:] = -1
    row_BK[6] = -1
    nearest = nearest_profile_items(torch.from_numpy(space_Nd), jagged_lists(profiles), row_BK)
    expected = [
        list(_nearest(space_Nd.astype(np.float64), profile, row_K))
        for profile, row_K in zip(profiles, row_BK.tolist(), strict=True)
    ]
    assert nearest.tolist() == expected


def _profiles_and_rows(random: np.random.Generator) -> tuple[Jagged, npt.NDArray[np.int64]]:
    """Profiles of 6 of 40 items for 9 users, and 7 rows for each of them."""
    profiles = jagged_lists([random.choice(40, 6, replace=False).tolist() for _ in range(9)])
    return profiles, random.integers(0, 40, (9, 7))


@KERNELS
@pytest.mark.parametrize("power", [-140, -80, 120])
def test_nearest_profile_item_is_the_same_at_any_magnitude(
    isa: str, power: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    random = np.random.default_rng(0)
    space_Nd = random.integers(-9, 10, (40, 5)).astype(np.float32)
    profiles, row_BK = _profiles_and_rows(random)
    scaled_Nd = space_Nd * np.float32(2.0**power)
    found = nearest_profile_items(torch.from_numpy(scaled_Nd), profiles, row_BK)
    expected = nearest_profile_items(torch.from_numpy(space_Nd), profiles, row_BK)
    np.testing.assert_array_equal(found, expected)
    unit_Nd = normalize_rows(torch.from_numpy(scaled_Nd))
    assert torch.equal(unit_Nd, normalize_rows(torch.from_numpy(space_Nd)))


@KERNELS
def test_nearest_profile_item_is_the_same_in_the_first_columns_of_a_wider_array(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    random = np.random.default_rng(0)
    wide_Nv = torch.from_numpy(random.normal(size=(40, 9)).astype(np.float32))
    profiles, row_BK = _profiles_and_rows(random)
    found = nearest_profile_items(wide_Nv[:, :5], profiles, row_BK)
    expected = nearest_profile_items(wide_Nv[:, :5].contiguous(), profiles, row_BK)
    np.testing.assert_array_equal(found, expected)


@KERNELS
def test_nearest_of_equal_items_is_the_first_in_the_profile(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    select_kernel(monkeypatch, isa)
    space_Nd = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    nearest = nearest_profile_items(space_Nd, jagged_lists([[1, 2, 0]]), np.array([[3]]))
    assert nearest.tolist() == [[2]]


def test_scorer_without_item_vectors_is_refused() -> None:
    scorer = TableScorer(np.zeros((1, 3), np.float32))
    with pytest.raises(InputError, match=r"The model m1 has no item vectors.*--model"):
        similarity_arrays(scorer, "The model m1")
