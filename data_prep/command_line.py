"""Commands whose options are the fields of a dataclass, typed as `key=value` and read by each field's type.

A text is everything after the first `=`, unchanged: blanks, quotes, `#` and `${...}` are kept. An option is
given at most once; it may be empty if its default is empty.
"""

import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any, NamedTuple

from ldm import UserError
from ldm.commands.answers import answer_errors
from ldm.construct import nearest


class Kind(NamedTuple):
    """How the values of one type are written."""

    name: str  # in `--help`
    expected: str  # in messages
    pattern: re.Pattern[str]
    read: Callable[[str], Any]


KINDS: dict[type, Kind] = {
    str: Kind("TEXT", "a text", re.compile(r".*", re.DOTALL), str),
    int: Kind(
        "INTEGER",
        "a whole number of at most 18 digits without leading zeros, such as 256",
        re.compile(r"-?(0|[1-9][0-9]{0,17})"),
        int,
    ),
    float: Kind(
        "NUMBER",
        "a finite decimal number, such as 0.05",
        re.compile(r"-?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]{1,2})?", re.IGNORECASE),
        float,
    ),
    bool: Kind("BOOLEAN", "true or false", re.compile("[Tt]rue|[Ff]alse"), lambda text: text[0] in "Tt"),
}


def option(default: Any, sentence: str, *, place: bool = False) -> Any:
    """A dataclass field that is an option: its default, and the sentence that `--help` prints.

    Args:
        place: whether its value may be typed alone, in the order of such options.
    """
    return field(default=default, metadata={"help": sentence, "place": place})


def command_line(function: Callable[[Any], None], options: type, arguments: list[str]) -> None:
    """Runs `function(options)` on the `key=value` arguments, or prints the module's help."""

    def _run() -> None:
        if {"-h", "--help"} & set(arguments):
            print(f"{sys.modules[function.__module__].__doc__}\n{help_of(options)}")
        else:
            function(read_options(options, arguments))

    answer_errors(_run, named=lambda: [argument.partition("=")[2] or argument for argument in arguments])


def read_options(options: type, arguments: list[str]) -> Any:
    """The options that the arguments set, all others at their defaults; UserError for a wrong one."""
    known = {own.name: own for own in fields(options)}
    values: dict[str, Any] = {}
    places = [name for name, own in known.items() if own.metadata.get("place")]
    for argument in arguments:
        if places and "=" not in argument and argument not in known:
            argument = f"{places.pop(0)}={argument}"
        key, equals, text = argument.partition("=")
        if key not in known:
            raise UserError(f"there is no option {key!r}{nearest(key, known) or '; --help lists them'}")
        if not equals:
            raise UserError(f"{key} has no value: write {key}={KINDS[known[key].type].name}")
        if key in values:
            raise UserError(f"{key}= is given twice: keep one of them")
        kind, default = KINDS[known[key].type], known[key].default
        if not text and default != "":
            raise UserError(f"{key}= is empty: write {kind.expected}, or leave it out for {_shown(default)}")
        if not kind.pattern.fullmatch(text):
            raise UserError(f"{key}={text} is not {kind.expected}")
        values[key] = kind.read(text)
    return options(**values)


def help_of(options: type) -> str:
    """One paragraph per option: its type, its sentence and its default."""
    lines = ["Options:"]
    for own in fields(options):
        default = f" Default: {_shown(own.default)}." if own.default != "" else ""
        head = f"  {own.name}={KINDS[own.type].name}"
        body = textwrap.wrap(own.metadata["help"] + default, width=84)
        lines += [f"{head:<26}{body[0]}" if len(head) < 25 else f"{head}\n{'':<26}{body[0]}"]
        lines += [f"{'':<26}{line}" for line in body[1:]]
    return "\n".join(lines)


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
