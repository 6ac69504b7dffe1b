"""From the bytes of a file to pixels of one fixed shape, or a PictureError that says why not.

The files of a catalogue cannot be trusted. Every error of Pillow becomes a PictureError. Only five
parsers run, on the first picture of a file only. The pixel count is read from the header and
checked before anything is decoded. Of an extreme strip only the crop is resized, so a 1x65535
picture costs no more than any other.
Colour profiles are ignored: the networks were trained on pixels that were read in the same way.

Shapes: H height, W width.
"""

import io
import struct
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import AvifImagePlugin, Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile
from torch.nn import functional

from visrec.config import COUNTS, check_fields
from visrec.errors import InputError
from visrec.features.containers import (
    FirstPicture,
    PictureError,
    first_picture,
    require_all_rows,
)
from visrec.features.patch_grid import PatchGrid

Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]

# Raised whenever `decode` gives other pixels for some file, or starts or stops rejecting it:
# features and rejections of another recipe are not reused.
RECIPE = 4

# A JPEG is decoded at 1/2, 1/4 or 1/8 scale if that leaves at least this many times the size after
# the resize. Measured as the cosine between EfficientNet-Lite0 features (float32, 224 pixels) with
# and without it, on montages of clothing photographs, which are all fine detail: 1024x1364, mean
# 0.9990, worst 0.9984, 123 pictures/s against 67; 3072x4092, mean 0.9997, worst 0.9995, 20 against
# 8. A factor of 1 is 1.3 times faster again on the former, but the worst cosine is 0.973. bfloat16
# alone gives a mean of 0.9989.
DRAFT_FACTOR = 2

# torch resizes a picture four to eight times as fast as Pillow (0.15 ms instead of 1.1 for 256x341
# to 224x224), but only as a whole. Where the crop shows less than a quarter of that, as of a
# 1x65535 strip, Pillow computes the crop alone.
MAX_WHOLE = 4

# Each scan of a progressive JPEG makes the decoder visit the whole picture, and takes only a few
# bytes of the file. Encoders write about 10 scans. This many visits to each of `max_pixels` pixels
# bound the time: 0.8 s for 7000x7000 with 20 scans on a Xeon core of 2023.
MAX_SCANS = 20

# By EXIF orientation.
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """The largest picture that is decoded.

    Attributes:
        max_pixels: width times height, read from the header before decoding. A decoded pixel takes
            up to 16 bytes for a moment (four channels, premultiplied, rotated).
        max_bytes: size of the file; two copies of its picture are made before decoding.
    """

    max_pixels: int = 50_000_000
    max_bytes: int = 50 * 2**20

    def __post_init__(self) -> None:
        check_fields(self, "limits", max_pixels=COUNTS, max_bytes=COUNTS)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture is resized, cropped and normalized for a network.

    Attributes:
        resize: length of the shorter edge in pixels (the aspect ratio is kept), exactly
            (height, width), or a grid of patches, of which nothing is cropped.
        crop: (height, width) cut from the centre after the resize; the shape of every result. Of a
            grid of patches, the shape of the packed patches.
        interpolation: filter of the resize, with Pillow's antialiasing.
        mean: subtracted from each channel, on the 0..255 scale.
        std: divides each channel, on the 0..255 scale.

    Raises:
        InputError: the crop does not fit into the resized picture.
    """

    resize: int | tuple[int, int] | PatchGrid
    crop: tuple[int, int]
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        available = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        available = available.packed if isinstance(available, PatchGrid) else available
        if not (1 <= self.crop[0] <= available[0] and 1 <= self.crop[1] <= available[1]):
            raise InputError(
                f"The preprocessing resizes pictures to {self.resize} and crops {self.crop} "
                "(height, width); expected a crop of at least 1x1 that fits into the resized "
                "picture. Change resize or crop."
            )
        if self.interpolation not in get_args(Interpolation):
            raise InputError(
                f"The preprocessing has interpolation {self.interpolation!r}; expected one of "
                f"{', '.join(get_args(Interpolation))}. Change interpolation."
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of every decoded picture."""
        return (*self.crop, 3)

    def to_dict(self) -> dict[str, object]:
        """The fields and the recipe as JSON has them, for manifests and digests."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**fields, "recipe": RECIPE}


def decode(data: bytes, preprocessing: Preprocessing, limits: PictureLimits) -> np.ndarray:
    """Decodes one picture: upright, on a white background, resized and cropped.

    Args:
        data: the bytes of a JPEG, PNG, WEBP, GIF or AVIF file (of an animation, the first frame).
        preprocessing: decides the size of the result; the backbone applies mean and std.
        limits: larger pictures are refused before decoding.

    Returns:
        uint8 array of shape `preprocessing.shape`, C-contiguous and writable.

    Raises:
        PictureError: the picture cannot be used; a bad picture raises no other error.
    """
    try:
        _check_bytes(data, limits)
        return resize_and_crop(_load(first_picture(data), preprocessing, limits), preprocessing)
    except PictureError:
        raise
    except Exception as error:  # Pillow raises nearly anything for a malformed file
        raise PictureError(_reason(error), _detail(error)) from error


def decode_whole(data: bytes, longest: int, limits: PictureLimits) -> np.ndarray:
    """Decodes one picture to show it: upright, on a white background, not cropped.

    Args:
        data: as for `decode`.
        longest: pixels of the longer edge; a smaller picture is not enlarged.
        limits: larger pictures are refused before decoding.

    Returns:
        (H, W, 3) uint8 pixels.

    Raises:
        PictureError: the picture cannot be used; a bad picture raises no other error.
    """
    try:
        _check_bytes(data, limits)
        picture = _load(first_picture(data), _to_show(longest, longest), limits)
        scale = min(1.0, longest / max(picture.size))
        width, height = (max(1, round(side * scale)) for side in picture.size)
        return resize_and_crop(picture, _to_show(width, height))
    except PictureError:
        raise
    except Exception as error:  # as in `decode`
        raise PictureError(_reason(error), _detail(error)) from error


def _to_show(width: int, height: int) -> Preprocessing:
    """Resizes to a width and a height, and crops nothing."""
    return Preprocessing(
        resize=(height, width),
        crop=(height, width),
        interpolation="lanczos",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )


def _check_bytes(data: bytes, limits: PictureLimits) -> None:
    if not data:
        raise PictureError("empty", "The file has zero bytes.")
    if len(data) > limits.max_bytes:
        raise PictureError(
            "too_many_bytes", f"The file has {len(data)} bytes, more than {limits.max_bytes}."
        )


# `Image.open(formats=...)` would drop the reason why a parser refused a file, hand some JPEGs to a
# multi-picture parser, and warn at a pixel count of its own.
_PARSERS: dict[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "GIF": GifImageFile,
    "AVIF": AvifImageFile,
}
# A task has one core. By default each picture would start a thread for every core of the machine.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def _load(first: FirstPicture, preprocessing: Preprocessing, limits: PictureLimits) -> Image.Image:
    """The decoded picture, upright, in the mode of the file."""
    _check_pixels(first.coded_pixels, f"{first.coded_pixels} pixels", limits)
    picture = _PARSERS[first.format](io.BytesIO(first.data))
    size = f"{picture.width}x{picture.height}"
    pixels = max(picture.width * picture.height, first.coded_pixels)
    _check_pixels(pixels, size, limits)
    if pixels * first.scans > limits.max_pixels * MAX_SCANS:
        raise PictureError(
            "too_many_scans", f"The {first.format} has {first.scans} scans over {size} pixels."
        )
    if isinstance(picture, JpegImageFile):
        _draft(picture, preprocessing, is_sideways=first.orientation >= 5)
    picture.load()
    if isinstance(picture, PngImageFile) and _may_lack_rows(picture):
        require_all_rows(first.data)
    method = _TO_UPRIGHT.get(first.orientation)
    return picture if method is None else picture.transpose(method)


def _check_pixels(pixels: int, size: str, limits: PictureLimits) -> None:
    if pixels > limits.max_pixels:
        raise PictureError(
            "too_many_pixels",
            f"The picture is {size}, more than {limits.max_pixels} pixels.",
        )


def _may_lack_rows(picture: PngImageFile) -> bool:
    """Whether the last row looks like one that the decoder never reached."""
    last = picture.crop((0, picture.height - 1, *picture.size))
    return bool(picture.info.get("interlace")) or last.getbbox(alpha_only=False) is None


def _draft(picture: JpegImageFile, preprocessing: Preprocessing, *, is_sideways: bool) -> None:
    """Lets the JPEG decoder decode at a smaller scale if the picture is large enough."""
    width, height = picture.size
    if is_sideways:  # `resize` is meant for the upright picture
        height, width = _resized_size((height, width), preprocessing.resize)
    else:
        width, height = _resized_size((width, height), preprocessing.resize)
    picture.draft(None, (DRAFT_FACTOR * width, DRAFT_FACTOR * height))


def _resized_size(
    size: tuple[int, int], resize: int | tuple[int, int] | PatchGrid
) -> tuple[int, int]:
    """(width, height) after the resize; rounded down as the Hugging Face processors do."""
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    width, height = size
    if isinstance(resize, PatchGrid):
        rows, columns = resize.grid(width, height)
        return columns * resize.side, rows * resize.side
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def resize_and_crop(picture: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (H, W, 3) pixels of a decoded picture of any mode."""
    picture = _to_averageable_mode(picture)
    width, height = _resized_size(picture.size, preprocessing.resize)
    grid = preprocessing.resize if isinstance(preprocessing.resize, PatchGrid) else None
    crop_height, crop_width = (height, width) if grid else preprocessing.crop
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    if (
        picture.mode != "RGBA"  # of which Pillow weights each pixel by its alpha
        # Where the two directions differ in scale, torch's 16-bit weights are off by two levels.
        and not isinstance(preprocessing.resize, tuple)
        and preprocessing.interpolation in ("bilinear", "bicubic")
        and width * height <= MAX_WHOLE * crop_width * crop_height
    ):
        whole_HWC = _resize_whole(picture, width, height, preprocessing.interpolation)
        pixels_HWC = whole_HWC[top : top + crop_height, left : left + crop_width]
    else:
        box = (left, top, left + crop_width, top + crop_height)
        pixels_HWC = _resize_box(picture, width, height, box, preprocessing.interpolation)
    return grid.pack(pixels_HWC) if grid else np.ascontiguousarray(pixels_HWC)


def _resize_whole(
    picture: Image.Image, width: int, height: int, interpolation: Interpolation
) -> np.ndarray:
    """(H, W, 3) uint8: Pillow's filters in 16-bit integers, vectorized by torch."""
    pixels_HWC = torch.from_numpy(np.array(picture.convert("RGB")))
    resized_CHW = functional.interpolate(
        pixels_HWC[None].permute(0, 3, 1, 2), (height, width), mode=interpolation, antialias=True
    )[0]
    resized_HWC: np.ndarray = resized_CHW.permute(1, 2, 0).numpy()
    return resized_HWC


def _resize_box(
    picture: Image.Image,
    width: int,
    height: int,
    box: tuple[int, int, int, int],
    interpolation: Interpolation,
) -> np.ndarray:
    """(H, W, 3) uint8: only the pixels in a box (left, top, right, bottom) of the resized picture.

    Pillow's filter reads past the edges of the box, so the result equals resizing the whole picture
    and then cropping it, with less memory.
    """
    x, y = picture.width / width, picture.height / height
    left, top, right, bottom = box
    shown = (left * x, top * y, min(right * x, picture.width), min(bottom * y, picture.height))
    filter = Image.Resampling[interpolation.upper()]
    small = picture.resize((right - left, bottom - top), filter, box=shown)
    if small.mode == "RGBA":  # blending after the resize gives the same sums, on fewer pixels
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small)
    return np.array(small.convert("RGB"))


def _to_averageable_mode(picture: Image.Image) -> Image.Image:
    """The picture as L, RGB or RGBA, the modes whose values may be averaged."""
    if picture.mode.startswith("I"):
        return Image.fromarray(_eight_bit(np.asarray(picture)))
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    if picture.mode in ("L", "RGB"):
        return picture
    return picture.convert("L" if picture.mode == "1" else "RGB")


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """16-bit grey to the nearest 8-bit grey; Pillow's conversion clips at 255."""
    return ((values.clip(0, 65535).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "out_of_memory"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return "too_many_pixels"
    # Pillow wraps the error of a parser that reaches the end of the data into a SyntaxError.
    is_cut_off = isinstance(error.__cause__, EOFError | IndexError | struct.error)
    return "truncated" if is_cut_off or "truncated" in str(error).lower() else "corrupt"


def _detail(error: Exception) -> str:
    text = " ".join(str(error).split())[:200] or "no message"
    return f"The decoder stopped with {type(error).__name__}: {text}."
