"""The exact reader on drawn pictures, damaged ones, and pictures that show no shapes."""

import io
from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from PIL import Image

from data_prep.emoji import ASSETS
from data_prep.shapes import HeldOut, composed
from ldm import UserError
from ldm.shapes.reading import read
from ldm.shapes.scene import COLOURS, RADII, SHAPES, Scene, Thing, draw

HELD_OUT = HeldOut.of(0)
PLAIN = ((242.0, 240.0, 244.0), (0.0,) * 3, (0.0,) * 3)


def jpeg(picture: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def noisy(picture: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def shifted(picture: np.ndarray) -> np.ndarray:
    return np.pad(picture, ((1, 0), (0, 1), (0, 0)), mode="edge")[:-1, 1:]


def looks(things: tuple[Thing, ...] | None) -> list[tuple[str, str, str]] | None:
    return None if things is None else sorted((each.shape, each.colour, each.size) for each in things)


def share_right(change: Callable[[np.ndarray], np.ndarray], *, count: int, side: int = 64) -> float:
    """Share of scenes of which the reader finds every shape, colour and size."""
    right = 0
    for k in range(count):
        _, scene = composed(Random(f"reading {k}"), ("train", "held_out", "long")[k % 3], HELD_OUT)
        right += looks(read(change(draw(scene, side=side))).things) == looks(scene.things)
    return right / count


def test_drawn_pictures_are_read_without_a_mistake() -> None:
    assert share_right(lambda picture: picture, count=60) == 1


@pytest.mark.parametrize("side", [96, 128])
def test_larger_pictures_too(side: int) -> None:
    assert share_right(lambda picture: picture, count=10, side=side) == 1


@pytest.mark.parametrize("damage", [jpeg, noisy, shifted])
def test_damaged_pictures_are_read(damage: Callable[[np.ndarray], np.ndarray]) -> None:
    assert share_right(damage, count=60) >= 0.98  # benchmarks.shapes_reader holds 99 % of thousands


@pytest.mark.parametrize("shape", SHAPES)
def test_places_are_found_to_half_a_pixel(shape: str) -> None:
    for size in RADII:
        thing = Thing(shape=shape, colour="red", size=size, x=0.40625, y=0.55859375)
        found = read(draw(Scene(things=(thing,), corners=PLAIN))).things
        assert found is not None
        assert (found[0].shape, found[0].size) == (shape, size)
        assert abs(found[0].x - thing.x) * 64 <= 0.5
        assert abs(found[0].y - thing.y) * 64 <= 0.5


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_are_told_apart_on_light_and_dark(colour: str) -> None:
    for level in (14.0, 242.0):
        thing = Thing(shape="star", colour=colour, size="small", x=0.5, y=0.5)
        scene = Scene(things=(thing,), corners=((level,) * 3, (0.0,) * 3, (0.0,) * 3))
        assert looks(read(jpeg(draw(scene))).things) == [("star", colour, "small")]


def test_pictures_that_show_no_shapes_are_unreadable() -> None:
    random = np.random.default_rng(0)
    for picture in (
        random.integers(0, 256, (64, 64, 3)),
        np.full((64, 64, 3), 127),
        np.full((64, 64, 3), 242),
        np.zeros((64, 64, 3)),
        np.where(np.indices((64, 64)).sum(axis=0)[..., None] % 2, 255, 0) * np.ones(3),
    ):
        reading = read(picture.astype(np.uint8))
        assert reading.things is None
        assert reading.reason


def test_emoji_are_unreadable() -> None:
    with Image.open(ASSETS / "sheet.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    tiles = [
        pixels[64 * row : 64 * row + 64, 64 * k : 64 * k + 64] for row in range(0, 50, 7) for k in range(5)
    ]
    assert [read(tile).things for tile in tiles] == [None] * len(tiles)


def test_a_side_that_the_reader_cannot_resolve_is_refused() -> None:
    with pytest.raises(UserError, match="size=32 must lie between 64 and 1024"):
        read(np.zeros((32, 32, 3), dtype=np.uint8))
