"""Where a number or a file comes from: commit, command, versions, hashes, memory, and what a run records."""

import hashlib
import json
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ldm.construct import CONFIG_DIR, PACKAGES
from ldm.io.reading import read_json, read_yaml

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONED = (  # packages whose versions can change a number
    *("ldm", "torch", "torchvision", "torchmetrics", "pytorch-lightning", "numpy"),
    *("pillow", "simplejpeg"),  # decode pictures
    *("tokenizers", "ftfy", "regex", "open-clip-torch", "timm"),  # read texts, hold feature networks
)
RECORD, CONFIG, LOCK = "run.json", "config.yaml", ".lock"  # of a run
ASIDE = {  # keys, at any depth, that change what a training costs or prints, but not its result
    *("num_workers", "worker_timeout", "cache", "max_time"),
    *("logger", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "summary"),
    *("saving", "pace", "report", "remaining", "samples", "reconstructions", "retrieved", "round_trip"),
}

START = r"""(?:^|(?<=[=,:\['"\s(])|(?<=file://))"""  # of a path in a text
# An absolute path up to its last name, of several in a line up to that of the last one. A path that is
# relative, and the slashes of https://host/name, are left.
ABSOLUTE = re.compile(rf"{START}~?/(?![/\s])(?:.*/)?", re.MULTILINE)


def published(value: Any) -> Any:
    """A text, or all texts in plain data, as a file may say them that is shared with others.

    A path in the working directory becomes relative to it; of any other absolute one, which may name a
    person's home folder, the last name alone is left: `.../name`.
    """
    if isinstance(value, Mapping):
        return {name: published(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [published(each) for each in value]
    if not isinstance(value, str):
        return value
    here = re.compile(f"{START}{re.escape(os.getcwd().rstrip('/'))}/(?!/)", re.MULTILINE)
    return ABSOLUTE.sub(".../", here.sub("", value))


def git_state() -> dict[str, Any]:
    """Commit of the code and whether files differ from it; null outside a git checkout."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a number."""
    versions = {name: version(name) for name in VERSIONED}
    return {"python": platform.python_version(), "machine": platform.machine(), **versions}


def command(shown: Callable[[str], str] = str) -> str:
    """The command that does the same again: what was typed, with the user's own config folder and packages.

    Each word is as `shown` returns it, quoted for a shell. The environment names folder and packages to ranks
    and to the points of a sweep, whose command lacks the option.
    """
    typed, folder, packages = sys.orig_argv[1:], os.environ.get(CONFIG_DIR), os.environ.get(PACKAGES)
    if folder and not any(word.partition("=")[0] in ("--config-dir", "-cd") for word in typed):
        typed = [*typed, f"--config-dir={folder}"]
    return shlex.join(map(shown, [f"{PACKAGES}={packages}"] * bool(packages) + ["python", *typed]))


def config_hash(config: Any) -> str:
    """sha256 of a resolved config, or other plain data, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def peak_memory_mb() -> dict[str, float]:
    """Largest memory that this process has held so far, in MB: of the host and, where used, of the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB here
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)}
    import torch  # seconds that the other functions here do without

    if torch.cuda.is_available():
        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    return peak


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


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None
