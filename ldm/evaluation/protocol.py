"""What is measured, as an object: numbers may be ranked where the hashes of their protocols are equal."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ldm import UserError
from ldm.checkpoints.provenance import config_hash
from ldm.data.texts import read_columns
from ldm.io.reading import hash_file
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.picture_metric import PictureMetric
from ldm.randomness.seeds import check_seed, key_of

ELSEWHERE = -1  # row of a picture whose right picture isn't in the reference set
GENERATED = ("generation", "batch_size", "seed_base", "seeds")  # fields that say how pictures are generated


class Caption(NamedTuple):
    """A caption that pictures are generated from."""

    text: str
    key: str  # of the picture that it belongs to
    row: int  # that picture's number in the reference set, or ELSEWHERE


class Request(NamedTuple):
    """One picture to generate."""

    prompt: str
    seed: int
    row: int  # number of the right picture in the reference set, or ELSEWHERE
    caption: int  # number in its set
    # of its file in a folder, without extension: <set>/<key>; the second picture of a key is <set>/<key>_1
    name: str


@dataclass(frozen=True, kw_only=True)
class CaptionSet:
    """Captions of a split, how many pictures each gets, and what is measured on them."""

    name: str
    split: str | None  # whose captions; None: those of the folder that is measured
    captions: int | None  # how many, chosen by seed; None: all
    # "picture" chooses pictures, and one caption of each; "caption" chooses among all captions, so that a
    # picture can come several times
    unit: Literal["picture", "caption"] = "picture"
    samples: int = 1  # pictures per caption, each with a seed of its own
    metrics: tuple[str, ...]  # names in the config's `metric`
    file: str | None = None  # a csv with the columns key and caption instead; once read, its sha256
    sha256: str | None = None  # of the captions, see `digest`: others are refused; None: any
    few: tuple[str, ...] = ()  # metrics that may be taken of fewer pictures than they want, with a label

    def __post_init__(self) -> None:
        for name in ("metrics", "few"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.samples < 1 or (self.captions is not None and self.captions < 1):
            raise UserError(
                f"caption set {self.name!r}: captions={self.captions} and samples={self.samples} "
                f"must be at least 1"
            )
        if self.unit not in ("picture", "caption"):
            raise UserError(f"caption set {self.name!r}: unit={self.unit!r} must be picture or caption")

    def choose(
        self, keys: Sequence[str], texts: Sequence[Sequence[str]], *, seed: int, offset: int
    ) -> list[Caption]:
        """The captions; a hash of seed and key decides, so that a larger set begins with the smaller one.

        Keys and texts are those of the split's pictures in any order, and the first of these has the number
        `offset` in the reference set. Raises UserError: the split has fewer pictures or captions.
        """
        if self.unit == "picture":
            order = sorted(range(len(keys)), key=lambda number: key_of(seed, self.name, keys[number]))
            stream = f"{self.name}/text"
            pairs = [(each, key_of(seed, stream, keys[each]) % len(texts[each])) for each in order]
        else:
            every = [(number, place) for number, own in enumerate(texts) for place in range(len(own))]
            pairs = sorted(every, key=lambda pair: key_of(seed, self.name, f"{keys[pair[0]]}/{pair[1]}"))
        wanted = len(pairs) if self.captions is None else self.captions
        if wanted > len(pairs):
            raise UserError(
                f"caption set {self.name!r} wants {wanted} captions, split {self.split!r} has {len(pairs)} "
                f"{self.unit}s: ask for fewer, or for all of them with captions: null"
            )
        return [Caption(texts[each][place], keys[each], offset + each) for each, place in pairs[:wanted]]

    def requests(self, captions: Sequence[Caption], *, seed_base: int) -> list[Request]:
        """`samples` pictures per caption, caption by caption; no two share a seed or a name."""
        requests: list[Request] = []
        seen: Counter[str] = Counter()
        for number, caption in enumerate(captions):
            for _ in range(self.samples):
                name, earlier = f"{self.name}/{caption.key}", seen[caption.key]
                seen[caption.key] += 1
                seed, name = seed_base + len(requests), f"{name}_{earlier}" if earlier else name
                requests.append(Request(caption.text, seed, caption.row, number, name))
        return requests

    def too_few(self, metrics: Mapping[str, PictureMetric], *, generated: int, real: int | None) -> set[str]:
        """Names of the metrics that have fewer pictures, generated or real (None: not known), than they want.

        Raises UserError: such a metric that `few` doesn't name.
        """
        found = set()
        for name, metric in metrics.items():
            count = generated if real is None or not metric.against_real else min(generated, real)
            if count >= metric.minimum_images:
                continue
            if name not in self.few:
                raise UserError(
                    f"caption set {self.name!r} has {count} pictures for {name!r}, which wants "
                    f"{metric.minimum_images}: take more, or name it in the set's few: [{name}] to have it "
                    f"with a label"
                )
            found.add(name)
        return found

    def check(self, captions: Sequence[Caption]) -> None:
        """Raises a UserError where `sha256` is stated and is not that of the captions."""
        if self.sha256 is not None and digest(captions) != self.sha256:
            raise UserError(
                f"caption set {self.name!r}: its {len(captions)} captions have sha256 "
                f"{digest(captions)[:12]}, the protocol wants {self.sha256[:12]}: use the data set and the "
                f"list that it was written for"
            )

    def identified(self, captions: Iterable[Caption]) -> "CaptionSet":
        """The set with the sha256 of its captions, and of its list of captions in place of the path."""
        file = None if self.file is None else hash_file(Path(self.file))
        return replace(self, file=file, sha256=digest(captions))


def digest(captions: Iterable[Caption]) -> str:
    """sha256 of a list of captions with the keys of their pictures, in their order."""
    lines = "".join(f"{caption.key}\t{caption.text}\n" for caption in captions)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_captions(path: Path, *, rows: Mapping[str, int] | None) -> list[Caption]:
    """The captions of a csv with the columns key and caption; UserError for any other file.

    Each key must be one of `rows`, the numbers of the reference pictures; None takes any key.
    """
    if not path.is_file():
        raise UserError(f"there is no caption list {path}: write one with the columns key and caption")
    lines = read_columns(path, ("key", "caption"))
    if rows is None:
        return [Caption(text, key, ELSEWHERE) for key, text in lines]
    if unknown := [key for key, _ in lines if key not in rows]:
        raise UserError(
            f"caption list {path}: {len(unknown)} of its {len(lines)} keys, {unknown[0]!r} first, name no "
            f"picture of protocol.splits: use the list of this data set"
        )
    return [Caption(text, key, rows[key]) for key, text in lines]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that a number depends on besides the model.

    Beside a number stands its floor: the metric of N real pictures, chosen by `caption_seed`, against N
    others, with N the number of generated pictures, or half of the real ones if that is less. The floor is
    then that of fewer pictures: higher for a metric that few pictures bias. `floor_images` is N.
    """

    name: str  # of the config that it came from
    sets: tuple[CaptionSet, ...]  # each measured by itself, with the sha256 of its captions
    caption_seed: int  # chooses the captions
    size: int  # side in pixels, to which pictures of another size are brought
    resize: str  # how they are
    data: str  # sha256 of the data set: captions and reference pictures
    reference: str  # sha256 of what the reference's features come from: pictures, transform, networks
    splits: tuple[str, ...]  # whose pictures are the reference set
    held_out: str | None  # split whose pictures the autoencoder is measured on
    features: tuple[FeatureIdentity, ...]  # of the feature networks
    # the generator's settings, such as its sampler, and `nfe`; None where it isn't known, as of a folder's
    # pictures. In results they stand among the other fields.
    generation: Mapping[str, Any]
    distances: tuple[str, ...] = ()  # of pairs of pictures, that the autoencoder is measured by
    measures: tuple[str, ...] = ()  # the metrics that the sets name, with all settings
    # pictures generated and looked at together; another size rounds sums otherwise, by about 1e-5 of a number
    batch_size: int = 16
    seed_base: int = 0  # the first picture's seed; the others follow one by one
    seeds: int = 1  # how many times each set is generated, every time with seeds of its own

    def __post_init__(self) -> None:
        names = [each.name for each in self.sets]
        # without any, only reconstructions of held-out pictures are measured
        if len(set(names)) < len(names) or not (names or self.held_out):
            raise UserError(f"a protocol needs caption sets with names of their own, got {names}")
        check_seed(self.seed_base, "seed_base")
        check_seed(self.caption_seed, "caption_seed")
        for name, least in (("seeds", 1), ("batch_size", 1), ("size", 8)):
            if getattr(self, name) < least:
                raise UserError(f"protocol.{name}={getattr(self, name)} must be at least {least}")
        if taken := sorted(self.generation.keys() & {each.name for each in fields(self)}):
            raise UserError(f"a generator's setting can't be called {taken[0]!r}: a protocol has that field")

    @classmethod
    def of(cls, spec: Mapping[str, Any], **identities: Any) -> "Protocol":
        """The protocol of a config node and of what only a run knows; UserError for a key out of place."""
        with _known_keys(spec):
            return cls(**{**spec, "sets": caption_sets(spec), "splits": tuple(spec["splits"]), **identities})

    @property
    def nfe(self) -> int | None:
        """Network function evaluations per picture; None where it isn't known."""
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
        return config_hash(self.record)

    @property
    def ruler(self) -> str:
        """sha256 over the fields that say how pictures are measured, not how they are generated.

        A sweep over samplers, and pictures of another system, share it and may stand in one figure.
        """
        return config_hash({name: value for name, value in asdict(self).items() if name not in GENERATED})


def caption_sets(spec: Mapping[str, Any]) -> tuple[CaptionSet, ...]:
    """The caption sets of a protocol's config node; UserError for a key that is unknown or missing."""
    with _known_keys(spec):
        return tuple(CaptionSet(**one) for one in spec["sets"])


def describe(node: Mapping[str, Any]) -> str:
    """A config node as one line for the protocol: `cfg(scale=3.0)`, however the yaml was written.

    Weights are named by their hash, where it isn't the published one, and not by the place where they lie.
    """
    settings = {key: value for key, value in node.items() if not key.startswith("_")}
    if "weights" in settings:
        settings = {key: value for key, value in settings.items() if key != "weights" and value is not None}
    inner = ", ".join(f"{key}={_value(settings[key])}" for key in sorted(settings))
    name = str(node["_target_"]).rpartition(".")[2]
    return f"{name}({inner})" if inner else name


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return describe(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@contextmanager
def _known_keys(spec: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (TypeError, KeyError) as error:
        message = f"protocol {spec.get('name')!r} has a key that is unknown or missing: {error}"
        raise UserError(message) from error
