"""A convolution with all that follows it until the next one, in one pass over memory.

A network of inverted bottlenecks reads and writes more than it multiplies: batch norm, clamp,
shortcut and padding as layers of their own take as long as the convolutions. Here the norm is
folded into the weights, a one-sided padding into the kernel, and oneDNN clamps and adds in its
registers, through the operators into which torch's own compiler lowers convolutions.
"""

import threading
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_CLAMP = [0.0, 6.0]


class FusedConvolution(nn.Module):
    """Convolution, then ReLU6 or a shortcut or neither.

    Args:
        convolution: a convolution with bias; its batch norm is folded in.
        padding: (left, right, top, bottom) zeros around the input, as `torch.nn.functional.pad`
            takes them: the same on all sides, or one more on the right and at the bottom.
        clamps: whether ReLU6 follows.
    """

    def __init__(self, convolution: nn.Conv2d, padding: Sequence[int], *, clamps: bool) -> None:
        super().__init__()
        assert convolution.bias is not None
        left, right, *_ = padding
        one_sided = right - left
        if tuple(padding) != (left, right) * 2 or one_sided not in (0, 1):
            raise ValueError(f"A padding of {padding} cannot be folded into a kernel.")
        # TensorFlow pads stride 2 on one side. A kernel with a row and a column of zeros in front
        # reads the same pixels under a padding of equal sides, which need not be copied first.
        weight = functional.pad(convolution.weight, (one_sided, 0) * 2)
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = convolution.bias
        self.stride = list(convolution.stride)
        self.padding = [left + one_sided] * 2
        self.groups = convolution.groups
        self.clamps = clamps
        self._lock = threading.Lock()
        self._packed: tuple[Tensor, Tensor] | None = None  # weight and bias in oneDNN's layout
        self._packed_for: tuple[torch.dtype, torch.Size] | None = None

    def forward(self, x_BCHW: Tensor, shortcut_BCHW: Tensor | None = None) -> Tensor:
        """The output, of the type of the input or, under autocast, of autocast's type."""
        if x_BCHW.device.type == "cpu" and torch._C._has_mkldnn:
            enabled = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if enabled else x_BCHW.dtype
            if dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported():
                return self._fused(x_BCHW.to(dtype), shortcut_BCHW)
        y_BCHW = functional.conv2d(
            x_BCHW, self.weight, self.bias, self.stride, self.padding, groups=self.groups
        )
        y_BCHW = functional.relu6(y_BCHW, inplace=True) if self.clamps else y_BCHW
        return y_BCHW if shortcut_BCHW is None else y_BCHW + shortcut_BCHW

    def _fused(self, x_BCHW: Tensor, shortcut_BCHW: Tensor | None) -> Tensor:
        weight, bias = self._pack(x_BCHW)
        convolve = torch.ops.mkldnn._convolution_pointwise
        shape = (weight, bias, self.padding, self.stride, [1, 1], self.groups)
        y_BCHW: Tensor
        if shortcut_BCHW is not None:
            y_BCHW = convolve.binary(x_BCHW, shortcut_BCHW, *shape, "add", 1.0, None, [], None)
        elif self.clamps:
            y_BCHW = convolve(x_BCHW, *shape, "hardtanh", _CLAMP, "")
        else:
            y_BCHW = convolve(x_BCHW, *shape, "none", [], "")
        return y_BCHW

    def _pack(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The weights as oneDNN wants them for such an input, made once.

        In the layout for an input of another shape they would be reordered in each call: packed for
        the single picture of a test, one layer of EfficientNet-Lite0 took 7 ms more a picture.
        """
        with self._lock:
            if self._packed is None or self._packed_for != (x_BCHW.dtype, x_BCHW.shape):
                weight = torch.ops.mkldnn._reorder_convolution_weight(
                    self.weight.to(x_BCHW.dtype),
                    self.padding,
                    self.stride,
                    [1, 1],
                    self.groups,
                    list(x_BCHW.shape),
                )
                self._packed = weight, self.bias.to(x_BCHW.dtype)
                self._packed_for = x_BCHW.dtype, x_BCHW.shape
            return self._packed
