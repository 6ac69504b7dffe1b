"""Hostile, odd and plain pictures: the right pixels, or a rejection with a reason."""

import io
import json
import pickle
import struct
import time
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from visrec.errors import InputError
from visrec.features.decode import RECIPE, PictureError, PictureLimits, Preprocessing, decode

LIMITS = PictureLimits()


def preprocessing(resize: Any = 40, crop: tuple[int, int] = (32, 32)) -> Preprocessing:
    return Preprocessing(
        resize=resize, crop=crop, interpolation="bicubic", mean=(127.0,) * 3, std=(128.0,) * 3
    )


PLAIN = preprocessing()


def file(picture: Image.Image, format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format, **options)
    return stream.getvalue()


def scene(width: int = 97, height: int = 61) -> Image.Image:
    """A smooth picture whose four corners differ, so that no two orientations look alike."""
    corners = np.array([[[250, 20, 20], [20, 240, 30]], [[10, 30, 230], [240, 240, 240]]], np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def flat(mode: str, value: Any) -> Image.Image:
    return Image.new(mode, (50, 50), value)


def frames(format: str, **options: Any) -> bytes:
    """An animation whose first frame is red."""
    others = [flat("RGB", colour) for colour in ("lime", "blue")]
    return file(flat("RGB", "red"), format, save_all=True, append_images=others, **options)


def refused(data: bytes, limits: PictureLimits = LIMITS) -> PictureError:
    with pytest.raises(PictureError) as caught:
        decode(data, PLAIN, limits)
    assert caught.value.detail.endswith(".")
    assert "\n" not in caught.value.detail
    return caught.value


# ------------------------------------------------------------------------------------ right pixels


@pytest.mark.parametrize("resize", [40, (40, 50), (32, 32)])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (40, 40), (3, 500), (1, 1)])
def test_result_equals_resizing_the_whole_picture_and_then_cropping(
    resize: Any, size: tuple[int, int]
) -> None:
    source = scene(*size)
    width, height = size
    short = min(size)
    target = (int(40 * width / short), int(40 * height / short))
    if isinstance(resize, tuple):
        target = (resize[1], resize[0])
    resized = source.resize(target, Image.Resampling.BICUBIC)
    left, top = (target[0] - 32) // 2, (target[1] - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)), int)
    actual = decode(file(source, "PNG"), preprocessing(resize), LIMITS)
    assert np.abs(actual - expected).max() <= 1  # Pillow keeps the box in single precision
    assert np.abs(actual - expected).mean() < 0.05


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
@pytest.mark.parametrize("size", [(97, 61), (1, 1), (1, 4000), (4000, 1)])
def test_shape_and_layout_are_always_the_same(format: str, size: tuple[int, int]) -> None:
    pixels = decode(file(scene(*size), format), preprocessing(40, (24, 36)), LIMITS)
    assert pixels.shape == (24, 36, 3) == preprocessing(40, (24, 36)).shape
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


_FROM_UPRIGHT = {  # how a camera held that way stores the scene
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def oriented(source: Image.Image, orientation: int, format: str, **options: Any) -> bytes:
    method = _FROM_UPRIGHT[orientation]
    stored = source if method is None else source.transpose(method)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return file(stored, format, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", [40, (40, 50)])
def test_exif_orientation_is_applied(orientation: int, resize: Any) -> None:
    upright = decode(file(scene(), "PNG"), preprocessing(resize), LIMITS)
    turned = decode(oriented(scene(), orientation, "PNG"), preprocessing(resize), LIMITS)
    np.testing.assert_array_equal(turned, upright)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("resize", [40, (40, 60)])
def test_exif_orientation_is_applied_to_a_jpeg_decoded_at_a_smaller_scale(
    orientation: int, resize: Any
) -> None:
    upright = decode(file(scene(640, 400), "PNG"), preprocessing(resize), LIMITS)
    data = oriented(scene(640, 400), orientation, "JPEG", quality=95)
    turned = decode(data, preprocessing(resize), LIMITS)
    assert np.abs(turned.astype(int) - upright).mean() < 1.5


def test_large_jpeg_decoded_at_a_smaller_scale_looks_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = file(scene(1600, 1200), "JPEG", quality=95)
    reduced = decode(data, PLAIN, LIMITS)
    monkeypatch.setattr("visrec.features.decode.DRAFT_FACTOR", 10**6)
    assert np.abs(decode(data, PLAIN, LIMITS).astype(int) - reduced).mean() < 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_is_ignored() -> None:
    data = file(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(
        decode(data, PLAIN, LIMITS), decode(file(scene(), "JPEG"), PLAIN, LIMITS)
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (file(flat("L", 77), "PNG"), (77, 77, 77)),
        (file(flat("1", 1), "PNG"), (255, 255, 255)),
        (file(flat("1", 0), "PNG"), (0, 0, 0)),
        (file(flat("LA", (100, 0)), "PNG"), (255, 255, 255)),
        (file(flat("LA", (100, 255)), "PNG"), (100, 100, 100)),
        (file(flat("RGBA", (200, 0, 0, 0)), "PNG"), (255, 255, 255)),
        (file(flat("RGBA", (200, 0, 0, 51)), "PNG"), (244, 204, 204)),
        (file(flat("RGBA", (200, 0, 0, 51)), "WEBP", lossless=True), (244, 204, 204)),
        (file(flat("RGB", (9, 99, 199)), "PNG"), (9, 99, 199)),
        (file(flat("RGB", (9, 99, 199)), "PNG", transparency=(9, 99, 199)), (255, 255, 255)),
        (file(flat("L", 77), "PNG", transparency=77), (255, 255, 255)),
        (file(flat("RGB", (9, 99, 199)).quantize(4), "PNG"), (9, 99, 199)),
        (file(flat("RGB", (9, 99, 199)).quantize(4), "PNG", transparency=0), (255, 255, 255)),
        (file(flat("RGB", (9, 99, 199)).quantize(4), "PNG", transparency=b"\x33"), (206, 224, 244)),
        (file(flat("RGB", (9, 99, 199)).quantize(4), "GIF"), (9, 99, 199)),
        (file(flat("RGB", (9, 99, 199)).quantize(4), "GIF", transparency=0), (255, 255, 255)),
        (file(flat("CMYK", (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
        (file(flat("CMYK", (0, 0, 0, 255)), "JPEG", quality=100), (0, 0, 0)),
        (file(flat("L", 77), "JPEG", quality=100), (77, 77, 77)),
    ],
)
def test_every_mode_gives_its_colour_on_white(data: bytes, expected: tuple[int, int, int]) -> None:
    pixels = decode(data, PLAIN, LIMITS).astype(int)
    assert np.abs(pixels - expected).max() <= 1


def png(colour_type: int, depth: int, rows: bytes, width: int, height: int) -> bytes:
    """A PNG written by hand, for what Pillow cannot write; `rows` without filter bytes."""
    step = len(rows) // height if height and rows else 0
    lines = b"".join(b"\0" + rows[i * step : (i + 1) * step] for i in range(height) if rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
@pytest.mark.parametrize("value", [0, 255, 256, 20_000, 32_896, 65_535])
def test_16_bit_values_are_scaled_and_not_clipped(colour_type: int, value: int) -> None:
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    pixel = [value] * channels
    if colour_type in (4, 6):
        pixel[-1] = 65_535
    data = png(colour_type, 16, struct.pack(f">{channels}H", *pixel) * 2500, 50, 50)
    pixels = decode(data, PLAIN, LIMITS).astype(int)
    assert np.abs(pixels - value / 257).max() <= 1


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_animation_gives_its_first_frame(format: str) -> None:
    data = frames(format, **({"lossless": True} if format == "WEBP" else {}))
    assert (decode(data, PLAIN, LIMITS) == (255, 0, 0)).all()


def test_extreme_aspect_ratio_is_decoded_quickly() -> None:
    started = time.perf_counter()
    for size in ((1, 65_535), (65_535, 1)):
        assert (decode(file(Image.new("L", size, 9), "PNG"), PLAIN, LIMITS) == 9).all()
    assert time.perf_counter() - started < 1  # not 40 x 2.6 million pixels


# ---------------------------------------------------------------------------------------- refusals


def test_empty_file_is_rejected() -> None:
    assert refused(b"").reason == "empty"


def test_file_with_too_many_bytes_is_rejected() -> None:
    data = file(scene(), "PNG")
    limits = PictureLimits(max_bytes=len(data) - 1)
    assert refused(data, limits).reason == "too_many_bytes"


@pytest.mark.parametrize("data", [b"hello, this is text\n" * 9, b"\0" * 100, b"\xff\xd8", b"G"])
def test_file_that_is_not_a_picture_is_rejected(data: bytes) -> None:
    assert refused(data).reason == "not_a_picture"


@pytest.mark.parametrize(
    "data",
    [
        file(scene(), "BMP"),
        file(scene(), "TIFF"),
        file(scene(), "EPS"),
        file(scene(), "ICO"),
        file(scene(), "PDF"),
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\0\0\0\x18ftypheic\0\0\0\0",
    ],
)
def test_unsupported_format_is_rejected(data: bytes) -> None:
    assert refused(data).reason == "format_not_supported"


def test_png_bomb_is_rejected_by_its_header() -> None:
    started = time.perf_counter()
    assert refused(png(2, 8, b"", 50_000, 50_000)).reason == "too_many_pixels"
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_picture_with_too_many_pixels_is_rejected(format: str) -> None:
    data = file(scene(), format)
    assert refused(data, PictureLimits(max_pixels=97 * 61 - 1)).reason == "too_many_pixels"
    decode(data, PLAIN, PictureLimits(max_pixels=97 * 61))


def test_gif_bomb_is_rejected_by_its_screen_size() -> None:
    data = bytearray(file(scene(), "GIF"))
    data[6:10] = b"\xff\xff\xff\xff"
    assert refused(bytes(data)).reason == "too_many_pixels"


def test_webp_bomb_is_rejected_by_its_canvas_size() -> None:
    data = bytearray(
        file(
            flat("RGBA", (1, 2, 3, 4)),
            "WEBP",
            save_all=True,
            append_images=[flat("RGBA", (9, 2, 3, 4))],
        )
    )
    assert data[12:16] == b"VP8X"
    data[24:30] = b"\xfe\x3f\0\xfe\x3f\0"
    assert refused(bytes(data)).reason in {"too_many_pixels", "corrupt"}


def test_jpeg_with_too_many_scans_is_rejected() -> None:
    data = file(scene(1000, 1000), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    limits = PictureLimits(max_pixels=1_000_000)
    decode(data, PLAIN, limits)
    assert refused(data[:-2] + last * 50 + data[-2:], limits).reason == "too_many_scans"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_file_cut_off_anywhere_is_rejected(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = file(Image.fromarray(noise), format)
    for kept in (0.3, 0.5, 0.8, 0.95):
        assert refused(data[: int(len(data) * kept)]).reason == "truncated"
    for kept in range(12, len(data) - 20, max(1, len(data) // 200)):
        assert refused(data[:kept]).reason in {"truncated", "corrupt"}


def test_progressive_jpeg_cut_off_in_a_late_scan_is_rejected() -> None:
    data = file(scene(400, 300), "JPEG", progressive=True)
    assert refused(data[: data.rfind(b"\xff\xda") + 20]).reason == "truncated"


def test_memory_error_is_a_rejection_and_interrupt_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: type[BaseException]) -> None:
        def load(_: Any) -> None:
            raise error

        monkeypatch.setattr("visrec.features.decode.PngImageFile.load", load)

    fail(MemoryError)
    assert refused(file(scene(), "PNG")).reason == "out_of_memory"
    for interrupt in (KeyboardInterrupt, SystemExit):
        fail(interrupt)
        with pytest.raises(interrupt):
            decode(file(scene(), "PNG"), PLAIN, LIMITS)


_VICTIMS = [
    file(scene(), "JPEG"),
    file(scene(), "JPEG", progressive=True),
    oriented(scene(), 6, "JPEG"),
    file(scene().convert("CMYK"), "JPEG"),
    file(scene(), "PNG"),
    file(scene().quantize(16), "PNG", transparency=3),
    file(scene().convert("LA"), "PNG"),
    oriented(scene(), 8, "PNG"),
    file(scene(), "WEBP"),
    file(scene().convert("RGBA"), "WEBP", lossless=True),
    file(scene(), "AVIF", speed=10),
    file(scene().convert("RGBA"), "AVIF", speed=10),
    file(scene(), "GIF"),
    file(scene(), "GIF", save_all=True, append_images=[flat("RGB", "blue").resize((97, 61))]),
]


@settings(max_examples=400, deadline=5000, suppress_health_check=list(HealthCheck))
@given(
    victim=st.sampled_from(_VICTIMS),
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 6)), min_size=1, max_size=8
    ),
    near_the_start=st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_mutated_file_gives_pixels_or_a_rejection(
    victim: bytes, changes: list[tuple[float, bytes, int]], near_the_start: bool
) -> None:
    data = bytearray(victim)
    for where, replacement, removed in changes:
        reach = min(len(data), 300) if near_the_start else len(data)
        start = int(where * reach)
        data[start : start + removed] = replacement
    try:
        pixels = decode(bytes(data), PLAIN, PictureLimits(max_pixels=1_000_000))
    except PictureError as error:
        shape, reason = PLAIN.shape, error.reason
    else:
        shape, reason = pixels.shape, "none needed"
    assert shape == PLAIN.shape
    assert reason


# ----------------------------------------------------------------------------------------- records


def test_picture_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(refused(b"")))  # noqa: S301
    assert (error.reason, error.detail) == ("empty", "The file has zero bytes.")
    assert str(error) == "empty: The file has zero bytes."


def test_preprocessing_survives_json() -> None:
    record = preprocessing((40, 50)).to_dict()
    assert json.loads(json.dumps(record)) == record
    assert record["resize"] == [40, 50]
    assert record["recipe"] == RECIPE


@pytest.mark.parametrize("fields", [{"crop": (41, 32)}, {"crop": (0, 4)}, {"interpolation": "no"}])
def test_impossible_preprocessing_is_refused(fields: dict[str, Any]) -> None:
    plain: dict[str, Any] = {
        "resize": 40, "crop": (32, 32), "interpolation": "bicubic", "mean": (0.0,) * 3,
        "std": (1.0,) * 3,
    }  # fmt: skip
    with pytest.raises(InputError, match=next(iter(fields))):
        Preprocessing(**{**plain, **fields})
