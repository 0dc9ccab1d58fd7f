"""What an evaluation finds: numbers with what they must be read beside, and pictures to look at."""

from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with what it must be read beside.

    Attributes:
        set: caption set that it was measured on, or "autoencoder".
        value: mean over the seeds.
        images: how many pictures it was measured on, for each seed.
        sd: standard deviation over the seeds; null for one.
        seeds: how many times the set was drawn.
        few: whether these are fewer pictures than the measure wants.
        foreign: whether its reference is a file that doesn't tell how its pictures were prepared.
        floor, ceiling, real: the same measure of real pictures against as many others, of the autoencoder's
            round trip, and of the right real pictures, or of as many where nobody knows which are right; null
            where it says nothing.
        nfe, seconds, params: network evaluations a picture, of drawing and looking at all pictures, and
            parameters of the denoiser; null where they aren't known.
        protocol: hash of the protocol; rows with different ones are not ranked.
        reading: what the number is and which direction is better; it goes once into a document, by metric.
    """

    set: str
    metric: str
    value: float
    images: int
    sd: float | None = None
    seeds: int = 1
    few: bool = False
    foreign: bool = False
    floor: float | None = None
    ceiling: float | None = None
    real: float | None = None
    nfe: int | None = None
    seconds: float | None = None
    params: int | None = None
    protocol: str | None = None
    reading: str = ""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A caption with its pictures, for people to look at; no right one where it is not among the real."""

    prompt: str
    generated: UInt8[Tensor, "s 3 h w"]
    nearest: UInt8[Tensor, "3 h w"]
    right: UInt8[Tensor, "3 h w"] | None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A generated picture beside the real one that is nearest to it.

    Attributes:
        split: of the real one.
        distance: between them, Euclidean distance of unit features.
    """

    prompt: str
    generated: UInt8[Tensor, "3 h w"]
    real: UInt8[Tensor, "3 h w"]
    split: str
    distance: float


@dataclass(frozen=True, kw_only=True)
class Closest:
    """The pictures of a set, of its first seed, that are nearest to real ones.

    Attributes:
        features: that distances are taken in.
        quantile, limit: of the real pictures' distances to their nearest others; below the limit is a copy.
        copied: how many pictures are.
        images: of how many.
        pairs: the nearest few, the nearest first.
    """

    features: str
    quantile: float
    limit: float
    copied: int
    images: int
    pairs: list[Pair]


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was measured on one caption set.

    Attributes:
        images: pictures for each seed.
        seeds: first and last of all pictures.
        repeats: how many times the set was drawn.
        seconds: of drawing and looking, all of them together.
        floor_images: real pictures on each side of the floor; 0 where there is none.
        closest: where memorisation was measured, the pictures to look at.
        skipped: metrics that lack a network, or real pictures.
    """

    name: str
    rows: list[Row]
    shown: list[Shown]
    images: int
    seeds: tuple[int, int]
    repeats: int
    seconds: float
    floor_images: int = 0
    closest: Closest | None = None
    skipped: list[str] = field(default_factory=list)
