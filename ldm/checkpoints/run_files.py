"""What the files of a run record: its config and how it was started, as one tree or by dotted keys."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ldm.io.reading import read_json, read_yaml

RECORD, CONFIG, LOCK = "run.json", "config.yaml", ".lock"  # of a run
ASIDE = {  # keys, at any depth, that change what a training costs or prints, but not its result
    *("num_workers", "worker_timeout", "cache", "max_time"),
    *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "summary"),
    *("saving", "pace", "report", "remaining", "samples", "reconstructions", "retrieved", "round_trip"),
}


def flat(node: Mapping[str, Any], prefix: str = "", *, aside: Collection[str] = ASIDE) -> dict[str, Any]:
    """Values of nested mappings by dotted key, without null ones and those below a key of `aside`."""
    found = {}
    for key, value in node.items():
        if key in aside or value is None:
            continue
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.", aside=aside) if inner else {f"{prefix}{key}": value}
    return found


def facts_of(folder: Path) -> dict[str, Any]:
    """Contents of a run's `config.yaml`, and under `run` those of its `run.json`, if they exist."""
    config, record = folder / CONFIG, folder / RECORD
    facts = read_yaml(config) if config.is_file() else {}
    return facts | ({"run": read_json(record)} if record.is_file() else {})
