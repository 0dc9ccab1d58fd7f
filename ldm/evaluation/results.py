"""Numbers with their provenance, written whole or not at all."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ldm import UserError
from ldm.checkpoints.provenance import command, environment, git_state, peak_memory_mb
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.result_types import Closest, Row, SetResult
from ldm.evaluation.subject import Subject
from ldm.io.fields import Fields
from ldm.io.reading import read_json
from ldm.io.writing import write

FORMAT = 1
SUBJECT = ("kind", "path", "sha256", "files", "params", "origin")  # what is recorded of it
FILE_NAME = "results.json"


def results(
    *,
    protocol: Protocol,
    subject: Subject,
    sets: Sequence[SetResult],
    autoencoder: Sequence[Row],
    config_hash: str,
    seconds: float,
    device: torch.device,
) -> dict[str, Any]:
    """The document that goes into `results.json`: plain data, every number with what it depends on."""
    rows = [row for each in sets for row in each.rows] + list(autoencoder)
    return {
        "format": FORMAT,
        "protocol": {
            **json.loads(json.dumps(protocol.record)),
            "generation": list(protocol.generation),
            "hash": protocol.hash,
            "ruler": protocol.ruler,
        },
        "bundle": {name: getattr(subject, name) for name in SUBJECT},
        "rows": [_row(replace(row, protocol=protocol.hash)) for row in rows],
        "readings": {row.metric: row.reading for row in rows if row.reading},
        "sets": {each.name: _set(each) for each in sets},
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


def values(document: dict[str, Any]) -> dict[str, float]:
    """The numbers of a results document by path: `train/r1_efficientnet_lite0`, ..."""
    return {f"{row['set']}/{row['metric']}": row["value"] for row in document["rows"]}


def write_results(path: Path, document: dict[str, Any]) -> None:
    """Writes the document, whole or not at all.

    Raises:
        UserError: a number that is NaN or infinite; nothing is written then.
    """
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{path} is not written: a result is NaN or infinite") from error
    write(path, text + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """A results document.

    Raises:
        UserError: no file, or not one that `write_results` wrote.
    """
    try:
        document = Fields.of(read_json(path), name=str(path)).values
        if document.get("format") != FORMAT:
            raise UserError(f"{path} has format {document.get('format')}, this version reads {FORMAT}")
    except FileNotFoundError:
        raise UserError(f"there are no results at {path}: python -m ldm.evaluate writes them") from None
    except UserError as error:
        raise UserError(f"{error}: evaluate again") from error
    return document


def _row(row: Row) -> dict[str, Any]:
    return {name: value for name, value in asdict(row).items() if name != "reading"}


def _set(result: SetResult) -> dict[str, Any]:
    return {
        "images": result.images,
        "seeds": list(result.seeds),
        "repeats": result.repeats,
        "seconds": round(result.seconds, 2),
        "images_per_second": round(result.images * result.repeats / result.seconds, 2),
        "floor_images": result.floor_images,
        "closest": _closest(result.closest),
        "skipped": result.skipped,
    }


def _closest(closest: Closest | None) -> dict[str, Any] | None:
    """How near generated pictures came to real ones, without the pictures."""
    if closest is None:
        return None
    names = ("features", "quantile", "limit", "copied", "images")
    return {name: getattr(closest, name) for name in names} | {
        "distances": [pair.distance for pair in closest.pairs]
    }
