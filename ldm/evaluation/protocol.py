"""What was measured, as an object: numbers may be compared where the hashes of their protocols are equal."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from ldm.metrics.features import FeatureIdentity


class Caption(NamedTuple):
    """A caption drawn for measuring, and the picture that it belongs to.

    Attributes:
        row: the picture's number among all real pictures.
    """

    text: str
    key: str
    row: int


@dataclass(frozen=True, kw_only=True)
class CaptionSet:
    """Captions drawn from a split, how many pictures each gets, and what is measured on them.

    Attributes:
        captions: how many, drawn by seed, at most one a picture; null takes one of every picture.
        samples: pictures a caption, each with a seed of its own.
        metrics: names in the config's `metric`.
    """

    name: str
    split: str
    captions: int | None
    samples: int = 1
    metrics: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if self.samples < 1 or (self.captions is not None and self.captions < 1):
            raise ValueError(
                f"caption set {self.name!r}: captions={self.captions} and samples={self.samples} "
                f"must be at least 1"
            )

    def draw(
        self, keys: Sequence[str], texts: Sequence[Sequence[str]], *, seed: int, offset: int
    ) -> list[Caption]:
        """The captions, in the order of the draw: a larger draw begins with the smaller one.

        Pictures and captions are drawn by a hash of seed and key: the draw depends neither on the order of
        the pictures nor on a library's generator.

        Args:
            keys, texts: of the split's pictures.
            offset: number of the split's first picture among all real pictures.

        Raises:
            ValueError: the split has fewer pictures.
        """
        wanted = len(keys) if self.captions is None else self.captions
        if wanted > len(keys):
            raise ValueError(
                f"caption set {self.name!r} wants {wanted} captions, split {self.split!r} has {len(keys)} "
                f"pictures: ask for fewer, or for one of every picture with captions: null"
            )
        order = sorted(range(len(keys)), key=lambda number: _draw(seed, self.name, keys[number]))
        return [
            Caption(
                text=texts[number][_draw(seed, f"{self.name}/text", keys[number]) % len(texts[number])],
                key=keys[number],
                row=offset + number,
            )
            for number in order[:wanted]
        ]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a number depends on besides the model.

    Attributes:
        name: of the config that it came from.
        sets: the caption sets, each measured by itself.
        caption_seed: draws the captions.
        seed_base: the first picture's seed; the others follow one by one.
        size: side of the pictures in pixels.
        data: sha256 of the data set: captions and reference pictures.
        splits: splits whose pictures are "all real pictures".
        held_out: split whose pictures the autoencoder is measured on.
        sampler, guidance: name and settings.
        features: feature network, its weights, its input size and resize mode.
        precision: number format of the networks.
    """

    name: str
    sets: tuple[CaptionSet, ...]
    caption_seed: int
    seed_base: int
    size: int
    data: str
    splits: tuple[str, ...]
    held_out: str
    sampler: str
    guidance: str
    features: FeatureIdentity
    precision: str = "float32"

    def __post_init__(self) -> None:
        names = [each.name for each in self.sets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a protocol needs caption sets with names of their own, got {names}")
        if self.seed_base < 0:
            raise ValueError(f"seed_base={self.seed_base} must be at least 0")

    @classmethod
    def of(cls, spec: Mapping[str, Any], **identities: Any) -> "Protocol":
        """The protocol of a config node; what the node can't know comes beside it.

        Raises:
            ValueError: a key that is unknown or missing.
        """
        try:
            sets = tuple(CaptionSet(**one) for one in spec["sets"])
            return cls(**{**spec, "sets": sets, "splits": tuple(spec["splits"])}, **identities)
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"protocol {spec.get('name')!r} has a key that is unknown or missing: {error}"
            ) from error

    @property
    def hash(self) -> str:
        """sha256 over every field."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def describe(node: Mapping[str, Any]) -> str:
    """A config node as one line for the protocol: `cfg(scale=3.0)`, however the yaml was written."""
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    inner = ", ".join(f"{key}={_value(settings[key])}" for key in sorted(settings))
    name = str(node["_target_"]).rpartition(".")[2]
    return f"{name}({inner})" if inner else name


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return describe(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _draw(seed: int, stream: str, key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{stream}/{key}".encode(), digest_size=8).digest(), "little"
    )
