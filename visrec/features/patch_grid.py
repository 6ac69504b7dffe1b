"""Pictures of any aspect ratio as a fixed number of patches, for networks that take patches.

SigLIP 2 NaFlex (Tschannen et al. 2025, arXiv 2502.14786, section 2.4.2): a picture is resized, with
about its own aspect ratio, to the largest grid of square patches that has at most P of them.
Pixels must have one shape for every picture, so the patches are packed below each other, in the
order of the rows of the grid, and one more patch at the end says which grid it was.

Shapes: P patches, h x w the grid of a picture, s side of a patch, C channels.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_LARGEST_SCALE = 100  # a picture of a few pixels is not enlarged further


@dataclass(frozen=True)
class PatchGrid:
    """The largest grid of patches for a picture of any shape.

    Attributes:
        side: s, of a patch in pixels.
        patches: P, at most so many.
    """

    side: int
    patches: int

    @property
    def packed(self) -> tuple[int, int]:
        """(height, width) of the packed patches, the one that says the grid included."""
        return (self.patches + 1) * self.side, self.side

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(h, w) for a picture of this size.

        It belongs to the largest scale at which height and width, rounded up to whole patches, have
        no more than P patches.
        """
        scale = max(
            min(
                Fraction(rows * self.side, height),
                Fraction(self.patches // rows * self.side, width),
            )
            for rows in range(1, self.patches + 1)
        )
        scale = min(scale, Fraction(_LARGEST_SCALE))
        rows, columns = (math.ceil(scale * length / self.side) for length in (height, width))
        return rows, columns

    def pack(self, pixels_HWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """((P + 1) s, s, C) patches of a picture whose height and width are whole patches.

        Patches that the grid does not have are black.
        """
        s = self.side
        h, w, channels = pixels_HWC.shape[0] // s, pixels_HWC.shape[1] // s, pixels_HWC.shape[2]
        packed = np.zeros((self.patches + 1, s, s, channels), np.uint8)
        patch_hwssC = pixels_HWC.reshape(h, s, w, s, channels).swapaxes(1, 2)
        packed[: h * w] = patch_hwssC.reshape(h * w, s, s, channels)
        packed[-1, 0, 0] = h // 256, h % 256, 0
        packed[-1, 0, 1] = w // 256, w % 256, 0
        return packed.reshape(*self.packed, channels)

    def unpack(self, packed_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The patches and the grids of B packed pictures, values on the 0..255 scale.

        Pixels that no `pack` made, as a network is tried with, get some possible grid.

        Returns:
            (B, P + 1, s s C) patches, the channels of a pixel side by side; and (B, 2) h and w.
        """
        s = self.side
        b, channels = packed_BCHW.shape[:2]
        patch_BPCss = packed_BCHW.reshape(b, channels, self.patches + 1, s, s).transpose(1, 2)
        first_BC2 = patch_BPCss[:, -1, :, 0, :2].round().long()
        size_B2 = 256 * first_BC2[:, 0] + first_BC2[:, 1]
        h_B = size_B2[:, 0].clamp(1, self.patches)
        w_B = torch.minimum(size_B2[:, 1].clamp(min=1), self.patches // h_B)
        return patch_BPCss.permute(0, 1, 3, 4, 2).flatten(2), torch.stack([h_B, w_B], dim=1)
