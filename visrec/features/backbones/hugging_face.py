"""Vision models of the transformers library, from a directory or the Hugging Face hub.

The image processor's settings are translated into a `Preprocessing`, and the translation is checked
on a picture. Model and processor classes are chosen by transformers at run time, hence `Any`.
"""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from visrec.errors import InputError
from visrec.features.backbones.network import (
    LoadedNetwork,
    digest_weights,
    first_line,
    normalize,
    unusable_backbone,
)
from visrec.features.decode import PictureLimits, Preprocessing, decode

_HUB_IDS = {"resnet50": "microsoft/resnet-50"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_MAX_DIFFERENCE = 0.1  # mean, of 255 steps; the processor and `decode` round after the same filter


def load_hugging_face(name: str) -> LoadedNetwork:
    """A vision model with the preprocessing of its image processor.

    Args:
        name: a directory, a hub id, or a key of `_HUB_IDS`.

    Raises:
        InputError: the model cannot be loaded, lacks weights, or has an image processor that no
            `Preprocessing` expresses.
    """
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
    except Exception as error:  # transformers raises many types for a missing model
        raise unusable_backbone(
            name, f"transformers could not load it ({first_line(error)})"
        ) from error
    # Weights that the checkpoint lacks are drawn at random, differently in every process.
    missing = set(info["missing_keys"])
    if any("pooler." not in key for key in missing):
        raise unusable_backbone(name, f"its weights lack {', '.join(sorted(missing)[:3])}")
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in missing}
    return LoadedNetwork(
        network=_PooledOutput(model, has_trained_pooler=not missing),
        preprocessing=_preprocessing(processor, name),
        weights_digest=digest_weights(state),
    )


def _source(name: str) -> str:
    """A directory with safetensors, or a hub id.

    Raises:
        InputError: it is neither.
    """
    directory = Path(name)
    if name and directory.is_dir():
        if any(directory.glob("*.safetensors")):
            return name
        found = ", ".join(sorted(path.name for path in directory.iterdir())[:10]) or "nothing"
        raise unusable_backbone(name, f"the directory holds {found}, and no *.safetensors file")
    source = _HUB_IDS.get(name, name)
    if _HUB_ID.fullmatch(source):
        return source
    raise unusable_backbone(name, "there is no such built-in backbone, directory or hub id")


class _PooledOutput(nn.Module):
    """(B, 3, H, W) to the model's pooled output, or to the mean of its last tokens or feature map.

    Args:
        model: a vision model, or a model of pictures and texts, whose vision half is used.
        has_trained_pooler: whether the checkpoint holds the pooler's weights.
    """

    def __init__(self, model: Any, *, has_trained_pooler: bool) -> None:
        super().__init__()
        self.model = getattr(model, "vision_model", model)
        self.has_trained_pooler = has_trained_pooler

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        output = self.model(pixel_values=pixels_BCHW)
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        if pooled is not None and self.has_trained_pooler:
            return pooled.flatten(1)
        hidden: Tensor = output.last_hidden_state.float()
        return hidden.mean((2, 3) if hidden.ndim == 4 else 1)


def _preprocessing(processor: Any, name: str) -> Preprocessing:
    """The settings of an image processor as a `Preprocessing`, checked on a picture.

    A processor that keeps the aspect ratio and does not crop gives pictures of many shapes; for
    such a processor the centre square is taken.

    Raises:
        InputError: the processor does something that no `Preprocessing` expresses.
    """
    kind = type(processor).__name__
    try:
        preprocessing = _translate(processor)
        difference = _mean_difference(processor, preprocessing)
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise unusable_backbone(
            name, f"its {kind} is not supported ({first_line(error)})"
        ) from error
    if difference > _MAX_DIFFERENCE:
        raise unusable_backbone(
            name,
            f"its {kind} does more than resize, crop and normalize: pixels differ by "
            f"{difference:.2f} of 255 on average",
        )
    return preprocessing


def _translate(processor: Any) -> Preprocessing:
    if not processor.do_resize:
        raise ValueError("do_resize is false, but all pictures need one shape")
    size = {key: value for key, value in dict(processor.size).items() if value is not None}
    crop_pct = getattr(processor, "crop_pct", None)
    resize: int | tuple[int, int]
    if "shortest_edge" not in size:
        resize = crop = (size["height"], size["width"])
    elif crop_pct is None:
        resize, crop = size["shortest_edge"], (size["shortest_edge"],) * 2
    elif size["shortest_edge"] < 384:  # the rule of ConvNext, and of microsoft/resnet-50
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


def _mean_difference(processor: Any, preprocessing: Preprocessing) -> float:
    """Mean difference between `decode` and the processor on one picture, on the 0..255 scale."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((611, 457), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    decoded_HWC = torch.from_numpy(decode(file.getvalue(), preprocessing, PictureLimits()))
    actual_CHW = normalize(decoded_HWC[None], preprocessing)[0].numpy()
    expected_CHW = np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0])
    height, width = preprocessing.crop
    top, left = (expected_CHW.shape[1] - height) // 2, (expected_CHW.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"it gives pictures of {expected_CHW.shape[1:]}, not of {height, width}")
    expected_CHW = expected_CHW[:, top : top + height, left : left + width]
    std_C11 = np.reshape(preprocessing.std, (3, 1, 1))
    return float(np.abs((actual_CHW - expected_CHW) * std_C11).mean())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
