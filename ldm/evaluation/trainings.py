"""Several trainings of one recipe as one subject: their results joined, with the spread between them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from ldm import UserError
from ldm.evaluation.results import PARTS, check_one_protocol, first_difference

POINT = "point.json"  # in the folder of each point of a sweep (hydra_plugins/ldm_sweeps/points.py)
BUNDLE = "*/*/bundle/config.yaml"  # below such a folder
Row = Mapping[str, Any]


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

    Raises:
        UserError: one that is listed twice, or generators with different settings, which share no protocol.
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


def in_common(lists: Any) -> list[list[Row]]:
    """The rows of each number that all lists have, in the order of the first."""
    first, *others = [{(row["set"], row["metric"]): row for row in rows} for rows in lists]
    return [
        [row, *(each[key] for each in others)]
        for key, row in first.items()
        if all(key in each for each in others)
    ]


def joined(rows: Sequence[Row]) -> dict[str, Any]:
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
