"""A picture's grid is the one of SigLIP 2, and its patches come back as they were packed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    convert_image_to_patches,
    get_image_size_for_max_num_patches,
)

from visrec.features.decode import Preprocessing
from visrec.features.patch_grid import PatchGrid


@settings(max_examples=60)
@given(
    width=st.integers(1, 5000),
    height=st.integers(1, 5000),
    side=st.sampled_from([8, 14, 16]),
    patches=st.integers(1, 256),
)
def test_grid_is_that_of_transformers(width: int, height: int, side: int, patches: int) -> None:
    rows, columns = PatchGrid(side, patches).grid(width, height)
    expected = get_image_size_for_max_num_patches(height, width, side, patches)
    found = (rows * side, columns * side)
    # Its scale is searched to within 1e-5, and may so have one patch fewer along the longer side.
    assert all(0 <= f - e <= side for f, e in zip(found, expected, strict=True))
    assert 1 <= rows * columns <= patches
    assert found == expected or max(width, height) > 1000


@pytest.mark.parametrize(("rows", "columns"), [(4, 5), (1, 20), (20, 1), (3, 3)])
def test_packed_patches_come_back(rows: int, columns: int) -> None:
    grid = PatchGrid(side=8, patches=20)
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (8 * rows, 8 * columns, 3), np.uint8)
    packed = grid.pack(pixels_HWC)
    assert packed.shape == (*grid.packed, 3)
    batch = torch.from_numpy(np.stack([packed, packed])).permute(0, 3, 1, 2).float()
    patch_BPX, size_B2 = grid.unpack(batch)
    assert size_B2.tolist() == [[rows, columns]] * 2
    expected = convert_image_to_patches(pixels_HWC.transpose(2, 0, 1), 8)
    np.testing.assert_array_equal(patch_BPX[1, : rows * columns], expected)
    assert not patch_BPX[:, rows * columns : -1].any()


def test_pixels_that_no_pack_made_have_a_possible_grid() -> None:
    grid = PatchGrid(side=4, patches=7)
    random = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (50, 3, *grid.packed), generator=random).float()
    _, size_B2 = grid.unpack(noise)
    assert size_B2.min() >= 1
    assert size_B2.prod(dim=1).max() <= 7


def test_preprocessing_of_patches_has_its_own_identity() -> None:
    def described(grid: PatchGrid) -> dict[str, object]:
        fields = Preprocessing(
            resize=grid, crop=grid.packed, interpolation="bilinear", mean=(1,) * 3, std=(1,) * 3
        ).to_dict()
        assert fields["resize"] == {"side": grid.side, "patches": grid.patches}
        return fields

    assert described(PatchGrid(8, 20)) != described(PatchGrid(8, 21))
