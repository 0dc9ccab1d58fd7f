"""Whether pictures of shapes show what their captions say, read exactly: no network judges."""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from scipy.stats import binomtest
from torch import Tensor

from ldm import UserError
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.mmap_tables import blocks
from ldm.metrics.picture_metric import PromptMetric
from ldm.shapes.reading import MOST_THINGS, read
from ldm.shapes.scene import COLOURS, RADII, SHAPES, Thing
from ldm.shapes.sentences import Claim, judge, understood

THING = 5  # numbers of a thing: shape, colour, size, x, y
LETTERS = 512  # characters of a caption; the longest that the grammar knows has about half as many
NOTHING = -1  # in place of a number that isn't there
SIZES = tuple(RADII)
PARTS = ("count", "colours", "shapes", "relations", "everything")
CONFIDENCE = 0.95


class ShapesReader:
    """The features `shapes_image`, what a picture shows, and `shapes_text`, what a caption says, in numbers.

    A picture is brought to no other size: the reader resolves sides of 64 to 1,024 pixels.
    """

    dims: ClassVar[Mapping[str, int]] = {"shapes_image": MOST_THINGS * THING}
    identity: ClassVar[FeatureIdentity] = FeatureIdentity(
        name="shapes", sha256="no weights, second reader", size=0, resize="none"
    )

    def to(self, device: torch.device) -> "ShapesReader":
        """Returns itself: it has no weights to move."""
        return self

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b 40"]]:
        """A row a picture; one that is unreadable has no thing."""
        pictures = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return {"shapes_image": torch.tensor([row_of_things(read(picture).things) for picture in pictures])}

    def read(self, texts: Sequence[str]) -> Float[Tensor, "b 512"]:
        """A row per caption, its characters; UserError for a caption that the grammar doesn't know."""
        return torch.tensor([row_of_caption(text) for text in texts])


def row_of_things(things: Sequence[Thing] | None) -> list[float]:
    """The numbers of at most `MOST_THINGS` things, one after the other."""
    row = [
        number
        for each in things or ()
        for number in (
            SHAPES.index(each.shape), [*COLOURS].index(each.colour), SIZES.index(each.size), each.x, each.y,
        )
    ]  # fmt: skip
    return [float(number) for number in row] + [float(NOTHING)] * (MOST_THINGS * THING - len(row))


def things_of(row: Sequence[float]) -> list[Thing] | None:
    """The things in a row; None where the picture was unreadable."""
    parts = [row[k : k + THING] for k in range(0, len(row), THING) if row[k] != NOTHING]
    colours = [*COLOURS]
    return [
        Thing(shape=SHAPES[int(s)], colour=colours[int(c)], size=SIZES[int(z)], x=x, y=y)
        for s, c, z, x, y in parts
    ] or None


def row_of_caption(text: str) -> list[float]:
    """The characters of a caption as numbers, filled up with blanks; UserError as `understood` raises it."""
    understood(text)
    return [float(ord(character)) for character in " ".join(text.split()).ljust(LETTERS)]


def claim_of(row: Sequence[float]) -> Claim:
    """The claim of the caption in a row."""
    return understood("".join(chr(int(number)) for number in row))


class Composition(PromptMetric):
    """Shares of pictures with the right count, colours, shapes, relations, and all of it: `everything`.

    Beside each share, `composition_<part>_low` and `_high` bound its Wilson interval at 95 %, which knows the
    number of pictures and nothing of the training. `composition_chance` is the share of `everything` when
    each picture is held against the captions of other pictures. The metric is blind to everything but
    shapes: a beautiful photograph is unreadable.

    Args:
        features: of pictures, as `ShapesReader` gives them; those of captions have `_text` for `_image`.
        shifts: how many other captions each picture is held against for the chance level.
    """

    reading = "share of pictures that show what the caption says, read exactly; higher is better"
    directions: ClassVar[Mapping[str, bool | None]] = {
        **dict.fromkeys(("_low", "_high", "_chance")),  # of an interval, and a yardstick
        "_unreadable": False,
    }

    def __init__(self, *, features: str = "shapes_image", shifts: int = 8) -> None:
        super().__init__(pictures=features, prompts=features.replace("_image", "_text"))
        if shifts < 1:
            raise UserError(f"{shifts=} of the chance level must be at least 1")
        self.shifts = shifts

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Refuses a prompt with a word that the grammar doesn't know, such as another shape or relation."""
        for text in prompts:
            understood(text)

    def compute(self) -> dict[str, Tensor]:
        """All shares, their intervals and the chance level."""
        pictures, prompts, captions = self.pairs()
        shown = [things_of(row) for rows in blocks(pictures) for row in rows.tolist()]
        said = [claim_of(row) for rows in blocks(prompts) for row in rows.tolist()]
        verdicts = [judge(claim, things) for claim, things in zip(said, shown, strict=True)]
        found = dict[str, float | Tensor]()
        for part in PARTS:
            name, hits = f"composition_{part}", [getattr(verdict, part) for verdict in verdicts]
            found |= {name: self.mean(name, torch.tensor(hits), captions), **interval(name, hits)}
        name, unreadable = "composition_unreadable", [things is None for things in shown]
        found[name] = self.mean(name, torch.tensor(unreadable), captions)
        found["composition_chance"] = chance(said, shown, shifts=self.shifts)
        return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in found.items()}


def interval(name: str, hits: Sequence[bool]) -> dict[str, float]:
    """The Wilson interval of a share (Wilson 1927)."""
    bounds = binomtest(sum(hits), len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return {f"{name}_low": bounds.low, f"{name}_high": bounds.high}


def chance(said: Sequence[Claim], shown: Sequence[list[Thing] | None], *, shifts: int) -> float:
    """Share of pictures that fulfil the captions of pictures some places on, over several distances."""
    count = len(said)
    steps = {1 + k * (count - 1) // shifts for k in range(shifts)} if count > 1 else {0}
    verdicts = [judge(said[(k + step) % count], shown[k]) for step in steps for k in range(count)]
    return sum(verdict.everything for verdict in verdicts) / len(verdicts)
