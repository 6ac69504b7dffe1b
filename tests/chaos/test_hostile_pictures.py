"""Hostile pictures do no harm (promise 10): many at once, in a process that is watched.

What single files become is tested beside the decoder.
"""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.chaos.harness import PROCESSES, amount, measured, tried
from tests.features.test_containers import chunk, segment, with_chunks, with_segments
from tests.features.test_decode import _VICTIMS, PLAIN, file, frames, oriented, png, scene
from visrec.features.decode import PictureLimits

pytestmark = pytest.mark.chaos

LIMITS = PictureLimits(max_pixels=4_000_000, max_bytes=4 * 2**20)
ROOM = 16 * LIMITS.max_pixels + 32 * 2**20  # what the limits say a picture may take, and some more
REASONS = {
    *("empty", "too_many_bytes", "not_a_picture", "format_not_supported", "too_many_pixels"),
    *("too_many_scans", "too_many_blocks", "truncated", "corrupt", "out_of_memory"),
}


def patched(data: bytes, start: int, replacement: bytes) -> bytes:
    return data[:start] + replacement + data[start + len(replacement) :]


def polyglot(data: bytes, behind: bytes) -> bytes:
    return data + behind


def archive() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as zipped:
        zipped.writestr("run.py", "raise SystemExit")
    return sink.getvalue()


def exif(*entries: tuple[int, int, int, int]) -> bytes:
    """A JPEG with an EXIF directory of (tag, type, count, value), written by hand."""
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    block = b"Exif\0\0II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 8)
    return file(scene(), "JPEG", exif=block)  # the next directory is this one again


def crafted() -> dict[str, tuple[bytes, str]]:
    """Files and what is to become of them: pixels, or one of these reasons."""
    png_file, jpeg = file(scene(), "PNG"), file(scene(), "JPEG")
    gif, webp = file(scene(), "GIF"), file(scene(), "WEBP")
    avif = file(scene(), "AVIF", speed=10)
    inflated = zlib.compress(bytes(120 * 2**20))
    progressive = file(scene(1500, 1500), "JPEG", progressive=True)
    scan = progressive[progressive.rfind(b"\xff\xda") : -2]
    size_of_jpeg = jpeg.index(b"\xff\xc0") + 5
    return {
        "zero bytes": (b"", "empty"),
        "text": (b"hello, this is text\n" * 9, "not_a_picture"),
        "zeros": (bytes(1000), "not_a_picture"),
        "the first bytes of a JPEG": (b"\xff\xd8\xff", "truncated corrupt"),
        "the first bytes of a PNG": (png_file[:8], "truncated corrupt"),
        "the first bytes of a GIF": (b"GIF89a", "truncated corrupt"),
        "too many bytes": (jpeg + bytes(LIMITS.max_bytes), "too_many_bytes"),
        "BMP": (file(scene(), "BMP"), "format_not_supported"),
        "TIFF": (file(scene(), "TIFF"), "format_not_supported"),
        "EPS": (file(scene(), "EPS"), "format_not_supported"),
        "PDF": (file(scene(), "PDF"), "format_not_supported"),
        "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "format_not_supported"),
        "SVG with an entity bomb": (
            b'<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><svg>&b;</svg>',
            "format_not_supported",
        ),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0", "format_not_supported"),
        "PNG bomb": (png(2, 8, b"", 50_000, 50_000), "too_many_pixels"),
        "JPEG bomb": (patched(jpeg, size_of_jpeg, b"\xff\xff\xff\xff"), "too_many_pixels"),
        "GIF bomb": (patched(gif, 6, b"\xff\xff\xff\xff"), "too_many_pixels"),
        "WEBP bomb": (
            patched(frames("WEBP", lossless=True), 24, b"\xfe\x3f\0\xfe\x3f\0"),
            "too_many_pixels corrupt",
        ),
        "AVIF bomb": (
            re.sub(
                rb"ispe\0{4}.{8}", b"ispe" + bytes(4) + b"\0\0\xc3\x50" * 2, avif, flags=re.DOTALL
            ),
            "too_many_pixels",
        ),
        "AVIF truncated": (avif[: len(avif) // 2], "truncated"),
        "AVIF of boxes without end": (avif[:32] + b"\0\0\0\x08free" * 300_000, "too_many_blocks"),
        "animated AVIF": (frames("AVIF"), "pixels"),
        "endless scans": (progressive[:-2] + scan * 200 + b"\xff\xd9", "too_many_scans"),
        "text that inflates": (with_chunks(chunk(b"zTXt", b"a\0\0" + inflated)), "pixels"),
        "profile that inflates": (with_chunks(chunk(b"iCCP", b"a\0\0" + inflated)), "pixels"),
        "orientation that inflates": (
            with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + inflated)),
            "pixels",
        ),
        "EXIF in pieces": (with_segments(segment(0xE1, b"Exif\0\0a") * 150_000), "pixels"),
        "segments without end": (with_segments(b"\xff\xfe\0\2" * 1_000_000), "too_many_blocks"),
        "video behind a JPEG": (jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 900_000, "pixels"),
        "pixels that inflate": (
            png_file[:33] + chunk(b"IDAT", inflated) + chunk(b"IEND", b""),
            "pixels",
        ),
        "chunks without end": (with_chunks(chunk(b"teSt", b"") * 100_000), "pixels"),
        "PNG truncated": (png_file[: len(png_file) // 2], "truncated"),
        "JPEG truncated": (jpeg[: len(jpeg) // 2], "truncated"),
        "GIF truncated": (gif[: len(gif) // 2], "truncated"),
        "WEBP truncated": (webp[: len(webp) // 2], "truncated"),
        "PNG of no width": (png(2, 8, b"", 0, 9), "corrupt truncated"),
        "JPEG of no height": (patched(jpeg, size_of_jpeg, b"\0\0"), "corrupt truncated"),
        "wrong checksum": (patched(png_file, 29, b"\0\0\0\0"), "corrupt"),
        "palette that is not there": (png(3, 8, bytes(2500), 50, 50), "pixels corrupt"),
        "GIF of an impossible code size": (
            patched(gif, gif.index(b",\0\0\0\0") + 10, b"\xff"),
            "corrupt truncated",
        ),
        "EXIF of no direction": (exif((ExifTags.Base.Orientation, 3, 1, 9)), "pixels"),
        "EXIF that leads to itself": (exif((0x8769, 4, 1, 8)), "pixels"),
        "EXIF of four billion values": (exif((0x0112, 3, 0xFFFFFFFF, 8)), "pixels"),
        "CMYK": (file(scene().convert("CMYK"), "JPEG"), "pixels"),
        "16 bits of grey": (png(0, 16, bytes(5000), 50, 50), "pixels"),
        "16 bits of RGBA": (png(6, 16, bytes(20_000), 50, 50), "pixels"),
        "palette with alpha": (file(scene().quantize(16), "PNG", transparency=3), "pixels"),
        "1x65535": (file(Image.new("L", (1, 65_535), 9), "PNG"), "pixels"),
        "65535x1": (file(Image.new("L", (65_535, 1), 9), "PNG"), "pixels"),
        "animated GIF": (frames("GIF"), "pixels"),
        "animated PNG": (frames("PNG"), "pixels"),
        "animated WEBP": (frames("WEBP"), "pixels"),
        "JPEG and ZIP": (polyglot(jpeg, archive()), "pixels"),
        "GIF and script": (polyglot(gif, b"*/=1;<script>alert(1)</script>"), "pixels"),
        "PDF and JPEG": (polyglot(b"%PDF-1.7\n", jpeg), "format_not_supported"),
        **{
            f"turned {way}": (oriented(scene(), way, "PNG"), "pixels like turned 1")
            for way in range(1, 9)
        },
    }


def mutated(seed: int) -> bytes:
    """A picture with some of its bytes changed, cut out, put in, repeated or cut off."""
    rng = random.Random(seed)
    data = bytearray(rng.choice(_VICTIMS))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(min(len(data), rng.choice((40, 300, len(data)))))
        length = rng.randint(1, rng.choice((1, 6, 200)))
        part = slice(at, at + length)
        change = rng.randrange(6)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[part] = rng.randbytes(length)
        elif change == 2:
            del data[part]
        elif change == 3:
            data[at:at] = rng.randbytes(length)
        elif change == 4:
            data[part] = rng.choice((b"\0", b"\xff")) * length
        else:
            data[at:at] = data[part] * rng.randint(1, 20)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def watched(files: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """What becomes of the files in a process of their own; an error if it does not survive them."""
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        return pool.submit(tried, files, PLAIN, LIMITS, ROOM).result()


def check_reasons(found: dict[str, tuple[str, str]]) -> int:
    """How many were refused, each with a reason and a sentence."""
    refused = {name: facts for name, facts in found.items() if facts[0] != "pixels"}
    for name, (reason, detail) in refused.items():
        assert reason in REASONS - {"out_of_memory"}, name
        assert detail.endswith("."), name
        assert "\n" not in detail, name
    return len(refused)


def test_crafted_pictures_do_no_harm() -> None:
    files = crafted()
    assert len(files) >= 40
    found = watched({name: data for name, (data, _) in files.items()})
    wrong = {}
    for name, (_, expected) in files.items():
        outcome, digest = found[name]
        if expected == "pixels like turned 1":
            fits = (outcome, digest) == found["turned 1"]
        else:
            fits = outcome in expected.split()
        if not fits:
            wrong[name] = (found[name], expected)
    assert wrong == {}
    refused = check_reasons(found)
    measured(10, bad_inputs=len(found), crashes=0, refused_with_a_reason=refused)


def test_mutated_pictures_do_no_harm() -> None:
    count = amount(200, 2000)
    found = watched({str(seed): mutated(seed) for seed in range(count)})
    assert len(found) == count
    refused = check_reasons(found)
    assert count / 10 < refused < count  # or they were not mutated, or not pictures any more
    measured(10, bad_inputs=count, crashes=0, refused_with_a_reason=refused)


def flipped(data: bytes, count: int) -> Iterator[bytes]:
    """Files with one bit of the compressed pixels changed: of the middle three quarters."""
    rng = random.Random(len(data))
    for _ in range(count):
        changed = bytearray(data)
        bit = rng.randrange(len(data), 7 * len(data))
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def pillow_refuses(data: bytes) -> bool:
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:
        return True
    return False


def of_noise(format: str, **options: Any) -> bytes:
    """A picture of which most bytes are compressed pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return file(Image.fromarray(noise), format, **options)


def test_flipped_bits_are_found_if_the_format_has_checksums() -> None:
    """PNG finds all. The others have no checksums: what their decoder says is not swallowed."""
    sound = {
        "PNG": of_noise("PNG"),
        "JPEG": of_noise("JPEG"),
        "progressive JPEG": of_noise("JPEG", progressive=True),
        "WEBP": of_noise("WEBP"),
        "lossless WEBP": of_noise("WEBP", lossless=True),
        "GIF": of_noise("GIF"),
        "AVIF": of_noise("AVIF", speed=10),
    }
    count = amount(60, 1000)
    files = {f"{kind} {n}": damaged for kind, data in sound.items()
             for n, damaged in enumerate(flipped(data, count))}  # fmt: skip
    found = watched(files)
    check_reasons(found)
    refused = {name for name, facts in found.items() if facts[0] != "pixels"}
    assert {found[name][0] for name in refused} <= {"corrupt", "truncated"}
    assert {name for name in files if pillow_refuses(files[name])} <= refused
    for kind in sound:
        few = len({name for name in refused if name.startswith(f"{kind} ")})
        assert few == count or kind != "PNG"
        counts = {f"flipped_{kind}": count, f"refused_{kind}": few}
        measured(10, bad_inputs=count, crashes=0, errors_swallowed=0, **counts)


def test_watch_reports_a_process_that_takes_too_much() -> None:
    """With too little memory, most of it for the watch itself, or time, a plain one is stopped."""
    large = {"large": file(Image.new("RGB", (1900, 1900)), "PNG")}
    with ProcessPoolExecutor(1, PROCESSES) as pool:
        found = pool.submit(tried, large, PLAIN, LIMITS, 14 * 2**20).result()
    assert found["large"][0] == "out_of_memory"
    with ProcessPoolExecutor(1, PROCESSES) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(tried, large, PLAIN, LIMITS, ROOM, 0.001).result()
