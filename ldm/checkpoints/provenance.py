"""Where a number or a file comes from: commit, command, versions, hashes."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ASIDE = frozenset(  # keys, at any depth, that change what a training costs or tells and not what it comes to
    {
        *("num_workers", "worker_timeout", "cache"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "summary"),
        *("saving", "pace", "report"),
    }
)


def git_state() -> dict[str, Any]:
    """Commit of the code and whether files differ from it; null outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a number."""
    names = (
        *("ldm", "torch", "torchvision", "torchmetrics", "pytorch-lightning", "numpy"),
        *("pillow", "simplejpeg"),  # decode pictures
        *("tokenizers", "ftfy", "regex", "open-clip-torch", "timm"),  # read texts, hold feature networks
    )
    return {"python": platform.python_version(), "machine": platform.machine()} | {
        n: version(n) for n in names
    }


def command() -> str:
    """What was typed, without the interpreter's path."""
    return " ".join(["python", *sys.orig_argv[1:]])


def config_hash(config: dict[str, Any]) -> str:
    """sha256 of a resolved config, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def result_hash(config: Mapping[str, Any]) -> str:
    """Hash of what a training's config says about its result.

    How many processes load, what is logged where and how often states are saved is not part of it, and may
    change from one start of a run to the next. A key of null at the root is as one that isn't there.
    """
    return config_hash(_without({key: value for key, value in config.items() if value is not None}, ASIDE))


def _without(node: Any, keys: frozenset[str]) -> Any:
    """Nested data without some keys."""
    if isinstance(node, Mapping):
        return {key: _without(value, keys) for key, value in node.items() if key not in keys}
    return [_without(each, keys) for each in node] if isinstance(node, list | tuple) else node


def origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle tells of its training: experiment, config hash, commit."""
    return {"experiment": config["name"], "config_hash": config_hash(dict(config)), **git_state()}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
