"""Models of the timm library, which is optional: from a directory or `timm/<id>` on the hub.

timm needs torchvision, which has no CPU build for the torch of this project. So this module follows
timm's documentation (create_model, resolve_data_config) and has not been run on real weights; tests
replace the library. Its classes are untyped, hence `Any`.
"""

import json
import math
from pathlib import Path
from typing import Any

from torch import nn

from visrec.features.backbones.network import (
    LoadedNetwork,
    digest_weights,
    first_line,
    unusable_backbone,
)
from visrec.features.decode import Preprocessing

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"


def is_timm(name: str) -> bool:
    """Whether a name is that of a timm model: `timm/<id>`, or a directory as timm saves it.

    Raises:
        InputError: the directory has a config.json that is not a JSON object.
    """
    if name.startswith("timm/"):
        return True
    config = Path(name) / _CONFIG
    if not name or not config.is_file():
        return False
    try:
        fields = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise unusable_backbone(name, f"{config} is not JSON ({first_line(error)})") from error
    if not isinstance(fields, dict):
        raise unusable_backbone(name, f"{config} is not a JSON object")
    return "architecture" in fields and fields.get("model_type") in (None, "timm_wrapper")


def load_timm(name: str, revision: str | None = None) -> LoadedNetwork:
    """A network with its own pooling and without its classifier, as timm's model cards embed.

    Args:
        name: `timm/<id>` of the hub, or a directory with config.json and model.safetensors.
        revision: branch, tag or commit of the hub id; None for its default branch.

    Raises:
        InputError: timm is missing or cannot be imported, or the model cannot be used.
    """
    try:
        import timm  # type: ignore[import-not-found]
    except Exception as error:  # torchvision raises RuntimeError if it is built for another torch
        raise unusable_backbone(
            name,
            f"it needs the package timm, which cannot be imported ({first_line(error)}): install "
            "timm with a torchvision that fits this torch",
        ) from error
    try:
        directory = _directory(name, revision)
        fields = json.loads((directory / _CONFIG).read_text())
        model = timm.create_model(
            fields["architecture"], num_classes=0, **fields.get("model_args", {})
        )
        _load_weights(model, directory / _WEIGHTS)
        data = timm.data.resolve_data_config({}, pretrained_cfg=fields["pretrained_cfg"])
        preprocessing = _preprocessing(data)
    except Exception as error:  # timm and the hub raise many types
        raise unusable_backbone(name, f"timm could not load it ({first_line(error)})") from error
    return LoadedNetwork(
        network=model,
        preprocessing=preprocessing,
        weights_digest=digest_weights(model.state_dict()),
    )


def _directory(name: str, revision: str | None) -> Path:
    """Where configuration and weights are, without any pickled weights."""
    from huggingface_hub import snapshot_download

    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, revision=revision, allow_patterns=[_CONFIG, _WEIGHTS]))


def _load_weights(model: nn.Module, path: Path) -> None:
    """Loads all weights of a model; those of the checkpoint's classifier are left over."""
    from safetensors.torch import load_file

    missing = model.load_state_dict(load_file(path), strict=False).missing_keys
    if missing:
        raise ValueError(f"its weights lack {', '.join(sorted(missing)[:3])}")


def _preprocessing(data: dict[str, Any]) -> Preprocessing:
    """timm's evaluation transform."""
    _, height, width = data["input_size"]
    mode = data["crop_mode"]
    if mode not in ("center", "squash") or (mode == "center" and height != width):
        raise ValueError(
            f"its crop_mode is {mode} at {height}x{width}; expected squash, or center at a square"
        )
    scaled = tuple(math.floor(length / data["crop_pct"]) for length in (height, width))
    return Preprocessing(
        resize=(scaled[0], scaled[1]) if mode == "squash" else min(scaled),
        crop=(height, width),
        interpolation=data["interpolation"],
        mean=_on_255(data["mean"]),
        std=_on_255(data["std"]),
    )


def _on_255(values: list[float]) -> tuple[float, float, float]:
    return 255 * values[0], 255 * values[1], 255 * values[2]
