"""AVIF: pixels, turns, grids and alpha; sizes and damage that are found before decoding."""

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.features.test_decode import LIMITS, PLAIN, file, frames, oriented, refused, scene
from visrec.features.containers import PictureError, base, first_picture
from visrec.features.containers.av1 import describe_av1
from visrec.features.decode import _PARSERS, PictureLimits, decode

FAST = {"quality": 95, "speed": 10}
AVIF = file(scene(), "AVIF", **FAST)
RGBA = file(Image.merge("RGBA", [*scene().split(), scene().getchannel(0)]), "AVIF", **FAST)


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return (len(body) + 8).to_bytes(4) + kind + body


def two(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(2) for number in numbers)


def coded(picture: Image.Image) -> bytes:
    """The AV1 bytes of a picture, which Pillow writes to the end of the file."""
    data = file(picture, "AVIF", **FAST)
    return data[data.index(b"mdat") + 4 :]


def avif(
    items: Sequence[tuple[bytes, bytes]],
    sizes: Sequence[tuple[int, int]],
    references: bytes = b"",
    turns: Sequence[bytes] = (),
    *,
    inline: bool = False,
) -> bytes:
    """An AVIF written by hand.

    Args:
        items: type and bytes of each, the primary one first; they have the numbers from 1 on.
        sizes: the sizes of the first items, which are pictures; the rest is metadata.
        references: boxes.
        turns: property boxes of the primary item.
        inline: whether the bytes of the primary item are in the box that describes the items.
    """
    config = AVIF[AVIF.index(b"av1C") - 4 :][: int.from_bytes(AVIF[AVIF.index(b"av1C") - 4 :][:4])]
    shapes = [box(b"ispe", bytes(4), w.to_bytes(4), h.to_bytes(4)) for w, h in sizes]
    uses = b"".join(
        two(n) + bytes([2 + (len(turns) if n == 1 else 0), n, 0x80 | len(shapes) + 1])
        + bytes(0x80 | len(shapes) + 2 + k for k in range(len(turns) if n == 1 else 0))
        for n in range(1, len(sizes) + 1)
    )  # fmt: skip
    kinds = [
        box(b"infe", b"\2\0\0\0", two(n, 0), kind, b"\0")
        for n, (kind, _) in enumerate(items, start=1)
    ]
    outside = b"".join(data for n, (_, data) in enumerate(items) if n or not inline)

    def meta(start: int) -> bytes:
        places = b""
        for n, (_, data) in enumerate(items, start=1):
            method = int(inline and n == 1)
            places += two(n, method, 0, 1) + (0 if method else start).to_bytes(4)
            places += len(data).to_bytes(4)
            start += 0 if method else len(data)
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), two(1)),
            box(b"iloc", b"\1\0\0\0\x44\0", two(len(items)), places),
            box(b"iinf", bytes(4), two(len(kinds)), *kinds),
            box(b"iref", bytes(4), references),
            box(
                b"iprp",
                box(b"ipco", *shapes, config, *turns),
                box(b"ipma", bytes(4), len(sizes).to_bytes(4), uses),
            ),
            box(b"idat", items[0][1] if inline else b""),
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", outside)


def grid(columns: int, rows: int, width: int, height: int) -> bytes:
    return bytes([0, 0, rows - 1, columns - 1]) + two(width, height)


def assert_alike(found: bytes, expected: Image.Image, most: float = 2) -> None:
    pixels = decode(file(expected, "PNG"), PLAIN, LIMITS).astype(int)
    assert np.abs(decode(found, PLAIN, LIMITS) - pixels).mean() < most


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_avif_has_the_pixels_of_its_picture(mode: str) -> None:
    source = scene().convert(mode)
    if "A" in mode:
        source.putalpha(scene().getchannel(1))
    assert_alike(file(source, "AVIF", **FAST), source)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_are_applied(orientation: int) -> None:
    assert_alike(oriented(scene(), orientation, "AVIF", **FAST), scene())


@pytest.mark.parametrize("turned", [False, True])
def test_exif_turns_a_picture_without_turns_of_its_own(turned: bool) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    metadata = bytes(4) + exif.tobytes()[6:]
    items = [(b"av01", coded(scene())), (b"Exif", metadata)]
    turns = [box(b"irot", b"\2")] if turned else []
    data = avif(items, [scene().size], box(b"cdsc", two(2, 1, 1)), turns)
    method = Image.Transpose.ROTATE_180 if turned else Image.Transpose.ROTATE_270
    assert_alike(data, scene().transpose(method))


@pytest.mark.parametrize("inline", [False, True])
def test_grid_is_put_together(inline: bool) -> None:
    whole = scene(128, 64)
    tiles = [coded(whole.crop((left, 0, left + 64, 64))) for left in (0, 64)]
    items = [(b"grid", grid(2, 1, 128, 64)), *((b"av01", tile) for tile in tiles)]
    references = box(b"dimg", two(1, 2, 2, 3))
    assert_alike(avif(items, [(128, 64)] + [(64, 64)] * 2, references, inline=inline), whole)


def test_first_frame_of_a_sequence_is_used() -> None:
    data = frames("AVIF", **FAST)
    assert b"moov" in data
    assert b"moov" not in first_picture(data).data
    assert np.abs(decode(data, PLAIN, LIMITS).astype(int) - (255, 0, 0)).mean() < 3
    only_tracks = data[:44] + data[data.index(b"moov") - 4 :]
    assert refused(only_tracks).reason == "format_not_supported"


def test_metadata_and_what_follows_are_left_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    items = [(b"av01", coded(scene())), (b"mime", b"application/rdf+xml\0" + noise)]
    data = avif(items, [scene().size], box(b"cdsc", two(2, 1, 1)))
    for more in (noise, b"\0\0\0\x18ftypmp42", b"\0\0\0\0mdat", b"\xff" * 9):
        assert len(first_picture(data + more).data) < 3000
        np.testing.assert_array_equal(
            decode(data + more, PLAIN, LIMITS), decode(data, PLAIN, LIMITS)
        )
    with_profile = file(scene(), "AVIF", icc_profile=noise, **FAST)
    assert len(first_picture(with_profile).data) < 3000
    assert_alike(with_profile, scene())


# ----------------------------------------------------------------------------------------- refused


def test_size_is_checked_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the properties of the item say it, the coded picture, or the number of tiles."""

    def decoded(*_: object) -> None:
        raise AssertionError("it was given to the decoder")

    monkeypatch.setitem(_PARSERS, "AVIF", decoded)
    at = AVIF.index(b"ispe") + 8
    said = AVIF[:at] + (60_000).to_bytes(4) + (60_000).to_bytes(4) + AVIF[at + 8 :]
    limits = PictureLimits(max_pixels=97 * 61 - 1)
    lying = AVIF[:at] + (1).to_bytes(4) * 2 + AVIF[at + 8 :]
    tile = coded(scene(64, 64))
    items = [(b"grid", grid(30, 1, 64, 64)), (b"av01", tile)]
    tiles = avif(items, [(64, 64)] * 2, box(b"dimg", two(1, 30, *[2] * 30)))
    for data, limit in (
        (said, LIMITS),
        (AVIF, limits),
        (lying, limits),
        (tiles, PictureLimits(max_pixels=29 * 64 * 64)),
    ):
        assert refused(data, limit).reason == "too_many_pixels"


def test_frames_without_end_are_refused() -> None:
    picture = coded(scene())
    frame = picture[2 + picture[3] + 2 :]
    assert frame[0] >> 3 == 6
    assert describe_av1(picture).frames == 1
    data = avif([(b"av01", picture + frame * 30)], [scene().size])
    assert refused(data, PictureLimits(max_pixels=97 * 61)).reason == "too_many_scans"


def test_bytes_that_are_used_many_times_are_refused() -> None:
    """Items or extents that overlap would take more memory than the file."""
    at = AVIF.index(b"iloc") + 12  # its only item: number, file, extents
    entry = AVIF[at + 6 : at + 14]
    more = AVIF[: at + 4] + two(9) + entry * 9
    for kind in (b"meta", b"iloc"):
        start = more.index(kind) - 4
        size = int.from_bytes(more[start : start + 4]) + 64
        more = more[:start] + size.to_bytes(4) + more[start + 4 :]
    data = more + AVIF[at + 14 :]
    assert refused(data).reason == "corrupt"


@pytest.mark.parametrize(
    ("kind", "words"), [(b"hvc1", "hvc1"), (b"iovl", "iovl"), (b"j2k1", "j2k1")]
)
def test_picture_that_is_not_av1_is_refused_by_name(kind: bytes, words: str) -> None:
    error = refused(avif([(kind, coded(scene()))], [scene().size]))
    assert error.reason == "format_not_supported"
    assert words in error.detail


@pytest.mark.parametrize(
    "data",
    [
        avif([(b"grid", grid(2, 1, 128, 64))], [(128, 64)]),
        avif([(b"av01", b"\x12\0")], [(9, 9)]),
        avif([(b"av01", b"")], [(9, 9)]),
        AVIF.replace(b"pitm", b"pitx"),
        AVIF.replace(b"ispe", b"ispx"),
        AVIF[:32] + b"\0\0\0\4free" + AVIF[32:],
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0\0\0\x08free",
    ],
)
def test_file_that_contradicts_itself_is_corrupt(data: bytes) -> None:
    assert refused(data).reason == "corrupt"


def test_cut_off_file_is_truncated_wherever_it_ends() -> None:
    for data in (AVIF, RGBA):
        reasons = {refused(data[:end]).reason for end in range(40, len(data), 7)}
        assert reasons == {"truncated"}


def test_items_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "MAX_BLOCKS", 100)
    tile = coded(scene(64, 64))
    items = [(b"grid", grid(200, 1, 64, 64)), (b"av01", tile)]
    many = avif(items, [(64, 64)] * 2, box(b"dimg", two(1, 200, *[2] * 200)))
    for data in (many, AVIF[:32] + b"\0\0\0\x08free" * 101 + AVIF[32:]):
        assert refused(data).reason == "too_many_blocks"


def test_avif_beside_other_brands_is_read() -> None:
    generic = AVIF.replace(b"ftypavif", b"ftypmif1", 1)
    assert_alike(generic, scene())
    with pytest.raises(PictureError, match="HEIC"):
        decode(AVIF.replace(b"ftypavif", b"ftypheic", 1), PLAIN, LIMITS)
