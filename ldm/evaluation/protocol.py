"""What was measured, as an object: numbers may be ranked where the hashes of their protocols are equal."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ldm import UserError
from ldm.evaluation.captions import CaptionSet
from ldm.metrics.features import FeatureIdentity
from ldm.randomness.seeds import check_seed

GENERATED = ("generation", "batch_size", "seed_base", "seeds")  # fields that say how pictures are made


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a number depends on besides the model.

    Beside a number stands its floor: N real pictures, drawn by `caption_seed`, against N others, N as many as
    were generated. Where N is more than half of the real pictures, both sides are halves of them, and the
    floor is that of fewer pictures: higher for a measure that few pictures bias. `floor_images` tells N.

    Attributes:
        name: of the config that it came from.
        sets: the caption sets, each measured by itself, with the sha256 of their captions.
        caption_seed: draws the captions.
        size: side of the pictures in pixels, to which pictures of another size are brought.
        resize: how they are.
        data: sha256 of the data set: captions and reference pictures.
        reference: sha256 of what the reference's features come from: pictures, transform, networks.
        splits: splits whose pictures are "all real pictures".
        held_out: split whose pictures the autoencoder is measured on; null where there is none.
        features: feature networks, their weights, input sizes, resize modes and rounding.
        distances: of pairs of pictures, that the autoencoder's round trip is measured by.
        measures: what the sets name, with all settings.
        generation: the generator's settings, such as its sampler, and `nfe`, network evaluations a picture;
            null where nobody knows, as of a folder's pictures. In results they stand among the other fields.
        batch_size: pictures generated and looked at together. Sums are rounded by it, so that numbers under
            other batch sizes differ by about 1e-5 of their value.
        seed_base: the first picture's seed; the others follow one by one.
        seeds: how many times each set is drawn, every time with seeds of its own.
    """

    name: str
    sets: tuple[CaptionSet, ...]
    caption_seed: int
    size: int
    resize: str
    data: str
    reference: str
    splits: tuple[str, ...]
    held_out: str | None
    features: tuple[FeatureIdentity, ...]
    generation: Mapping[str, Any]
    distances: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()
    batch_size: int = 16
    seed_base: int = 0
    seeds: int = 1

    def __post_init__(self) -> None:
        names = [each.name for each in self.sets]
        if not names or len(set(names)) < len(names):
            raise UserError(f"a protocol needs caption sets with names of their own, got {names}")
        check_seed(self.seed_base, "seed_base")
        check_seed(self.caption_seed, "caption_seed")
        for name, least in (("seeds", 1), ("batch_size", 1), ("size", 8)):
            if getattr(self, name) < least:
                raise UserError(f"protocol.{name}={getattr(self, name)} must be at least {least}")
        if taken := sorted(self.generation.keys() & {each.name for each in fields(self)}):
            raise UserError(
                f"a generator's setting can't be called {taken[0]!r}: a protocol has such a field"
            )

    @classmethod
    def of(cls, spec: Mapping[str, Any], **identities: Any) -> "Protocol":
        """The protocol of a config node; what the node can't know comes beside it.

        Raises:
            UserError: a key that is unknown or missing.
        """
        try:
            return cls(**{**spec, "sets": caption_sets(spec), "splits": tuple(spec["splits"]), **identities})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"protocol {spec.get('name')!r} has a key that is unknown or missing: {error}"
            ) from error

    @property
    def nfe(self) -> int | None:
        """Network evaluations a picture; None where nobody knows."""
        return self.generation.get("nfe")

    @property
    def record(self) -> dict[str, Any]:
        """All fields as plain data, the generator's settings among them."""
        own = asdict(self)
        settings = own.pop("generation")
        return own | settings

    @property
    def hash(self) -> str:
        """sha256 over every field."""
        return _hash(self.record)

    @property
    def ruler(self) -> str:
        """sha256 over the fields that say how pictures are measured, not how they are generated.

        A sweep over samplers, and pictures of another system, share it with the protocol that they came from:
        their numbers may stand in one figure, which names what differs.
        """
        return _hash({name: value for name, value in asdict(self).items() if name not in GENERATED})


def caption_sets(spec: Mapping[str, Any]) -> tuple[CaptionSet, ...]:
    """The caption sets of a protocol's config node.

    Raises:
        UserError: a key that is unknown or missing.
    """
    try:
        return tuple(CaptionSet(**one) for one in spec["sets"])
    except (TypeError, KeyError) as error:
        raise UserError(
            f"protocol {spec.get('name')!r} has a key that is unknown or missing: {error}"
        ) from error


def describe(node: Mapping[str, Any]) -> str:
    """A config node as one line for the protocol: `cfg(scale=3.0)`, however the yaml was written.

    Weights are told by their hash, where it isn't the published one, and not by the place where they lie.
    """
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    if "weights" in settings:
        settings = {key: value for key, value in settings.items() if key != "weights" and value is not None}
    inner = ", ".join(f"{key}={_value(settings[key])}" for key in sorted(settings))
    name = str(node["_target_"]).rpartition(".")[2]
    return f"{name}({inner})" if inner else name


def describe_measures(sets: Iterable[CaptionSet], nodes: Mapping[str, Any]) -> tuple[str, ...]:
    """The measures that sets name, a line each.

    Args:
        nodes: config of every measure by its name.
    """
    names = sorted({name for each in sets for name in each.metrics if name in nodes})
    return tuple(f"{name}: {describe(nodes[name])}" for name in names)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return describe(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
