"""What a run directory says of its run: the config, and under `run` the command, commit and versions."""

from pathlib import Path
from typing import Any

from ldm.foreign import read_json, read_yaml


def facts_of(folder: Path) -> dict[str, Any]:
    """The contents of `config.yaml` and `run.json`, as far as they are there."""
    config, record = folder / "config.yaml", folder / "run.json"
    facts = read_yaml(config) if config.is_file() else {}
    return facts | ({"run": read_json(record)} if record.is_file() else {})
