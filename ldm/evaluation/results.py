"""What an evaluation finds: numbers beside their references, pictures to look at, and `results.json`.

Several trainings of one recipe count as one subject: their results are joined, with the spread between them.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from ldm import UserError
from ldm.checkpoints.provenance import command, environment, git_state, peak_memory_mb, published
from ldm.io.fields import Fields
from ldm.io.reading import read_json
from ldm.io.writing import write

if TYPE_CHECKING:
    import torch

    from ldm.evaluation.pictures import Subject
    from ldm.evaluation.protocol import Protocol
    from ldm.metrics.picture_metric import Copies

FORMAT = 1
SUBJECT = ("kind", "path", "sha256", "files", "params", "origin")  # what is recorded of it
FILE_NAME = "results.json"
HASHES = ("hash", "ruler", "generation")  # of a protocol's entry: what isn't a field of it
PARTS = ("per_seed", "per_caption")  # of a row: what its value is the mean of
NUMBERS = re.compile(r"\[\n\s*([-\d.e+]+(?:,\s+[-\d.e+]+)*)\s+\]")  # a list of numbers, one a line
POINT = "point.json"  # in the folder of each point of a sweep (hydra_plugins/ldm_sweeps/points.py)
BUNDLE = "*/*/bundle/config.yaml"  # below such a folder


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number and the references to read it by; None where something isn't known or doesn't apply."""

    set: str  # caption set that it was measured on, or "autoencoder"
    metric: str
    value: float  # mean over the seeds, and over the trainings
    sd: float | None = None  # standard deviation over the sampling seeds, within a training
    seeds: int = 1  # how many times the set was generated
    trainings: int = 1  # how many trainings of one recipe were measured
    sd_trainings: float | None = None  # standard deviation between them
    images: int  # how many pictures it was measured on, for each seed
    few: bool = False  # fewer pictures than the metric wants
    foreign: bool = False  # its reference is a file that doesn't say how its pictures were prepared
    floor: float | None = None  # of real pictures against as many others
    ceiling: float | None = None  # of the autoencoder's round trip of the right pictures
    real: float | None = None  # of the right pictures, or of as many real ones
    nfe: int | None = None  # network function evaluations per picture
    seconds: float | None = None  # to generate and look at all pictures
    params: int | None = None  # of the network
    higher_is_better: bool | None = None  # None: neither direction is
    # for comparisons: the value of each sampling seed, and of a metric that is a mean over pictures those of
    # each caption, in the captions' order; first by training
    per_seed: Sequence[Sequence[float]] = ()
    per_caption: Sequence[Sequence[Sequence[float]]] = ()
    reading: str = ""  # what it is and which direction is better; once in a document, by metric


class Block(NamedTuple):
    """Pictures to look at in a row, below lines of text; None leaves a place empty."""

    texts: Sequence[str]
    pictures: Sequence["torch.Tensor | None"]  # uint8, 3 h w


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was measured on one caption set."""

    name: str
    rows: list[Row]
    shown: list[Block]  # captions: their generated pictures, the real one nearest to the first, the right one
    pairs: list[Block]  # of the generated and the real pictures nearest to each other
    images: int  # for each seed
    seeds: tuple[int, int]  # first and last of all pictures
    repeats: int  # how many times the set was generated
    seconds: float  # to generate and look at all of them together
    floor_images: int = 0  # real pictures on each side of the floor
    copies: "Copies | None" = None  # where memorisation was measured, of the first seed
    skipped: list[str] = field(default_factory=list)  # metrics that lack a network, or real pictures

    @property
    def record(self) -> dict[str, Any]:
        """Everything but rows and pictures, as plain data."""
        names = ("images", "seeds", "repeats", "floor_images", "skipped")
        return {name: getattr(self, name) for name in names} | {
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.images * self.repeats / self.seconds, 2),
            "closest": self.copies
            and {
                "features": self.copies.features,
                "quantile": self.copies.quantile,
                "limit": self.copies.limit,
                "copied": int(self.copies.copied.sum()),
                "images": self.images,
                "distances": self.copies.distance[: len(self.pairs)].tolist(),
            },
        }


def results(
    *,
    protocol: "Protocol",
    subject: "Subject",
    sets: Sequence[SetResult],
    autoencoder: Sequence[Row],
    config_hash: str,
    seconds: float,
    device: "torch.device",
) -> dict[str, Any]:
    """The document that goes into `results.json`: plain data, every number with what it depends on."""
    import torch  # seconds that reading results does without

    rows = [asdict(row) for row in (*(row for each in sets for row in each.rows), *autoencoder)]
    readings = {row["metric"]: reading for row in rows if (reading := row.pop("reading"))}
    return {
        "format": FORMAT,
        "protocol": {
            **json.loads(json.dumps(protocol.record)),
            "generation": list(protocol.generation),
            "hash": protocol.hash,
            "ruler": protocol.ruler,
        },
        "bundle": {name: getattr(subject, name) for name in SUBJECT},
        "rows": [row | {"protocol": protocol.hash} for row in rows],
        "readings": readings,
        "sets": {each.name: each.record for each in sets},
        "provenance": {
            **git_state(),
            "config_hash": config_hash,
            "command": command(),
            **environment(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "peak_memory_mb": peak_memory_mb(),
        },
    }


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what it is the mean of."""
    return {name: value for name, value in row.items() if name not in PARTS}


def spreads(row: Mapping[str, Any]) -> list[tuple[float, str]]:
    """The error bars of a number, the widest first: each with what it is taken over.

    Standard deviations between trainings and between sampling seeds; where there is neither, the standard
    error of the mean over captions.
    """
    found = []
    if row.get("sd_trainings") is not None:
        found.append((row["sd_trainings"], f"{row['trainings']} training seeds"))
    if row.get("sd") is not None:
        found.append((row["sd"], f"{row['seeds']} sampling seeds"))
    own = [caption for seeds in row.get("per_caption") or () for captions in seeds for caption in captions]
    if not found and len(own) > 1:
        found.append((stdev(own) / len(own) ** 0.5, f"{len(own)} captions"))
    return found


def check_one_protocol(documents: Mapping[str, Mapping[str, Any]], *, hash_of: str = "hash") -> None:
    """Refuses results, by name, that can't be compared: by "hash", or "ruler" if generation may differ.

    Raises UserError: two of them have different hashes; names both, and the first field that differs.
    """
    (name, first), *others = ((name, each["protocol"]) for name, each in documents.items())
    for other, protocol in others:
        if protocol[hash_of] != first[hash_of]:
            sides = [{k: v for k, v in each.items() if k not in HASHES} for each in (first, protocol)]
            field, *sides = first_difference(*sides) or ("a field", "unknown", "unknown")
            raise UserError(
                f"{name} and {other} are of different protocols, {first[hash_of][:12]} and "
                f"{protocol[hash_of][:12]}: {field} is {sides[0]} and {sides[1]}; measure both under one"
            )


def first_difference(one: Any, other: Any, *, name: str = "") -> tuple[str, Any, Any] | None:
    """The first field in which two values differ: its name and both values; None where they are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = [(f"{name}.{key}".lstrip("."), one.get(key), other.get(key)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = [(f"{name}[{number}]", *pair) for number, pair in enumerate(zip(one, other, strict=True))]
    else:
        return None if one == other else (name, one, other)
    found = (first_difference(a, b, name=each) for each, a, b in pairs)
    return next((difference for difference in found if difference is not None), None)


def values(document: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a results document by path: `train/r1_efficientnet_lite0`, ..."""
    return {f"{row['set']}/{row['metric']}": row["value"] for row in document["rows"]}


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the document, paths as `published` shows them; UserError for a number that isn't finite."""
    try:
        text = json.dumps(published(document), indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not written: a result is NaN or infinite") from error
    write(path, NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A results document; UserError where there is none, or a file that `write_results` didn't write."""
    try:
        document = Fields.of(read_json(path), name=str(path)).values
        if document.get("format") != FORMAT:
            raise UserError(f"{path} has format {document.get('format')}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise UserError(f"there are no results at {path}: python -m ldm.evaluate writes them") from None
    except UserError as error:
        raise UserError(f"{error}: evaluate again") from error
    return document


class Training(NamedTuple):
    """A training that is to be measured: the name and sha256 of its bundle, and its generator's settings."""

    name: str
    sha256: str
    settings: Mapping[str, Any]


def bundles_of(bundle: str | Sequence[str]) -> list[str]:
    """The bundles that `bundle=` names: one, those of a list, or those that a sweep has trained.

    Raises UserError: a point of the sweep that isn't finished.
    """
    if not isinstance(bundle, str):
        return [*bundle]
    points = [path.parent for path in sorted(Path(bundle).glob(f"*/{POINT}"))]
    newest = {point: sorted(point.glob(BUNDLE))[-1:] for point in points}
    if unfinished := [point.name for point, found in newest.items() if not found]:
        raise UserError(
            f"{bundle}: {len(unfinished)} of {len(points)} trainings, {unfinished[0]} first, are unfinished: "
            f"the command that started the sweep resumes them"
        )
    return [str(found.parent) for (found,) in newest.values()] or [bundle]


def check_alike(trainings: Sequence[Training]) -> None:
    """Refuses trainings that can't be measured as one subject.

    Raises UserError: one listed twice, or generators with different settings, which share no protocol.
    """
    if (count := len({each.sha256 for each in trainings})) < len(trainings):
        raise UserError(
            f"bundle= lists {len(trainings)} trainings, of which only {count} differ: name each once, or the "
            f"spread would come out too small"
        )
    for other in trainings[1:]:
        first = trainings[0]
        if found := first_difference(dict(first.settings), dict(other.settings)):
            raise UserError(
                f"{first.name} and {other.name} generate in different ways, {found[0]} is {found[1]} and "
                f"{found[2]}: choose one for both, as with +sampler=, +guidance=, steps= and scale="
            )


def together(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results of several trainings as one document; that of a single one is unchanged.

    Raises UserError: trainings measured under different protocols.
    """
    first, *others = documents
    if not others:
        return dict(first)
    subjects = [document["bundle"] for document in documents]
    check_one_protocol(dict(zip((subject["path"] for subject in subjects), documents, strict=True)))
    seconds = round(sum(document["provenance"]["seconds"] for document in documents), 1)
    return {
        **first,
        "trainings": subjects,
        "rows": [joined(rows) for rows in in_common(document["rows"] for document in documents)],
        "provenance": {**first["provenance"], "seconds": seconds},
    }


def in_common(lists: Any) -> list[list[Mapping[str, Any]]]:
    """The rows of each number that all lists have, in the order of the first."""
    first, *others = [{(row["set"], row["metric"]): row for row in rows} for rows in lists]
    return [
        [row, *(each[key] for each in others)]
        for key, row in first.items()
        if all(key in each for each in others)
    ]


def joined(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One number of several trainings: the mean, the spread between them, and that of sampling within them.

    `sd` is the root mean square of the trainings' own, which are taken over the same number of seeds.
    """
    values, sds = [row["value"] for row in rows], [row["sd"] for row in rows]
    found = dict(rows[0]) | {name: [*chain.from_iterable(row[name] for row in rows)] for name in PARTS}
    for name in ("floor", "ceiling", "real"):
        known = [row[name] for row in rows if row[name] is not None]
        found[name] = mean(known) if known else None
    times = [row["seconds"] for row in rows if row["seconds"] is not None]
    return found | {
        "value": mean(values),
        "sd": None if None in sds else mean(sd**2 for sd in sds) ** 0.5,
        "trainings": len(rows),
        "sd_trainings": stdev(values),
        "seconds": round(sum(times), 4) if times else None,
    }
