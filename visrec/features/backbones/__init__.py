"""Pretrained networks that turn pixels into features, all behind one call.

    backbone = load_backbone(BackboneConfig(name="efficientnet-lite0"))
    pixels_BHWC = np.stack([decode(data, backbone.preprocessing, limits) for data in files])
    features_BD = backbone(torch.from_numpy(pixels_BHWC))

The features of a picture depend neither on the other pictures of its batch nor on the number of
threads: see `Backbone.batch`. They may differ in the last bits between two kinds of processors.

A new backbone is one module that returns a `LoadedNetwork`, and one entry in `_BUILT_IN`.

Shapes: B batch, H height, W width, C channels, D features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from visrec.config import check_fields
from visrec.errors import InputError
from visrec.features.backbones.efficientnet_lite0 import load_efficientnet_lite0
from visrec.features.backbones.hugging_face import load_hugging_face
from visrec.features.backbones.network import (
    LoadedNetwork,
    first_line,
    normalize,
    unusable_backbone,
)
from visrec.features.backbones.random_conv import load_random_conv
from visrec.features.backbones.timm_model import is_timm, load_timm
from visrec.features.decode import Preprocessing
from visrec.native import processor_flags
from visrec.threads import torch_threads

Precision = Literal["float32", "bfloat16"]
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one is Arm's
# EfficientNet-Lite0's largest layer is 4.8 MB a picture in float32: of 8 pictures it is more than
# the 32 MiB up to which glibc keeps freed memory, and clearing new pages takes a fifth of the time.
_CPU_BATCH: dict[Precision, int] = {"bfloat16": 8, "float32": 4}

_BUILT_IN: dict[str, Callable[[], LoadedNetwork]] = {
    "efficientnet-lite0": load_efficientnet_lite0,
    "random-conv": load_random_conv,
}


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The network that computes the features.

    Attributes:
        name: `efficientnet-lite0` (1280 features, installed as a package), `resnet50` (2048, from
            the Hugging Face hub), `random-conv` (64, untrained, for tests), or a directory or hub
            id of a Hugging Face vision model with safetensors weights, such as a CLIP, SigLIP 2,
            DINOv2 or DINOv3. `timm/<id>` is loaded by the package timm, where that is installed.
        revision: branch, tag or commit of a hub id; by default its main branch. Features of two
            revisions are never mixed.
        precision: the precision of the convolutions and matrix products; features are float32
            either way. By default that of the features that are there; for the first ones bfloat16
            on a GPU and on a CPU with instructions for it, and float32 on other CPUs.
        batch: pictures per call of the network; a smaller batch is padded to this size. By default
            64 on a GPU, and on a CPU 8 in bfloat16 and 4 in float32: the layers of a batch then
            stay in the cache, and the allocator reuses their memory.
            Features may differ in the last bit between two batch sizes.
    """

    name: str = "efficientnet-lite0"
    revision: str | None = None
    precision: Precision | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, "backbone", batch="[1, 65536]")

    @property
    def full_name(self) -> str:
        """The name with `@` and the revision if there is one, as features have it."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A loaded network.

    Attributes:
        name: as configured, with `@` and the revision if there is one.
        dim: D, the number of features.
        preprocessing: what `decode` does to pictures for this network.
        weights_digest: SHA-256 of the weights as loaded, before any folding or casting.
        network: (B, 3, H, W) normalized float32 to (B, D).
        precision: as configured, or the fastest on the device.
        batch: the only batch size at which the network runs, because oneDNN picks its kernels by
            shape: on one thread, float32 EfficientNet features of a batch of 7 differ by 6e-6 from
            those of the same pictures in a batch of 32. At a fixed size neither the position in the
            batch nor the other pictures changed a bit, in either precision. The number of threads
            does, by 8e-6 at a batch of 8, so on a CPU each batch is computed on one thread.
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
            (B, D) float32 on the backbone's device.

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
        starts = range(0, len(pixels_BHWC), self.batch)
        parts = [self._embed(pixels_BHWC[start : start + self.batch]) for start in starts]
        return torch.cat(parts) if parts else torch.empty(0, self.dim, device=self.device)

    def _embed(self, pixels_BHWC: Tensor) -> Tensor:
        """(B, D) features of at most `batch` pictures."""
        count = len(pixels_BHWC)
        pixels_BHWC = pixels_BHWC.to(self.device)
        if count < self.batch:
            padding = pixels_BHWC.new_zeros((self.batch - count, *pixels_BHWC.shape[1:]))
            pixels_BHWC = torch.cat([pixels_BHWC, padding])
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"
        )
        with torch_threads(1), torch.inference_mode(), autocast:
            features_BD: Tensor = self.network(normalize(pixels_BHWC, self.preprocessing))
        return features_BD[:count].float()


def load_backbone(config: BackboneConfig, device: str = "cpu") -> Backbone:
    """Loads a network with its weights and preprocessing.

    Args:
        config: which network, and its precision.
        device: a torch device.

    Raises:
        InputError: there is no such network, or it cannot be used; the message names the key.
    """
    return build_backbone(_load(config), config, device)


def build_backbone(loaded: LoadedNetwork, config: BackboneConfig, device: str = "cpu") -> Backbone:
    """A loaded network, ready for pictures.

    Args:
        loaded: the network as its module loads it.
        config: its name, precision and batch.
        device: a torch device.

    Raises:
        InputError: the network gives anything but one reproducible vector per picture.
    """
    name = config.full_name
    target = torch.device(device)
    precision = config.precision or fastest_precision(target)
    network = loaded.network.eval().requires_grad_(False).to(target)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Backbone(
        name=name,
        dim=_feature_dim(network, loaded.preprocessing, target, name),
        preprocessing=loaded.preprocessing,
        weights_digest=loaded.weights_digest,
        network=network,
        precision=precision,
        batch=config.batch or (_CPU_BATCH[precision] if target.type == "cpu" else 64),
        device=target,
    )


def fastest_precision(device: torch.device, flags: frozenset[str] | None = None) -> Precision:
    """The precision in which networks run fastest on a device, judged by its instructions.

    Without instructions for bfloat16, oneDNN computes it in plain loops: on an AMD EPYC with AVX2
    EfficientNet-Lite0 takes 767 ms a picture instead of 28. With avx512_bf16 or amx bfloat16 is
    10 to 20 % faster than float32.

    Args:
        device: where the network runs.
        flags: the flags of the processor; by default those of this one.
    """
    flags = processor_flags() if flags is None else flags
    if device.type == "cpu" and not _BFLOAT16_FLAGS & flags:
        return "float32"
    return "bfloat16"


def _load(config: BackboneConfig) -> LoadedNetwork:
    if config.name in _BUILT_IN:
        if config.revision is not None:
            raise InputError(
                f"Found --backbone.revision {config.revision} for the built-in backbone "
                f"{config.name}; expected it with a hub id. Leave it out."
            )
        return _BUILT_IN[config.name]()
    load = load_timm if is_timm(config.name) else load_hugging_face
    return load(config.name, config.revision)


def _feature_dim(
    network: nn.Module, preprocessing: Preprocessing, device: torch.device, name: str
) -> int:
    """D, from two passes over one picture, which must agree.

    Raises:
        InputError: the network fails, or gives anything but one reproducible vector per picture.
    """
    values = torch.arange(math.prod(preprocessing.shape), device=device)
    pixels_BHWC = (values % 251).to(torch.uint8).reshape(1, *preprocessing.shape)
    try:
        with torch.inference_mode():
            first, second = (network(normalize(pixels_BHWC, preprocessing)) for _ in range(2))
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise unusable_backbone(
            name, f"it fails on a test picture ({first_line(error)})"
        ) from error
    if first.ndim != 2 or not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise unusable_backbone(name, "it does not give the same one vector per picture each time")
    return int(first.shape[1])
