"""Metadata, further pictures and damage around a picture: its pixels alone, or a rejection."""

import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.features.test_decode import (
    LIMITS,
    PLAIN,
    file,
    frames,
    oriented,
    png,
    refused,
    scene,
)
from visrec.features import containers
from visrec.features.containers import base
from visrec.features.decode import PictureError, PictureLimits, decode

JPEG, PNG = file(scene(), "JPEG"), file(scene(), "PNG")
WEBP, GIF = file(scene(), "WEBP"), file(scene(), "GIF")
MUCH = 3 << 20  # bytes of metadata after inflation
NOISE = np.random.default_rng(0).integers(0, 256, MUCH, dtype=np.uint8).tobytes()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def with_chunks(*chunks: bytes, data: bytes = PNG) -> bytes:
    """A PNG with more chunks after its header."""
    return data[:33] + b"".join(chunks) + data[33:]


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def with_segments(*segments: bytes, data: bytes = JPEG) -> bytes:
    """A JPEG with more segments after its start."""
    return data[:2] + b"".join(segments) + data[2:]


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP"
    for kind, data in chunks:
        body += kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def assert_same_pixels(data: bytes, plain: bytes) -> None:
    np.testing.assert_array_equal(decode(data, PLAIN, LIMITS), decode(plain, PLAIN, LIMITS))


def with_small_chunks(data: bytes, size: int) -> bytes:
    """A PNG with its pixels in chunks of this size."""
    start = data.index(b"IDAT") + 4
    pixels = data[start : start + int.from_bytes(data[start - 8 : start - 4], "big")]
    pieces = [chunk(b"IDAT", pixels[at : at + size]) for at in range(0, len(pixels), size)]
    return data[: start - 8] + b"".join(pieces) + chunk(b"IEND", b"")


def interlaced(width: int, height: int, rows: int | None = None) -> bytes:
    """A grey interlaced PNG of value 9, with only the first `rows` rows of its seven passes."""
    passes = [(0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4)]
    passes += [(0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2)]
    lines = []
    for left, across, top, down in passes:
        columns = len(range(left, width, across))
        lines += [b"\0" + b"\x09" * columns] * (len(range(top, height, down)) if columns else 0)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    pixels = zlib.compress(b"".join(lines[:rows]))
    parts = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in parts)


# ----------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(NOISE)),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(100 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(100 << 20))),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + NOISE),
        chunk(b"tEXt", b"Comment\0" + NOISE),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(NOISE)),
        chunk(b"iCCP", b"profile\0\7not compressed in any way that PNG knows"),
        chunk(b"zTXt", b"Comment\0\0not compressed"),
        chunk(b"eXIf", NOISE),
        chunk(b"gAMA", b""),
        chunk(b"acTL", b"\0"),
        chunk(b"teSt", NOISE),
        chunk(b"tEXt", b"x" * 9) * 5000,
        b"".join(chunk(b"zTXt", b"t%d\0\0" % n + zlib.compress(bytes(1 << 20))) for n in range(99)),
        chunk(b"tIME", b"1234567")[:-1] + b"?",  # a wrong checksum
    ],
)
def test_png_with_large_or_broken_metadata_is_decoded(extra: bytes) -> None:
    assert_same_pixels(with_chunks(extra), PNG)
    assert_same_pixels(PNG[:-12] + extra + PNG[-12:], PNG)


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xE2, b"ICC_PROFILE\0\1\1" + NOISE[:60_000]) * 40,
        segment(0xE1, b"Exif\0\0" + NOISE[:60_000]) * 40,
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + NOISE[:60_000]) * 40,
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9),
        segment(0xEB, b"JP\0\1" + NOISE[:60_000]) * 40,
        segment(0xFE, b"a comment") * 20_000,
        segment(0xE1, b"Exif\0\0MM\0*" + JPEG) + segment(0xE5, JPEG[2:] * 5),  # thumbnails
        b"\xff\xd8",
        b"\xff" * 50,
        segment(0xE9, b"") + b"\0\0junk",
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_jpeg_with_large_or_broken_metadata_is_decoded(extra: bytes, mode: str) -> None:
    plain = file(scene().convert(mode), "JPEG")
    assert_same_pixels(with_segments(extra, data=plain), plain)


@pytest.mark.parametrize("metadata", [NOISE, b"", b"Exif\0\0II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", [b"ICCP", b"EXIF", b"XMP ", b"ABCD"])
@pytest.mark.parametrize("plain", [WEBP, file(scene(), "WEBP", lossless=True)])
def test_webp_with_large_or_broken_metadata_is_decoded(
    plain: bytes, kind: bytes, metadata: bytes
) -> None:
    size = struct.pack("<I", 96)[:3] + struct.pack("<I", 60)[:3]  # less one
    head = (b"VP8X", bytes([0x2C, 0, 0, 0]) + size)
    pixels = (plain[12:16], plain[20 : 20 + int.from_bytes(plain[16:20], "little")])
    assert_same_pixels(riff(head, (kind, metadata), pixels), plain)
    assert_same_pixels(riff(head, pixels, (kind, metadata)), plain)


def test_gif_with_many_comments_is_decoded() -> None:
    start = GIF.index(b",\0\0\0\0")
    comment = b"!\xfe" + (b"\xff" + b"c" * 255) * 9 + b"\0"
    assert_same_pixels(GIF[:start] + comment * 900 + GIF[start:], GIF)


def test_colour_profile_of_any_size_is_ignored() -> None:
    for format in ("JPEG", "PNG", "WEBP"):
        assert_same_pixels(file(scene(), format, icc_profile=NOISE), file(scene(), format))


# ------------------------------------------------------------------------- after the first picture


def video(scans: int) -> bytes:
    """The video that a phone appends to a picture, with bytes that look like JPEG scans."""
    return struct.pack(">I", 24) + b"ftypmp42" + bytes(12) + (b"\xff\xda" + NOISE[:999]) * scans


@pytest.mark.parametrize(
    "appended", [video(500), JPEG * 40, b"\xff\xd9" * 9, bytes(99), b"PK\3\4" + NOISE]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_bytes_after_the_end_of_a_jpeg_are_ignored(appended: bytes, progressive: bool) -> None:
    plain = file(scene(), "JPEG", progressive=progressive)
    limits = PictureLimits(max_pixels=97 * 61)  # so that 21 scans would be too many
    found = decode(plain + appended, PLAIN, limits)
    np.testing.assert_array_equal(found, decode(plain, PLAIN, limits))


def test_too_many_scans_are_refused_also_before_a_video() -> None:
    plain = file(scene(), "JPEG", progressive=True)
    last = plain[plain.rfind(b"\xff\xda") : -2]
    limits = PictureLimits(max_pixels=97 * 61)
    endless = plain[:-2] + last * 30 + plain[-2:] + video(3)
    assert refused(endless, limits).reason == "too_many_scans"


def test_restart_markers_out_of_order_are_refused() -> None:
    plain = file(scene(), "JPEG", restart_marker_rows=1)
    assert b"\xff\xd1" in plain
    decode(plain, PLAIN, LIMITS)
    assert refused(plain.replace(b"\xff\xd1", b"\xff\xd5", 1)).reason == "corrupt"


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_damage_after_the_first_frame_is_ignored(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    data = bytearray(frames(format, **options))
    data[-30:-20] = bytes(10)
    assert (decode(bytes(data), PLAIN, LIMITS) == (255, 0, 0)).all()


# -------------------------------------------------------------------------------------- orientation


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes()


def xmp_of(orientation: int) -> bytes:
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % orientation


def raw_profile(orientation: int) -> bytes:
    return b"\nexif\n      %d\n%s\n" % (
        len(exif_of(orientation)),
        exif_of(orientation).hex().encode(),
    )


_XMP_KEY, _RAW_KEY = b"XML:com.adobe.xmp", b"Raw profile type exif"
_WAYS: dict[str, Callable[[bytes], bytes]] = {
    "eXIf": lambda png: with_chunks(chunk(b"eXIf", exif_of(6)[6:]), data=png),
    "eXIf with a prefix": lambda png: with_chunks(chunk(b"eXIf", exif_of(6)), data=png),
    "eXIf at the end": lambda png: png[:-12] + chunk(b"eXIf", exif_of(6)[6:]) + png[-12:],
    "XMP": lambda png: with_chunks(chunk(b"iTXt", _XMP_KEY + b"\0" * 5 + xmp_of(6)), data=png),
    "packed XMP": lambda png: with_chunks(
        chunk(b"iTXt", _XMP_KEY + b"\0\1\0\0\0" + zlib.compress(xmp_of(6) + bytes(MUCH))), data=png
    ),
    "raw profile": lambda png: with_chunks(
        chunk(b"zTXt", _RAW_KEY + b"\0\0" + zlib.compress(raw_profile(6))), data=png
    ),
    "EXIF before XMP": lambda png: with_chunks(
        chunk(b"iTXt", _XMP_KEY + b"\0" * 5 + xmp_of(3)), chunk(b"eXIf", exif_of(6)[6:]), data=png
    ),
}


@pytest.mark.parametrize("way", _WAYS)
def test_orientation_of_a_png_is_read_from_any_metadata(way: str) -> None:
    lying = file(scene().transpose(Image.Transpose.ROTATE_90), "PNG")
    assert_same_pixels(_WAYS[way](lying), PNG)


def test_orientation_of_a_jpeg_is_read_from_xmp() -> None:
    plain = file(scene(), "JPEG")
    turned = with_segments(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(3)), data=plain)
    upright = decode(plain, PLAIN, LIMITS)
    found = decode(turned, PLAIN, LIMITS)[::-1, ::-1]
    assert np.abs(found.astype(int) - upright).mean() < 8  # without the rotation it is above 90


def test_orientation_with_a_wrong_checksum_is_ignored() -> None:
    broken = chunk(b"eXIf", exif_of(6)[6:])[:-1] + b"?"
    assert_same_pixels(with_chunks(broken), PNG)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_a_webp_is_applied(orientation: int) -> None:
    turned = decode(oriented(scene(), orientation, "WEBP", lossless=True), PLAIN, LIMITS)
    np.testing.assert_array_equal(turned, decode(PNG, PLAIN, LIMITS))


# ----------------------------------------------------------------------------------- damaged pixels

_PNGS = {
    "RGB": PNG,
    "palette": file(scene().quantize(16), "PNG", transparency=3),
    "alpha": file(scene().convert("RGBA"), "PNG"),
    "small chunks": with_small_chunks(file(scene(), "PNG", compress_level=0), 500),
    "interlaced": interlaced(97, 61),
    "animated": frames("PNG"),
    "16 bits": png(0, 16, NOISE[:5000], 50, 50),
}


@pytest.mark.parametrize("kind", _PNGS)
def test_png_with_any_flipped_bit_in_its_pixels_is_corrupt(kind: str) -> None:
    data = _PNGS[kind]
    start = data.index(b"IDAT") + 4
    end = start + int.from_bytes(data[start - 8 : start - 4], "big") + 4  # with the checksum
    bits = range(8 * start, 8 * end, max(1, (end - start) // 40))
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert refused(bytes(flipped)).reason == "corrupt", bit


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"tRNS", b"IDAT"])
def test_png_with_a_wrong_checksum_in_a_decoded_chunk_is_corrupt(kind: bytes) -> None:
    data = bytearray(_PNGS["palette"])
    at = data.index(kind) - 4
    data[at + 8 + int.from_bytes(data[at : at + 4], "big")] ^= 1
    error = refused(bytes(data))
    assert error.reason == "corrupt"
    assert kind.decode() in error.detail


def test_png_without_its_end_marker_is_decoded() -> None:
    for data in (PNG[:-12], PNG[:-5], PNG[:-12] + b"\0\0\0\0tE", PNG[:-12] + bytes(40)):
        assert_same_pixels(data, PNG)
    assert refused(PNG[:-16]).reason == "truncated"  # without the checksum of the pixels


@pytest.mark.parametrize("rows", [1, 20, 49])
@pytest.mark.parametrize("colour", [0, 2, 6])
def test_png_whose_pixels_end_early_is_truncated(rows: int, colour: int) -> None:
    channels = {0: 1, 2: 3, 6: 4}[colour]
    lines = NOISE[: 50 * 50 * channels]
    whole = png(colour, 8, lines, 50, 50)
    short = png(colour, 8, lines[: rows * 50 * channels], 50, rows)
    start = short.index(b"IDAT") - 4
    assert refused(whole[:33] + short[start:]).reason == "truncated"
    decode(whole, PLAIN, LIMITS)


def test_png_with_blank_rows_is_decoded() -> None:
    for mode in ("L", "RGB", "RGBA", "P", "1", "LA"):
        decode(file(Image.new(mode, (50, 50)), "PNG"), PLAIN, LIMITS)
    for size in ((97, 61), (1, 1), (2, 7), (5, 1), (8, 8)):
        assert (decode(interlaced(*size), PLAIN, LIMITS) == 9).all()
    assert refused(interlaced(97, 61, rows=100)).reason == "truncated"


@pytest.mark.parametrize("format", ["JPEG", "progressive", "PNG", "WEBP", "GIF", "AVIF"])
def test_file_cut_off_at_any_tenth_is_truncated(format: str) -> None:
    noise = Image.fromarray(np.frombuffer(NOISE[:10_800], np.uint8).reshape(60, 60, 3))
    progressive = format == "progressive"
    data = file(
        noise, "JPEG" if progressive else format, **({"progressive": True} if progressive else {})
    )
    for tenth in range(1, 10):
        assert refused(data[: len(data) * tenth // 10]).reason == "truncated"
    if "JPEG" in format or progressive:
        assert refused(data[:-2]).reason == "truncated"


@pytest.mark.parametrize("code", [0x01, 0x02, 0x40, 0x80, 0xC8, 0xD8, 0xF7])
def test_marker_among_the_pixels_of_a_jpeg_is_corrupt(code: int) -> None:
    noise = Image.fromarray(np.frombuffer(NOISE[:10_800], np.uint8).reshape(60, 60, 3))
    data = file(noise, "JPEG", quality=95)
    at = data.index(b"\xff\x00", data.index(b"\xff\xda"))
    assert refused(data[: at + 1] + bytes([code]) + data[at + 2 :]).reason == "corrupt"


# ------------------------------------------------------------------------------------- file formats


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"II+\0\x08\0\0\0" + bytes(90), "BigTIFF"),
        (b"MM\0+\0\x08\0\0" + bytes(90), "BigTIFF"),
        (file(scene(), "TIFF"), "TIFF"),
        (file(scene(), "BMP"), "BMP"),
        (file(scene(), "PPM"), "Netpbm"),
        (b"\0\0\0\x18ftypmif1" + bytes(90), "HEIF"),
        (b"\0\0\0\x14ftypjxl \0\0\0\0jxl " + bytes(90), "JPEG XL"),
        (file(scene(), "TGA"), "TGA"),
        (file(scene(), "TGA", compression="tga_rle"), "TGA"),
        (file(scene(), "PCX"), "PCX"),
        (b"\0\0\2\0\1\0\x20\x20" + bytes(90), "CUR"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(90), "JPEG XL"),
        (b"\xff\x0a" + bytes(90), "JPEG XL"),
        (b"qoif" + bytes(90), "QOI"),
        (PNG[:8] + chunk(b"CgBI", b"\x50\0\x20\2") + PNG[8:], "CgBI"),
        (re.sub(rb"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c", JPEG), "12 bits"),
        (re.sub(rb"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x08", JPEG), "lossless"),
    ],
)
def test_unsupported_format_is_rejected_by_its_name(data: bytes, name: str) -> None:
    error = refused(data)
    assert error.reason == "format_not_supported"
    assert name in error.detail


@pytest.mark.parametrize(
    "data",
    [
        b"BMW and other cars\n" * 9,
        b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + b"avif" * 9,
        b"<html>" * 90,
        b"\n<!DOCTYPE html><title>404</title><svg viewBox='0 0 8 8'></svg>",
    ],
)
def test_file_that_is_not_a_picture_is_rejected(data: bytes) -> None:
    assert refused(data).reason == "not_a_picture"


@pytest.mark.parametrize(
    "data",
    [
        with_segments(b"\xff\xfe\0\2" * 2000),
        with_segments(b"\xff\xd8" * 2000),
        with_chunks(chunk(b"teSt", b"") * 2000),
        GIF[:13] + b"!\xfe\0" * 2000,
        b"RIFF" + struct.pack("<I", 16_012) + b"WEBP" + b"JUNK\0\0\0\0" * 2001,
    ],
)
def test_too_many_blocks_are_refused(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_BLOCKS", 1000)
    assert refused(data).reason == "too_many_blocks"


@pytest.mark.parametrize("data", [GIF[: GIF.index(b",\0\0\0\0")] + b"!\xfe" + b"\1c" * 99, None])
def test_too_many_sub_blocks_or_restarts_are_refused(
    data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MAX_PIECES", 10)
    if data is None:
        data = file(scene(), "JPEG", restart_marker_blocks=1)
    assert refused(data).reason == "too_many_blocks"


def test_error_of_the_decoder_is_a_rejection_in_every_format(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the first time: Pillow must not try another parser."""

    def broken(*_: Any) -> None:
        raise OSError("unrecognized data stream contents when reading image file")

    for data in (JPEG, PNG, WEBP, GIF):
        with monkeypatch.context() as patched:
            patched.setattr("PIL.ImageFile.ImageFile.load_prepare", broken)
            with pytest.raises(PictureError, match="corrupt"):
                decode(data, PLAIN, LIMITS)


def test_size_of_the_first_picture_does_not_grow_with_the_metadata() -> None:
    for large, plain in (
        (with_chunks(chunk(b"tEXt", b"a\0" + NOISE)), PNG),
        (with_segments(segment(0xE5, NOISE[:60_000]) * 9) + NOISE, JPEG),
        (GIF + NOISE, GIF),
    ):
        assert len(containers.first_picture(large).data) <= len(plain)
