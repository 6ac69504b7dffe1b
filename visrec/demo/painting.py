"""Paints a work of the sample gallery: a subject in a style, with the habits of an artist.

Shapes: H height, W width, C channels, T style properties.
"""

import colorsys
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Floats = npt.NDArray[np.float32]
Random = np.random.Generator
Colour = tuple[int, int, int]
# Dabs take their random numbers from tables of these sizes: one start for each row, one load of
# paint for each dab. The sizes are powers of two, so `&` wraps an index. From one row to the next,
# the index of a dab grows by `_DAB_STRIDE`, a prime, so that no pattern shows.
_ROW_STARTS, _DAB_LOADS, _DAB_STRIDE = 512, 4096, 61
_DAB_LENGTH = 4  # of a dab, in row heights


@dataclass(frozen=True)
class Artist:
    """What the works of an artist have in common.

    Attributes:
        style_T: (T,) style from which the styles of the works deviate.
        pigments: a cool and a warm hue for each of five tones.
        lean: -1 if strokes lean left, +1 if they lean right.
        curl: how much strokes bend, as a share of the picture's side.
        subjects: favourite subjects.
    """

    style_T: Floats
    pigments: tuple[tuple[float, float], ...]
    lean: int
    curl: float
    subjects: tuple[str, ...]


# Each function draws one subject in five tones, background first. The subject is not part of the
# style.


def _ridge(draw: ImageDraw.ImageDraw, rng: Random, side: int, top: float, tone: Colour) -> None:
    """A band of hills from a height of `top` (a fraction of the side) down to the bottom."""
    x = np.linspace(0, side, 24)
    waves = rng.uniform(0.01, 0.09, 3)[:, None] * np.sin(
        x / side * np.array([[3.0], [7.0], [15.0]]) + rng.uniform(0, 6.28, (3, 1))
    )
    y = (top + waves.sum(0)) * side
    draw.polygon([*zip(x, y, strict=True), (side, side), (0, side)], fill=tone)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, t: Colour) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=t)


def _hills(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    radius = rng.uniform(0.05, 0.14) * side
    _disc(
        draw, rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.35) * side, radius, radius, tones[4]
    )
    for top, tone in zip(np.sort(rng.uniform(0.3, 0.9, 3)), tones[1:4], strict=True):
        _ridge(draw, rng, side, top, tone)


def _sea(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    horizon = rng.uniform(0.35, 0.65) * side
    draw.rectangle((0, horizon, side, side), fill=tones[1])
    for _ in range(rng.integers(1, 5)):
        x, y, tall = rng.uniform(0.1, 0.9) * side, rng.uniform(1, 1.4) * horizon, side * 0.3
        tall *= rng.uniform(0.5, 1.4)
        draw.polygon([(x, y), (x, y - tall), (x + tall * 0.6, y)], fill=tones[4])
        draw.polygon(
            [(x - tall * 0.07, y), (x - tall * 0.07, y - tall * 0.8), (x - tall * 0.4, y)],
            fill=tones[3],
        )
        draw.rectangle(
            (x - tall * 0.4, y + tall * 0.03, x + tall * 0.6, y + tall * 0.16), fill=tones[2]
        )


def _city(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    x = 0.0
    while x < side:
        wide, top = rng.uniform(0.08, 0.22) * side, rng.uniform(0.15, 0.75) * side
        draw.rectangle((x, top, x + wide, side), fill=tones[rng.integers(1, 4)])
        for y in np.arange(top + 6, side, side * 0.09):
            draw.rectangle((x + wide * 0.3, y, x + wide * 0.6, y + side * 0.04), fill=tones[4])
        x += wide
    _disc(draw, rng.uniform(0, side), side * 0.12, side * 0.06, side * 0.06, tones[4])


def _portrait(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    x, y, r = rng.uniform(0.35, 0.65) * side, rng.uniform(0.3, 0.48) * side, side * 0.2
    r *= rng.uniform(0.8, 1.25)
    _disc(draw, x, y - r * 0.1, r * 1.25, r * 1.55, tones[2])
    _disc(draw, x, y + r * 3.2, r * 2.2, r * 2.1, tones[1])
    draw.rectangle((x - r * 0.35, y + r * 0.8, x + r * 0.35, y + r * 1.6), fill=tones[4])
    _disc(draw, x, y + r * 0.1, r * 0.85, r * 1.2, tones[4])
    for eye in (-0.35, 0.35):
        _disc(draw, x + eye * r, y, r * 0.14, r * 0.09, tones[2])
    draw.rectangle((x - r * 0.25, y + r * 0.7, x + r * 0.25, y + r * 0.8), fill=tones[3])


def _still_life(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    table = rng.uniform(0.55, 0.75) * side
    draw.rectangle((0, table, side, side), fill=tones[1])
    x, tall = rng.uniform(0.25, 0.75) * side, rng.uniform(0.3, 0.5) * side
    base, neck = tall * 0.32, tall * 0.12
    _disc(draw, x, table + side * 0.08 - base, base, base, tones[2])
    draw.rectangle((x - neck, table - tall, x + neck, table), fill=tones[2])
    for _ in range(rng.integers(3, 8)):
        r = rng.uniform(0.05, 0.1) * side
        _disc(
            draw,
            rng.uniform(0.05, 0.95) * side,
            table + rng.uniform(0, 0.2) * side,
            r,
            r,
            tones[rng.integers(3, 5)],
        )


def _wood(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    _ridge(draw, rng, side, rng.uniform(0.65, 0.85), tones[1])
    for x in rng.uniform(0, side, rng.integers(4, 10)):
        wide, foot = rng.uniform(0.01, 0.035) * side, rng.uniform(0.75, 1.0) * side
        draw.polygon(
            [(x - wide, foot), (x - wide / 2, 0), (x + wide / 2, 0), (x + wide, foot)],
            fill=tones[2],
        )
        r = rng.uniform(0.08, 0.2) * side
        _disc(draw, x, rng.uniform(0, 0.35) * side, r * 1.2, r, tones[rng.integers(3, 5)])


def _flowers(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    for _ in range(rng.integers(3, 9)):
        x, y = rng.uniform(0.1, 0.9) * side, rng.uniform(0.1, 0.7) * side
        r = rng.uniform(0.08, 0.16) * side
        draw.line((x, y, x + rng.uniform(-0.1, 0.1) * side, side), fill=tones[1], width=4)
        for turn in np.arange(6) * math.pi / 3 + rng.uniform(0, 1):
            petal = (x + r * math.cos(turn), y + r * math.sin(turn))
            _disc(draw, *petal, r * 0.55, r * 0.55, tones[rng.integers(2, 4)])
        _disc(draw, x, y, r * 0.5, r * 0.5, tones[4])


def _abstract(draw: ImageDraw.ImageDraw, rng: Random, side: int, tones: list[Colour]) -> None:
    for _ in range(rng.integers(5, 12)):
        tone = tones[rng.integers(1, 5)]
        x, y, r = *rng.uniform(0, side, 2), rng.uniform(0.08, 0.3) * side
        if rng.random() < 0.4:
            _disc(draw, x, y, r, r, tone)
        else:
            corners = np.array([x, y]) + rng.uniform(-1.4, 1.4, (4, 2)) * r
            draw.polygon([(a, b) for a, b in corners], fill=tone)


SUBJECTS: dict[str, Callable[[ImageDraw.ImageDraw, Random, int, list[Colour]], None]] = {
    "hills": _hills,
    "sea": _sea,
    "city": _city,
    "portrait": _portrait,
    "still life": _still_life,
    "wood": _wood,
    "flowers": _flowers,
    "abstract": _abstract,
}


@lru_cache(maxsize=2)
def _grid(side: int) -> tuple[Floats, Floats]:
    """(H, W) x coordinates and (H, W) y coordinates of the pixels."""
    y_HW, x_HW = np.mgrid[:side, :side].astype(np.float32)
    return x_HW, y_HW


def _tones(style_T: Floats, artist: Artist, rng: Random) -> list[Colour]:
    """Five colours, each between a cool and a warm pigment of the artist."""
    warmth = (1 + math.sin(style_T[0] * math.pi / 2)) / 2  # the sine spreads the middle
    values = np.linspace(0.95, 0.25, 5)[:: rng.choice([-1, 1])]  # light to dark, or dark to light
    vivid = rng.uniform(0.35, 0.9)
    tones = []
    for (cool, warm), value in zip(artist.pigments, values, strict=True):
        pole_23 = np.array([colorsys.hsv_to_rgb(hue % 1, vivid, value) for hue in (cool, warm)])
        red, green, blue = 255 * (pole_23[0] * (1 - warmth) + pole_23[1] * warmth)
        tones.append((int(red), int(green), int(blue)))
    return tones


def _repaint_in_dabs(
    image_HWC: Floats, angle: float, row_height: float, bend_HW: Floats, rough: float, rng: Random
) -> Floats:
    """Repaints a picture in rows of dabs, each in the colour of the picture at the dab's middle.

    Args:
        image_HWC: the picture.
        angle: direction of the rows of dabs, in radians.
        row_height: height of a row in pixels.
        bend_HW: how far each pixel's row is shifted across, in pixels.
        rough: standard deviation of the brightness of dabs.
        rng: decides where each row starts and how bright each dab is.
    """
    x_HW, y_HW = _grid(len(image_HWC))
    cos, sin, length = math.cos(angle), math.sin(angle), _DAB_LENGTH * row_height
    along_HW = cos * x_HW + sin * y_HW
    across_HW = cos * y_HW - sin * x_HW + bend_HW
    row_HW = np.floor(across_HW / row_height).astype(np.int32)
    shift_HW = rng.random(_ROW_STARTS, dtype=np.float32)[row_HW & (_ROW_STARTS - 1)]
    column_HW = np.floor(along_HW / length + shift_HW).astype(np.int32)
    middle_HW = (column_HW + 0.5 - shift_HW) * length
    across_middle_HW = (row_HW + 0.5) * row_height - bend_HW
    last = len(image_HWC) - 1
    from_x_HW = np.clip(cos * middle_HW - sin * across_middle_HW, 0, last).astype(np.int32)
    from_y_HW = np.clip(sin * middle_HW + cos * across_middle_HW, 0, last).astype(np.int32)
    dab_HW = (row_HW * _DAB_STRIDE + column_HW) & (_DAB_LOADS - 1)
    load_HW = rng.normal(0, rough, _DAB_LOADS).astype(np.float32)[dab_HW]
    ridge_HW = (row_HW + 0.5 - across_HW / row_height) * rough  # paint is thicker on one edge
    painted_HWC: Floats = image_HWC[from_y_HW, from_x_HW] + (load_HW + ridge_HW)[..., None]
    return painted_HWC


def _surface(image_HWC: Floats, rng: Random) -> Floats:
    """Adds the texture of the surface: smooth board, coarse canvas or grainy paper."""
    kind = rng.integers(3)
    side = len(image_HWC)
    if kind == 0:
        return image_HWC
    if kind == 1:
        x_HW, y_HW = _grid(side)
        weave_HW = ((x_HW // 2 + y_HW // 2) % 2).astype(np.float32)
        return image_HWC * (1 - 0.12 * weave_HW)[..., None]
    return image_HWC + 10 * rng.standard_normal((side, side, 1), dtype=np.float32)


def _frame(picture: Image.Image, rng: Random) -> Image.Image:
    """Shows the picture bare, in a mat, as an oval or as a triptych."""
    side = picture.width
    wall = Image.new("RGB", picture.size, [(244, 242, 238), (24, 23, 23)][rng.integers(2)])
    mask = Image.new("L", picture.size, 0)
    draw = ImageDraw.Draw(mask)
    edge = 0.14 * side
    form = rng.integers(4)
    if form == 0:
        return picture
    if form == 1:
        draw.rectangle((edge, edge, side - edge, side - edge), fill=255)
    elif form == 2:
        draw.ellipse((4, 4, side - 4, side - 4), fill=255)
    else:
        for panel in range(3):
            left = panel * side * 0.345
            draw.rectangle((left, edge / 2, left + side * 0.31, side - edge / 2), fill=255)
    wall.paste(picture, mask=mask)
    return wall


def paint(style_T: Floats, artist: Artist, subject: str, side: int, rng: Random) -> bytes:
    """One picture as JPEG bytes.

    Args:
        style_T: (T,) style of the work.
        artist: decides pigments and strokes.
        subject: a key of `SUBJECTS`.
        side: height and width in pixels.
        rng: decides everything else.
    """
    _, broad, upright = np.sin(style_T * math.pi / 2)
    tones = _tones(style_T, artist, rng)
    canvas = Image.new("RGB", (side, side), tones[0])
    SUBJECTS[subject](ImageDraw.Draw(canvas), rng, side, tones)
    image_HWC: Floats = np.asarray(canvas, np.float32)

    x_HW, y_HW = _grid(side)
    light_HW = (x_HW * rng.normal() + y_HW * rng.normal()) / side * 25  # falls from one corner
    image_HWC = image_HWC + light_HW[..., None].astype(np.float32)
    wave = rng.uniform(2, 6, 2) / side
    phase_HW = x_HW * wave[0] + y_HW * wave[1] + rng.uniform(0, 6.28)
    bend_HW = (artist.curl * side * np.sin(phase_HW)).astype(np.float32)
    angle = artist.lean * (1 + upright) / 2 * math.pi / 2
    row_height = side / 176 * 3.0 * 2.3**broad  # 1.3 to 7 pixels of a picture 176 wide
    painted_HWC = _repaint_in_dabs(image_HWC, angle, row_height, bend_HW, 22, rng)
    image_HWC = 0.65 * painted_HWC + 0.35 * image_HWC

    gamma = np.float32(rng.uniform(0.6, 1.6))
    image_HWC = 255 * (np.clip(image_HWC, 1, 255) / np.float32(255)) ** gamma
    image_HWC = _surface(image_HWC, rng)
    picture = _frame(Image.fromarray(np.clip(image_HWC, 0, 255).astype(np.uint8)), rng)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=88)
    return stored.getvalue()
