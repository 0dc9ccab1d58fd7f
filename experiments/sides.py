"""The two sides of a comparison: evaluations or runs, and the numbers of each by measure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.intervals import Measured
from hydra_plugins.ldm_sweeps.points import RECORD as POINT
from ldm import UserError
from ldm.checkpoints.provenance import config_hash, facts_of, flat
from ldm.construct import moved
from ldm.evaluation.results import FILE_NAME, read_results
from ldm.io.curves import read_curves

LOG, EVALUATION = "metrics.jsonl", "evaluation"
DECIDING = ("process", "codec", "autoencoder", "tokenizer")  # parts of a config that losses depend on
TRAINED = ("process.times", "process.weight")  # how it was trained, on which all losses but this one depend
FIXED = "loss_fixed"
WORDS = {"higher is better": True, "lower is better": False}  # in the readings of earlier versions
AUTOENCODER = "autoencoder"  # the rows that no training of a denoiser changes

Document = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison.

    Attributes:
        name: as it was typed.
        documents: by path: a results document, or what stands for one of a run.
        measures: what can be better or worse, by `set/metric`.
        undirected: the other numbers' names.
    """

    name: str
    documents: Mapping[str, Mapping[str, Any]]
    measures: Mapping[str, Measured]
    undirected: Sequence[str]

    @property
    def trainings(self) -> int:
        return max((len(each.per_seed) for each in self.measures.values()), default=0)


def read_side(text: str) -> Side:
    """A side from the folders that a text names, separated by commas.

    Raises:
        UserError: a folder without results, one training twice, or results that can't be read.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    for place in filter(None, text.split(",")):
        there = dict(documents_at(Path(place)))
        if not there:
            raise UserError(
                f"{place} has no results: it holds neither {FILE_NAME}, which python -m ldm.evaluate writes, "
                f"nor a training's {LOG} with a validation"
            )
        documents |= there
    if not documents:
        raise UserError(
            "a side is empty: name run or evaluation folders, as python -m experiments.compare A B"
        )
    return side_of(text, documents)


def side_of(name: str, documents: Mapping[str, Document]) -> Side:
    """The side of some documents, trainings of one recipe; UserError for a training that is there twice."""
    check_distinct(documents)
    rows = [row for document in documents.values() for row in rows_of(document)]
    found = {
        key: joined([row for other, row in rows if other == key]) for key in dict.fromkeys(k for k, _ in rows)
    }
    return Side(
        name=name,
        documents=documents,
        measures={key: each for key, each in found.items() if each is not None},
        undirected=[key for key, each in found.items() if each is None],
    )


def documents_at(folder: Path) -> Iterator[tuple[str, Document]]:
    """The results of an evaluation's folder, of a run, or of each point of a sweep, by path.

    A run counts with its evaluation (`<run>/evaluation`) or else with its last validation, and a folder of
    runs with its newest.
    """
    for place in (folder, folder / EVALUATION):
        if (place / FILE_NAME).is_file():
            yield str(place), read_results(place / FILE_NAME)
            return
    points = [path.parent for path in sorted(folder.glob(f"*/{POINT}"))]
    for point in points:
        yield from documents_at(point)
    logs = [folder / LOG, *sorted((*folder.glob(f"*/{LOG}"), *folder.glob(f"*/*/{LOG}")), reverse=True)]
    log = next((path for path in logs if path.is_file()), None)
    if not points and log is not None and (document := validation_of(log)):
        yield str(log.parent), document


def validation_of(log: Path) -> dict[str, Any]:
    """The losses of a run's last validation as a results document; empty where there was none."""
    losses = {
        name.removeprefix("val/"): curve[-1][1]
        for name, curve in read_curves(log).items()
        if name.startswith("val/") and "loss" in name
    }
    facts = facts_of(log.parent)
    data = {name: facts.get("data", {}).get(name) for name in ("root", "size")}
    decides = flat(completed({name: facts[name] for name in DECIDING if name in facts} | {"data": data}))
    read = facts.get("run", {}).get("inputs", {})  # contents of data and bundles, wherever these lie
    decides = {name: read.get(name, value) for name, value in decides.items()}
    trained = {name: decides.pop(name) for name in list(decides) if name.startswith(TRAINED)}
    digest = config_hash(decides)
    rows = [
        {"set": "val", "metric": name, "value": value, "per_seed": [[value]], "higher_is_better": False}
        for name, value in losses.items()
    ]
    return rows and {
        "rows": rows,
        "bundle": {"sha256": str(log.resolve()), "origin": {"seed": facts.get("seed")}},
        "protocol": decides | {"hash": digest, "ruler": digest},
        "trained": trained,
    }


def completed(node: Any) -> Any:
    """A config, which may be of an earlier version, with today's names of targets and defaults of options."""
    if not isinstance(node, Mapping):
        return node
    found = {name: completed(child) for name, child in node.items()}
    if "_target_" in found:
        from ldm.checkpoints.resuming import defaults_of  # imports torch, seconds that --help does without

        found = defaults_of(found["_target_"]) | found | {"_target_": moved(found["_target_"])}
    return found


def check_distinct(documents: Mapping[str, Document]) -> None:
    """Refuses a training that one side has twice: the spread between trainings would come out too small."""
    seen: dict[str, str] = {}
    for path, document in documents.items():
        for subject in document.get("trainings", [document["bundle"]]):
            if (twin := seen.setdefault(subject["sha256"], path)) != path:
                raise UserError(f"{twin} and {path} are results of one training: name it once a side")


def rows_of(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a document by `set/metric`, each with the seeds of its trainings and its direction."""
    subjects = document.get("trainings", [document["bundle"]])
    seeds = [subject.get("origin", {}).get("seed") for subject in subjects]
    for row in document["rows"]:
        values = {"per_seed": values_of(row), "per_caption": [], "exact": "per_seed" in row}
        own = {"training_seeds": seeds, "higher_is_better": direction_of(row, document.get("readings", {}))}
        yield f"{row['set']}/{row['metric']}", values | row | own


def direction_of(row: Mapping[str, Any], readings: Mapping[str, str]) -> bool | None:
    """Whether higher is better, as the metric says; in earlier versions its sentence may say it."""
    if "higher_is_better" in row:
        return row["higher_is_better"]
    metric = row["metric"]
    sentence = next((text for name, text in readings.items() if metric.startswith(name)), "")
    return next((better for words, better in WORDS.items() if words in sentence), None)


def values_of(row: Mapping[str, Any]) -> list[list[float]]:
    """The value of each sampling seed; of earlier versions, as many with the row's mean and deviation."""
    count, sd = row.get("seeds", 1), row.get("sd")
    if sd is None:
        return [[row["value"]] * count]
    steps = np.linspace(-1, 1, count)
    return [[float(row["value"] + sd * step) for step in steps / steps.std(ddof=1)]]


def joined(rows: Sequence[Mapping[str, Any]]) -> Measured | None:
    """One measure of all trainings of a side; None where its metric says that neither direction is better."""
    if rows[0]["higher_is_better"] is None and rows[0]["exact"]:
        return None
    if rows[0]["set"] == AUTOENCODER and len({row["value"] for row in rows}) == 1:
        rows = [rows[0] | {"per_seed": rows[0]["per_seed"][:1], "training_seeds": [None]}]
    parts = ("per_seed", "per_caption", "training_seeds")
    per_seed, per_caption, seeds = ([each for row in rows for each in row[name]] for name in parts)
    whole = all(row["per_caption"] for row in rows)
    return Measured(
        per_seed=per_seed,
        per_caption=per_caption if whole else [],
        training_seeds=seeds,
        exact=all(row["exact"] for row in rows),
        higher_is_better=rows[0]["higher_is_better"],
    )
