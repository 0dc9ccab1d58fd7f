"""How often the exact reader of shapes is right: drawn pictures, damaged ones, and pictures without shapes.

    python -m benchmarks.shapes_reader [--count 3000] [--size 64]

A picture counts as right when every shape, colour and size in it is found and nothing else, and each of its
captions is judged true. One without shapes counts as right when it is unreadable.
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from random import Random

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.emoji import ASSETS, COLUMNS, SIDE
from data_prep.shapes import SPLITS, HeldOut, composed, long_sentences
from ldm.shapes.reading import read
from ldm.shapes.scene import Scene, Thing, draw
from ldm.shapes.sentences import Claim, judge, sentences, understood

Picture = np.ndarray  # uint8, side side 3


def compressed(picture: Picture) -> Picture:
    """After JPEG at quality 60, which halves the resolution of colour."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=60)
    return np.asarray(Image.open(buffer).convert("RGB"))


def noisy(picture: Picture) -> Picture:
    """With Gaussian noise of 8 levels."""
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def shifted(picture: Picture) -> Picture:
    """A pixel further down and to the right."""
    return np.pad(picture, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1]


DAMAGE: dict[str, Callable[[Picture], Picture]] = {
    "as drawn": lambda picture: picture,
    "JPEG, quality 60": compressed,
    "noise of 8 levels": noisy,
    "a pixel to the right and down": shifted,
}


def scenes(count: int) -> Iterator[tuple[Claim, Scene, list[str]]]:
    """Scenes of every split in turn, with their captions."""
    splits, held_out = ["train", *SPLITS], HeldOut.of(0)
    for k in range(count):
        split = splits[k % len(splits)]
        random = Random(f"benchmark {k}")
        claim, scene = composed(random, split, held_out)
        yield claim, scene, (long_sentences if split == "long" else sentences)(claim, random)


def is_right(picture: Picture, scene: Scene, captions: list[str]) -> bool:
    """Whether the reader finds the scene, and every caption true of it."""
    found = read(picture).things
    if found is None or looks(found) != looks(scene.things):
        return False
    return all(judge(understood(caption), found).everything for caption in captions)


def looks(things: tuple[Thing, ...]) -> list[tuple[str, str, str]]:
    """Shapes, colours and sizes, in order."""
    return sorted((thing.shape, thing.colour, thing.size) for thing in things)


def shapeless() -> dict[str, list[Picture]]:
    """Pictures that show none of the shapes."""
    random = np.random.default_rng(0)
    with Image.open(ASSETS / "sheet.webp") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    rows = pixels.shape[0] // SIDE
    tiles = (
        pixels[: rows * SIDE].reshape(rows, SIDE, COLUMNS, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    )
    return {
        "noise": [random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(256)],
        "one grey": [np.full((SIDE, SIDE, 3), level, dtype=np.uint8) for level in range(256)],
        "emoji": [tile for tile in tiles if len(np.unique(tile)) > 1],
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000, help="pictures of each kind")
    parser.add_argument("--size", type=int, default=64, help="side in pixels")
    asked = parser.parse_args()
    right, spent = dict.fromkeys(DAMAGE, 0), 0.0
    for _, scene, captions in tqdm(scenes(asked.count), total=asked.count, unit="scene"):
        picture = draw(scene, side=asked.size)
        for name, damage in DAMAGE.items():
            damaged, before = damage(picture), time.process_time()
            right[name] += is_right(damaged, scene, captions)
            spent += time.process_time() - before
    print("| pictures | right | of | share |\n| --- | ---: | ---: | ---: |")
    for name, number in right.items():
        print(f"| {name} | {number} | {asked.count} | {number / asked.count:.2%} |")
    for name, pictures in shapeless().items():
        number = sum(read(picture).things is None for picture in pictures)
        print(f"| {name}: unreadable | {number} | {len(pictures)} | {number / len(pictures):.2%} |")
    print(f"\n{1000 * spent / (asked.count * len(DAMAGE)):.1f} ms of one core a picture, at {asked.size} px")


if __name__ == "__main__":
    main()
