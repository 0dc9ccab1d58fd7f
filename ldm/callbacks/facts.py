"""What a run directory says of its run: the config, and under `run` the command, commit and versions."""

import json
from pathlib import Path
from typing import Any

import yaml


def facts_of(folder: Path) -> dict[str, Any]:
    """The contents of `config.yaml` and `run.json`, as far as they are there."""
    config, record = folder / "config.yaml", folder / "run.json"
    facts = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return facts | ({"run": json.loads(record.read_text())} if record.is_file() else {})
