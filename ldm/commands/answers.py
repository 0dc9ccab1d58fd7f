"""What a command prints instead of doing its work: its help, or one sentence for a user's mistake.

A bug of ours shows its traceback. The help has examples, keys with their comments and groups, all of which
are read from the command's yaml.
"""

import errno
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn

import yaml
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ldm import UserError
from ldm.io.writing import FULL

# Errors that no bug causes: the disk is full, read-only, somebody else's, broken, or gone; a long name.
DISK = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG)
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


def answer_errors(action: Callable[[], None], named: Callable[[], Iterable[str]] = tuple) -> None:
    """Runs an action; a mistake of the user ends in one sentence and exit status 1.

    Args:
        named: returns the texts among the action's options, some of which are paths.
    """
    open_streams()
    try:
        try:
            action()
        except KeyboardInterrupt:
            print("ldm: interrupted", file=sys.stderr)
            sys.exit(130)
        except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
            of_system = isinstance(error, OSError) and not isinstance(error, UserError)
            if os.environ.get("LDM_TRACEBACK") or (of_system and not is_of_disk(error, named())):
                raise
            cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
            refuse(one_line(f"{error}{cause}"))
        finally:
            if not isinstance(sys.exception(), Exception):  # whose traceback must not be lost
                sys.stdout.flush()  # else Python itself meets the closed pipe, at its end
    except BrokenPipeError:  # the reader of our output has gone: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def open_streams() -> None:
    """Lets standard streams that a shell has closed lead nowhere; others escape what they can't encode."""
    for name in ("stdin", "stdout", "stderr"):  # each gets its number back, or a file of ours would get it
        stream = getattr(sys, name) or os.fdopen(os.open(os.devnull, os.O_RDWR), "w")
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may have bytes that are not UTF-8
        setattr(sys, name, stream)


def is_of_disk(error: OSError, named: Iterable[str]) -> bool:
    """Whether an error of the system comes from the user's disk or paths, not from our code.

    It is one of DISK, or about a path that an option names, one below it or one above it. A file that is
    missing anywhere else is a bug.
    """
    if error.errno in DISK:
        return True
    files = (error.filename, error.filename2)  # each may also be a number, or absent
    paths = [Path(os.fsdecode(file)).absolute() for file in files if isinstance(file, str | bytes | Path)]
    places = [Path(text).absolute() for text in named if text]
    return any(path.is_relative_to(place) or place.is_relative_to(path) for path in paths for place in places)


def one_line(text: str) -> str:
    """A text with a blank for each line break, and escapes for characters that can't be printed."""
    joined = re.sub(r"\s*[\r\n]+\s*", " ", text).strip()
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in joined)


def refuse(sentence: str) -> NoReturn:
    """Ends the program with a sentence on standard error."""
    print(f"ldm: {sentence}", file=sys.stderr)
    sys.exit(1)


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
