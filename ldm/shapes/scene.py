"""Scenes of coloured shapes, and how they are drawn.

Pillow draws each shape once, four times as large as it will be; everything else is averaging and blending.
A shape's place is a multiple of a quarter pixel, so the reader can hold a picture against the same stencils.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from ldm import UserError

Shape = Literal["circle", "square", "triangle", "star", "diamond", "cross", "ring", "frame"]
Size = Literal["small", "large"]
Relation = Literal["left", "right", "above", "below", "inside"]

COLOURS = {  # each lighter than any dark background, and darker than any light one, by 40 levels or more
    "red": (225, 45, 45),
    "orange": (250, 130, 10),
    "yellow": (230, 200, 0),
    "green": (40, 170, 65),
    "cyan": (0, 190, 215),
    "blue": (50, 100, 245),
    "purple": (160, 60, 215),
    "pink": (245, 85, 175),
}
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "frame")
HOLLOW: tuple[Shape, ...] = ("ring", "frame")  # something can be inside these
RADII: dict[Size, float] = {"small": 5.0, "large": 11.0}  # in pixels of a picture of UNIT
UNIT = 64
REACHES = {"square": 1.17, "frame": 1.36}  # how far corners are from the centre, in radii
MIN_SIDE, MAX_SIDE = 64, 1024  # below, a small star and a small diamond look alike
FINE = 4  # places in a pixel, along each axis


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One shape in a scene."""

    shape: Shape
    colour: str
    size: Size
    x: float  # its centre as a share of the side, from the left
    y: float  # the same from the top


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Shapes before a background."""

    things: tuple[Thing, ...]
    # the background's RGB in the top left corner, and its change to the right and downwards
    corners: tuple[tuple[float, float, float], ...]


def reach(shape: Shape, size: Size) -> float:
    """How far a shape's furthest point is from its centre, in pixels of a picture of UNIT."""
    return REACHES.get(shape, 1.12) * RADII[size]


def check_side(side: int) -> None:
    """Refuses a picture size that the reader can't resolve.

    Raises UserError where the side is outside [MIN_SIDE, MAX_SIDE].
    """
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise UserError(f"size={side} must lie between {MIN_SIDE} and {MAX_SIDE}: the reader needs pixels")


def draw(scene: Scene, *, side: int = UNIT) -> UInt8[np.ndarray, "side side 3"]:
    """The picture of a scene.

    Args:
        side: of the picture, in pixels.
    """
    picture = background(scene.corners, side=side)
    for thing in scene.things:
        colour = np.array(COLOURS[thing.colour], dtype=np.float32)
        stencil, top, left = placed(thing.shape, thing.size, thing.x * side, thing.y * side, side=side)
        height, width = stencil.shape
        window = picture[top : top + height, left : left + width]
        window += stencil[..., None] * (colour - window)
    return picture.round().astype(np.uint8)


def background(corners: Iterable[Iterable[float]], *, side: int) -> Float[np.ndarray, "side side 3"]:
    """A plane of colour: a corner's, and its change to the right and downwards."""
    start, across, down = (np.array(each, dtype=np.float32) for each in corners)
    steps = np.linspace(0, 1, side, dtype=np.float32)
    return start + steps[None, :, None] * across + steps[:, None, None] * down


def placed(
    shape: Shape, size: Size, x: float, y: float, *, side: int
) -> tuple[Float[np.ndarray, "s s"], int, int]:
    """The stencil of a shape whose centre is nearest to a place in pixels, and its first row and column."""
    column, row = round(x * FINE), round(y * FINE)
    stencil = stencils(shape, size, side)[row % FINE][column % FINE]
    half = len(stencil) // 2
    return stencil, row // FINE - half, column // FINE - half


@cache
def stencils(shape: Shape, size: Size, side: int) -> list[list[Float[np.ndarray, "s s"]]]:
    """The share of each pixel that a shape covers, by the quarter pixels that it is lower and further right.

    The centre lies at the corner that the four middle pixels share, moved by those quarters.
    """
    radius = RADII[size] * side / UNIT
    half = int(np.ceil(reach(shape, size) * side / UNIT)) + 1  # 1 more: a roll by 3 / 4 pixel must not wrap
    mask = Image.new("L", (2 * half * FINE,) * 2)
    _outline(ImageDraw.Draw(mask), shape, radius * FINE, half * FINE)
    whole = np.asarray(mask, dtype=np.float32) / 255
    return [
        [_averaged(np.roll(whole, (down, right), axis=(0, 1))) for right in range(FINE)]
        for down in range(FINE)
    ]


def _averaged(mask: Float[np.ndarray, "h h"]) -> Float[np.ndarray, "s s"]:
    side = len(mask) // FINE
    return mask.reshape(side, FINE, side, FINE).mean(axis=(1, 3))


def _outline(pen: ImageDraw.ImageDraw, shape: Shape, radius: float, centre: float) -> None:
    """Draws a shape in white around a centre; proportions are chosen for equal look, not equal area."""

    def box(reach: float) -> tuple[float, float, float, float]:
        """Corners of the square whose sides lie so many radii from the centre."""
        # - 1: Pillow's boxes include their last pixel
        return (centre - reach * radius, centre - reach * radius) + (centre + reach * radius - 1,) * 2

    def polygon(points: Iterable[tuple[float, float]]) -> None:
        """Fills the polygon with these corners, given in radii from the centre."""
        pen.polygon([(centre + radius * x - 0.5, centre + radius * y - 0.5) for x, y in points], fill=255)

    if shape == "circle":
        pen.ellipse(box(0.95), fill=255)
    elif shape == "square":
        pen.rectangle(box(0.82), fill=255)
    elif shape == "triangle":
        polygon([(0, -1.05), (0.88, 0.68), (-0.88, 0.68)])
    elif shape == "star":
        turns = [(k * pi / 5, 1.1 if k % 2 == 0 else 0.45) for k in range(10)]
        polygon([(reach * sin(turn), -reach * cos(turn)) for turn, reach in turns])
    elif shape == "diamond":
        polygon([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])
    elif shape == "cross":
        pen.rectangle(
            (centre - radius, centre - 0.33 * radius, centre + radius - 1, centre + 0.33 * radius - 1), 255
        )
        pen.rectangle(
            (centre - 0.33 * radius, centre - radius, centre + 0.33 * radius - 1, centre + radius - 1), 255
        )
    elif shape == "ring":
        pen.ellipse(box(1.0), fill=255)
        pen.ellipse(box(0.66), fill=0)
    else:
        pen.rectangle(box(0.95), fill=255)
        pen.rectangle(box(0.62), fill=0)


def holds(relation: Relation, ours: Iterable[Thing], theirs: Iterable[Thing]) -> bool:
    """Whether each thing of ours stands in a relation to each of theirs, by their centres."""
    return all(_holds(relation, one, other) for one in ours for other in theirs)


def _holds(relation: Relation, one: Thing, other: Thing) -> bool:
    across, down = one.x - other.x, one.y - other.y
    if relation == "inside":
        within = 0.5 * RADII["large"] / UNIT
        return (
            other.shape in HOLLOW
            and (one.size, other.size) == ("small", "large")
            and (max(abs(across), abs(down)) < within)
        )
    return {"left": across < 0, "right": across > 0, "above": down < 0, "below": down > 0}[relation]
