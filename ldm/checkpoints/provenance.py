"""Where a number or a file comes from: commit, command, versions, hashes, and the memory that it took."""

import hashlib
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ldm.data.index import FILE_NAME, ShardIndex

REPOSITORY = Path(__file__).resolve().parents[2]
ASIDE = frozenset(  # keys, at any depth, that change what a training costs or tells and not what it comes to
    {
        *("num_workers", "worker_timeout", "cache", "max_time"),
        *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "summary"),
        *("saving", "pace", "report", "remaining", "samples", "reconstructions", "retrieved"),
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


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of a resolved config, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()


def origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle records of its training: experiment, config hash, commit, name and sha256 of its data."""
    told = {"experiment": config["name"], "config_hash": config_hash(config), **git_state()}
    root = config.get("data", {}).get("root")
    if root is not None and (Path(root) / FILE_NAME).is_file():
        told["data"] = {"name": Path(root).resolve().name, "sha256": ShardIndex.load(root).sha256}
    return told


def peak_memory_mb() -> dict[str, float]:
    """Largest memory that this process has held so far, in MB: of the host and, where used, of the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB here
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    import torch  # seconds that the other functions here do without

    if torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
