"""What `--help` prints: examples, keys with their comments, and groups, all read from the command's yaml."""

import re
import textwrap
from pathlib import Path

import yaml

# groups that a command reads although its defaults list doesn't name them: +group=name
ADDED = {
    "train": ("experiment", "sweep"),
    "sample": ("sampler", "grid", "guidance"),
    "evaluate": ("sampler", "grid", "guidance", "sweep"),
    "export": ("sampler", "grid"),
}
PAGES = {"train": "train", "sample": "sample", "evaluate": "evaluate", "export": "weights"}
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
    """A line per group: its options, and which is the default."""
    chosen = {group: value for entry in defaults if isinstance(entry, dict) for group, value in entry.items()}
    lines = [_line(group, _options(conf, group, name), default) for group, default in chosen.items()]
    lines += [_line(f"+{group}", _options(conf, group, name), "") for group in ADDED[name]]
    return "\n".join(lines)


def _options(conf: Path, group: str, command: str) -> list[str]:
    """Names in a group; of the sweeps those of the command."""
    paths = sorted((conf / group).glob("*.yaml"))
    if group == "sweep":
        paths = [path for path in paths if f"ldm.{command} " in path.read_text(encoding="utf-8")]
    return [path.stem for path in paths]


def _line(group: str, options: list[str], default: str | list[str]) -> str:
    names = ", ".join(f"[{option}]" if option == default else option for option in options)
    return textwrap.fill(f"{group}: {names}", width=WIDTH, subsequent_indent="    ", break_on_hyphens=False)
