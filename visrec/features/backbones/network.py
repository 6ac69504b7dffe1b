"""What every backbone module returns, and the helpers that they share."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visrec.errors import InputError
from visrec.features.decode import Preprocessing


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network as its module loads it.

    Attributes:
        network: (B, 3, H, W) normalized float32 to (B, D).
        preprocessing: what `decode` does to pictures for this network.
        weights_digest: as `digest_weights`, of the weights as loaded.
    """

    network: nn.Module
    preprocessing: Preprocessing
    weights_digest: str


def digest_weights(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def normalize(pixels_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """(B, 3, H, W) float32; a view, so that the memory stays channels-last."""
    B, H, W, C = pixels_BHWC.shape
    # Whole rows are vectorized; three channels at a time are not.
    mean, std = (
        torch.tensor(values, device=pixels_BHWC.device).repeat(W)
        for values in (preprocessing.mean, preprocessing.std)
    )
    rows = pixels_BHWC.reshape(B, H, W * C).float().sub_(mean).div_(std)
    return rows.view(B, H, W, C).permute(0, 3, 1, 2)


def unusable_backbone(name: str, reason: str) -> InputError:
    return InputError(
        f"The backbone {name!r} cannot be used: {reason}. Expected efficientnet-lite0, resnet50 "
        "(needs the Hugging Face hub or its cache), random-conv, or a directory or hub id of a "
        "Hugging Face vision model with config.json, preprocessor_config.json and safetensors "
        "weights (pickled .bin weights are not read), or timm/<id>. Change --backbone.name or "
        "--backbone.revision."
    )


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300].rstrip(".") if lines else type(error).__name__


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the loading reports and progress bars of transformers."""
    from transformers.utils import logging

    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
