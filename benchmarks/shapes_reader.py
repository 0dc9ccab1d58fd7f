"""How often the exact reader of shapes is right: drawn pictures, damaged ones, and pictures without shapes.

    python -m benchmarks.shapes_reader [--count 3000] [--size 64] [--bundle BUNDLE]

A picture counts as right when every shape, colour and size in it is found and nothing else, and each of its
captions is judged true. One with a planted error counts as right when it is not read as if it had none; one
without shapes when it is unreadable. `--bundle` adds a round trip through the autoencoder, or the tokenizer
of pictures, of a bundle or run.
"""

import argparse
import io
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from data_prep.emoji import ASSETS, COLUMNS, SIDE
from data_prep.shapes import SPLITS, HeldOut, composed, long_sentences
from ldm.checkpoints.bundle import Bundle
from ldm.codec import to_float, to_uint8
from ldm.shapes.reading import read
from ldm.shapes.scene import COLOURS, SHAPES, UNIT, Scene, Thing, draw, reach
from ldm.shapes.sentences import Claim, judge, sentences, understood

Picture = np.ndarray  # uint8, side side 3
Damage = Callable[[Picture], Picture]
PLANTED = ("as drawn", "linear autoencoder of 8x8 patches")  # what happens to pictures with an error
FITTED = 600  # pictures that the linear autoencoders are fitted to


def compressed(quality: int) -> Damage:
    """JPEG of a quality, which halves the resolution of colour."""

    def damage(picture: Picture) -> Picture:
        """After JPEG."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=quality)
        return np.asarray(Image.open(buffer).convert("RGB"))

    return damage


def noisy(picture: Picture) -> Picture:
    """With Gaussian noise of 8 levels."""
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return levels(picture + noise)


def shifted(picture: Picture) -> Picture:
    """A pixel further down and to the right."""
    return np.pad(picture, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1]


def softened(picture: Picture) -> Picture:
    """After a Gaussian filter of 0.9 pixels."""
    return levels(ndimage.gaussian_filter(picture.astype(float), (0.9, 0.9, 0)))


def levels(values: np.ndarray) -> Picture:
    """The nearest uint8."""
    return values.round().clip(0, 255).astype(np.uint8)


class Patches:
    """A linear autoencoder of square patches: their mean and the principal components of drawn scenes.

    Args:
        side: of a patch, in pixels; divides that of the pictures.
        decibels: of the pictures it is fitted to; it has the fewest components that reach them.
        size: of these pictures, in pixels.
    """

    def __init__(self, side: int, *, decibels: float, size: int = UNIT) -> None:
        self.side = side
        drawn = (draw(scene, side=size) for _, scene, _ in scenes(FITTED, seed="patches"))
        patches = np.concatenate([self._cut(picture) for picture in drawn])
        self.mean = patches.mean(axis=0)
        variances, directions = np.linalg.eigh(np.cov((patches - self.mean).T))  # smallest first
        lost = np.concatenate([[0.0], variances.cumsum()]) / len(variances)  # by components left out
        left_out = int(np.searchsorted(lost, 255**2 / 10 ** (decibels / 10))) - 1
        self.components = directions[:, left_out:]

    def __call__(self, picture: Picture) -> Picture:
        """A picture from the components of its patches."""
        coded = (self._cut(picture) - self.mean) @ self.components
        size, n = len(picture), len(picture) // self.side
        patches = (coded @ self.components.T + self.mean).reshape(n, n, self.side, self.side, 3)
        return levels(patches.swapaxes(1, 2).reshape(size, size, 3))

    def _cut(self, picture: Picture) -> np.ndarray:
        """A row a patch."""
        n = len(picture) // self.side
        cut = picture.reshape(n, self.side, n, self.side, 3).swapaxes(1, 2)
        return cut.reshape(n * n, -1).astype(float)


class Reconstructing(Protocol):
    """An autoencoder, or a tokenizer of pictures."""

    def reconstruct(self, images: torch.Tensor, /) -> torch.Tensor:
        """Pictures in [-1, 1] (b 3 h w) after encoding and decoding."""
        ...


def of_bundle(path: str) -> Damage:
    """The round trip through the autoencoder or the tokenizer of pictures in a bundle or run."""
    bundle = Bundle.open(path)
    name = "autoencoder" if "autoencoder" in bundle.names else "image_tokenizer"
    net: Reconstructing = bundle.network(name).eval()

    @torch.no_grad()
    def damage(picture: Picture) -> Picture:
        """After the round trip."""
        images = to_float(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None])
        return to_uint8(net.reconstruct(images))[0].permute(1, 2, 0).numpy()

    return damage


def damages(size: int, bundle: str | None) -> dict[str, Damage]:
    """What happens to pictures, by name."""
    through = {} if bundle is None else {f"the autoencoder of {bundle}": of_bundle(bundle)}
    return {
        "as drawn": lambda picture: picture,
        "JPEG, quality 60": compressed(60),
        "noise of 8 levels": noisy,
        "a pixel to the right and down": shifted,
        "JPEG, quality 25": compressed(25),
        "softened by 0.9 pixels": softened,
        "linear autoencoder of 8x8 patches": Patches(8, decibels=28, size=size),
        "linear autoencoder of 16x16 patches": Patches(16, decibels=28, size=size),
    } | through


def scenes(count: int, *, seed: str = "benchmark") -> Iterator[tuple[Claim, Scene, list[str]]]:
    """Scenes of every split in turn, with their captions."""
    splits, held_out = ["train", *SPLITS], HeldOut.of(0)
    for k in range(count):
        split = splits[k % len(splits)]
        random = Random(f"{seed} {k}")
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


def planted(scene: Scene, random: Random) -> dict[str, Scene]:
    """The same scene with an error, by its name; those for which there is room."""
    k = random.randrange(len(scene.things))
    thing, rest = scene.things[k], scene.things[:k] + scene.things[k + 1 :]
    shape = random.choice([shape for shape in SHAPES if shape != thing.shape])
    colour = random.choice([colour for colour in COLOURS if colour != thing.colour])
    size = "small" if thing.size == "large" else "large"
    wrong: dict[str, tuple[Thing, ...]] = {
        "a shape removed": rest,
        "another colour": (*rest, replace(thing, colour=colour)),
        "another shape": (*rest, replace(thing, shape=shape)),
        "another size": (*rest, replace(thing, size=size)),
        "a small shape more": (*scene.things, *somewhere_free(scene, random)),
    }
    return {
        name: replace(scene, things=things)
        for name, things in wrong.items()
        if things and things != scene.things and all(map(is_inside, things))
    }


def somewhere_free(scene: Scene, random: Random) -> list[Thing]:
    """A small thing that keeps 3 pixels away from all others; none where 100 attempts find no place."""
    for _ in range(100):
        x, y = (round(random.uniform(0.15, 0.85) * 4 * UNIT) / (4 * UNIT) for _ in range(2))
        shape, colour = random.choice(SHAPES), random.choice([*COLOURS])
        thing = Thing(shape=shape, colour=colour, size="small", x=x, y=y)
        if all(distance(thing, other) > 3 for other in scene.things):
            return [thing]
    return []


def distance(one: Thing, other: Thing) -> float:
    """Pixels of a picture of `UNIT` between two things, at least."""
    apart = UNIT * np.hypot(one.x - other.x, one.y - other.y)
    return apart - reach(one.shape, one.size) - reach(other.shape, other.size)


def is_inside(thing: Thing) -> bool:
    """Whether all of a thing is in the picture."""
    far = (reach(thing.shape, thing.size) + 1) / UNIT
    return all(far <= place <= 1 - far for place in (thing.x, thing.y))


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


@dataclass
class Row:
    """Of pictures of one kind: how many there were, how many were right, how far they were from the drawn."""

    right: int = 0
    count: int = 0
    squares: float = 0.0  # sum over pictures of the mean squared difference, in levels

    def add(self, is_right: bool, squares: float = 0.0) -> None:
        """Counts a picture."""
        self.right, self.count, self.squares = self.right + is_right, self.count + 1, self.squares + squares

    def line(self, name: str) -> str:
        """Of a table."""
        decibels = f"{10 * np.log10(255**2 * self.count / self.squares):.1f}" if self.squares else ""
        return f"| {name} | {decibels} | {self.right:,} of {self.count:,} | {self.right / self.count:.2%} |"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=3000, help="scenes")
    parser.add_argument("--size", type=int, default=64, help="side in pixels")
    parser.add_argument("--bundle", help="bundle or run with an autoencoder or a tokenizer of pictures")
    asked = parser.parse_args()
    ways, rows, spent = damages(asked.size, asked.bundle), defaultdict[str, Row](Row), 0.0
    for k, (_, scene, captions) in enumerate(tqdm(scenes(asked.count), total=asked.count, unit="scene")):
        drawn = draw(scene, side=asked.size)
        for name, damage in ways.items():
            damaged, before = damage(drawn), time.process_time()
            right = is_right(damaged, scene, captions)
            spent += time.process_time() - before
            rows[name].add(right, float(np.square(damaged - drawn.astype(float)).mean()))
        random = Random(f"planted {k}")
        error, wrong = random.choice([*planted(scene, random).items()])
        for way in PLANTED:
            found = read(ways[way](draw(wrong, side=asked.size))).things
            rows[f"{error}: not read as before"].add(found is None or looks(found) != looks(scene.things))
    milliseconds = 1000 * spent / (asked.count * len(ways))
    for name, pictures in shapeless().items():
        for picture in pictures:
            rows[f"{name}: unreadable"].add(read(picture).things is None)
    print("| pictures | dB | right | share |\n| --- | ---: | ---: | ---: |")
    print("\n".join(row.line(name) for name, row in rows.items()))
    print(f"\n{milliseconds:.1f} ms of one core a picture, captions included, at {asked.size} px")


if __name__ == "__main__":
    main()
