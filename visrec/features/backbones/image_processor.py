"""The image processor of a Hugging Face model as a `Preprocessing`, without torchvision.

The settings are translated, and the translation is checked on a picture against the processor
itself, in the variant that runs on Pillow. Processor classes are chosen by transformers at run
time, hence `Any`.
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from visrec.errors import InputError
from visrec.features.backbones.network import first_line, normalize, unusable_backbone
from visrec.features.decode import PictureLimits, Preprocessing, decode
from visrec.features.patch_grid import PatchGrid

# The largest mean difference, on the 0..255 scale. The processor and `decode` use the same filter,
# but round differently after it.
_MAX_DIFFERENCE = 0.1
# DINOv3's processor exists only for torchvision. It does what ViT's does: it resizes to one size,
# and normalizes. These are its defaults, for settings that a file leaves out.
_DINOV3_TYPE = "DINOv3ViTImageProcessor"
_DINOV3_DEFAULTS = {
    "size": {"height": 224, "width": 224},
    "resample": Image.Resampling.BILINEAR,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def load_image_processor(source: str, revision: str | None) -> Any:
    """The image processor of a directory or hub id, in the variant that runs on Pillow.

    Args:
        source: a directory or a hub id.
        revision: the revision of the hub id; None for its default branch.
    """
    from transformers import AutoImageProcessor, ViTImageProcessorPil

    settings, _ = ViTImageProcessorPil.get_image_processor_dict(source, revision=revision)
    if str(settings.get("image_processor_type")).removesuffix("Fast") == _DINOV3_TYPE:
        return ViTImageProcessorPil(**{**_DINOV3_DEFAULTS, **settings})
    return AutoImageProcessor.from_pretrained(
        source, revision=revision, backend="pil", trust_remote_code=False
    )


def preprocessing_of(processor: Any, name: str) -> Preprocessing:
    """The settings of an image processor as a `Preprocessing`, checked on a picture.

    A processor that keeps the aspect ratio and does not crop gives pictures of many shapes. For
    such a processor, the `Preprocessing` crops the centre square.

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
    resize, crop = _resize_and_crop(processor)
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


def _resize_and_crop(processor: Any) -> tuple[int | tuple[int, int] | PatchGrid, tuple[int, int]]:
    """The fields of a `Preprocessing` that decide the shape."""
    if hasattr(processor, "max_num_patches"):
        grid = PatchGrid(processor.patch_size, processor.max_num_patches)
        return grid, grid.packed
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
    return resize, crop


def _mean_difference(processor: Any, preprocessing: Preprocessing) -> float:
    """Mean difference between `decode` and the processor on one picture, on the 0..255 scale."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((611, 457), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG")
    pixels_BHWC = torch.from_numpy(decode(file.getvalue(), preprocessing, PictureLimits()))[None]
    expected = processor(images=picture, return_tensors="np")
    if isinstance(preprocessing.resize, PatchGrid):
        return _patch_difference(pixels_BHWC, expected, preprocessing)
    actual_CHW = normalize(pixels_BHWC, preprocessing)[0].numpy()
    expected_CHW = np.asarray(expected["pixel_values"][0])
    height, width = preprocessing.crop
    top, left = (expected_CHW.shape[1] - height) // 2, (expected_CHW.shape[2] - width) // 2
    if top < 0 or left < 0:
        raise ValueError(f"it gives pictures of {expected_CHW.shape[1:]}, not of {height, width}")
    expected_CHW = expected_CHW[:, top : top + height, left : left + width]
    std_C11 = np.reshape(preprocessing.std, (3, 1, 1))
    return float(np.abs((actual_CHW - expected_CHW) * std_C11).mean())


def _patch_difference(
    pixels_BHWC: torch.Tensor, expected: Any, preprocessing: Preprocessing
) -> float:
    """Mean difference between our patches and the processor's, on the 0..255 scale."""
    grid = preprocessing.resize
    assert isinstance(grid, PatchGrid)
    patch_BPX, size_B2 = grid.unpack(pixels_BHWC.float().permute(0, 3, 1, 2))
    count = int(size_B2[0].prod())
    if size_B2[0].tolist() != np.asarray(expected["spatial_shapes"][0]).tolist():
        raise ValueError(f"it makes {expected['spatial_shapes'][0]} patches, not {size_B2[0]}")
    mean_C, std_C = (np.asarray(values) for values in (preprocessing.mean, preprocessing.std))
    expected_PsC = np.asarray(expected["pixel_values"][0][:count]).reshape(count, -1, 3)
    actual_PsC = patch_BPX[0, :count].reshape(count, -1, 3).numpy()
    return float(np.abs(actual_PsC - (expected_PsC * std_C + mean_C)).mean())
