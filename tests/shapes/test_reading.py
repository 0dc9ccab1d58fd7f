"""The exact reader on drawn pictures, damaged ones, planted errors, and pictures that show no shapes."""

from collections.abc import Callable
from random import Random

import numpy as np
import pytest
from PIL import Image

from benchmarks.shapes_reader import (
    Patches,
    compressed,
    looks,
    noisy,
    planted,
    scenes,
    shifted,
    softened,
)
from data_prep.emoji import ASSETS
from ldm import UserError
from ldm.shapes.reading import read
from ldm.shapes.scene import COLOURS, RADII, SHAPES, Scene, Thing, draw

PLAIN = ((242.0, 240.0, 244.0), (0.0,) * 3, (0.0,) * 3)


@pytest.fixture(scope="module")
def patches() -> Patches:
    """A linear autoencoder of 28 dB."""
    return Patches(8, decibels=28)


def read_as(picture: np.ndarray) -> list[tuple[str, str, str]] | None:
    """Shapes, colours and sizes; None where the picture is unreadable."""
    things = read(picture).things
    return None if things is None else looks(things)


def share_right(change: Callable[[np.ndarray], np.ndarray], *, count: int, side: int = 64) -> float:
    """Share of scenes of all splits of which the reader finds every shape, colour and size."""
    drawn = scenes(count, seed="reading")
    return (
        sum(read_as(change(draw(scene, side=side))) == looks(scene.things) for _, scene, _ in drawn) / count
    )


def test_drawn_pictures_are_read_without_a_mistake() -> None:
    assert share_right(lambda picture: picture, count=60) == 1


@pytest.mark.parametrize("side", [65, 96, 127, 128, 200])
def test_larger_pictures_too(side: int) -> None:
    assert share_right(lambda picture: picture, count=10, side=side) == 1


@pytest.mark.parametrize("damage", [compressed(60), compressed(25), noisy, shifted, softened])
def test_damaged_pictures_are_read(damage: Callable[[np.ndarray], np.ndarray]) -> None:
    assert share_right(damage, count=60) >= 0.98  # benchmarks.shapes_reader holds 99 % of thousands


def test_pictures_of_a_linear_autoencoder_of_28_decibels_are_read(patches: Patches) -> None:
    assert share_right(patches, count=60) >= 0.98
    drawn = [draw(scene).astype(float) for _, scene, _ in scenes(60, seed="reading")]
    lost = np.mean([np.square(picture - patches(picture.astype(np.uint8))).mean() for picture in drawn])
    assert 27 < 10 * np.log10(255**2 / lost) < 29.5  # of other pictures than those it was fitted to


def test_planted_errors_are_found(patches: Patches) -> None:
    kinds = set()
    for k, (_, scene, _) in enumerate(scenes(20, seed="planted")):
        for error, wrong in planted(scene, Random(f"error {k}")).items():
            kinds.add(error)
            for damage in (lambda picture: picture, softened, patches):
                assert read_as(damage(draw(wrong))) != looks(scene.things), (error, k)
    assert len(kinds) == 5


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
        assert read_as(compressed(60)(draw(scene))) == [("star", colour, "small")]


@pytest.mark.parametrize("shape", ["circle", "square", "triangle", "star", "diamond", "cross"])
@pytest.mark.parametrize("around", ["ring", "frame"])
def test_a_shape_inside_another_is_read_where_soft_edges_touch(shape: str, around: str) -> None:
    inner = Thing(shape=shape, colour="red", size="small", x=0.5, y=0.5)
    outer = Thing(shape=around, colour="purple", size="large", x=0.5, y=0.5)
    picture = softened(draw(Scene(things=(outer, inner), corners=PLAIN)))
    assert read_as(picture) == looks((outer, inner))


def test_a_shape_of_the_same_colour_that_touches_another_is_not_passed_over() -> None:
    large = Thing(shape="circle", colour="blue", size="large", x=0.4, y=0.5)
    for x in (0.4 + 14 / 64, 0.4 + 15 / 64, 0.4 + 16 / 64):
        small = Thing(shape="circle", colour="blue", size="small", x=x, y=0.5)
        assert read_as(draw(Scene(things=(large, small), corners=PLAIN))) != looks((large,))


@pytest.mark.parametrize("colour", [(128, 128, 128), (120, 70, 30), (160, 255, 60)])
def test_a_shape_in_none_of_the_colours_is_unreadable(colour: tuple[int, int, int]) -> None:
    things = tuple(Thing(shape="square", colour="red", size="large", x=x, y=0.5) for x in (0.25, 0.75))
    picture = draw(Scene(things=things, corners=PLAIN))
    picture[:, 32:][(picture[:, 32:] == COLOURS["red"]).all(axis=-1)] = colour
    assert read(picture).things is None


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
