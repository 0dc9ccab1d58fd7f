"""The text of `--help`: examples, keys with their comments, and groups, all read from the command's yaml."""

import re
import textwrap
from pathlib import Path

import yaml

# groups that a command reads without naming them in its defaults: +group=name
ADDED = {
    "train": ("experiment", "sweep"),
    "sample": ("sampler", "grid", "guidance"),
    "evaluate": ("sampler", "grid", "guidance", "sweep"),
    "export": ("sampler", "grid"),
    "serve": (),
}
PAGES = {"train": "train", "sample": "sample", "evaluate": "evaluate", "export": "weights", "serve": "serve"}
HYDRA_BLOCK = re.compile(r"^hydra:\n(?:[ \t].*\n|\n)*", re.MULTILINE)
WIDTH = 110


def help_of(name: str, conf: Path) -> str:
    """The help of the command whose config is `<conf>/<name>.yaml`."""
    text = (conf / f"{name}.yaml").read_text(encoding="utf-8")
    document = yaml.safe_load(text)
    header = document["hydra"]["help"]["header"].rstrip()
    keys = text[HYDRA_BLOCK.search(text).end() :].rstrip()  # type: ignore[union-attr]
    return f"""{header}

== Keys: key=value ==
{keys}

== Groups: group=name; the default is in brackets ==
{_groups(name, conf, document["defaults"])}

Every field of a group is a key, too: backbone.channels=192. --cfg job prints all of them with their values
and runs nothing. Documentation: docs/{PAGES[name]}.md in the repository; `make docs` makes it a web site."""


def _groups(name: str, conf: Path, defaults: list[str | dict[str, str | list[str]]]) -> str:
    """A line per group with its options, the default in brackets; of the sweeps only those of the command."""
    chosen = {group: value for entry in defaults if isinstance(entry, dict) for group, value in entry.items()}
    lines = []
    for group, default in (chosen | {f"+{group}": "" for group in ADDED[name]}).items():
        paths = sorted((conf / group.lstrip("+")).glob("*.yaml"))
        if group == "+sweep":
            paths = [path for path in paths if f"ldm.{name} " in path.read_text(encoding="utf-8")]
        names = ", ".join(f"[{path.stem}]" if path.stem == default else path.stem for path in paths)
        line = f"{group}: {names}"
        lines.append(textwrap.fill(line, width=WIDTH, subsequent_indent="    ", break_on_hyphens=False))
    return "\n".join(lines)
