"""Commands: what is typed becomes a checked config before anything heavy loads, and its nodes objects."""

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, wraps
from inspect import signature
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from ldm import UserError
from ldm.commands.answers import answer_errors, help_of, refuse
from ldm.construct import CONFIG_DIR, SCALARS, construct, locate, nearest, own_confs

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
TARGETS = (
    "ldm.",
    "torch.optim.",
    "torch.nn.",
    "pytorch_lightning.trainer.",
    "pytorch_lightning.Trainer",
    "pytorch_lightning.loggers.",
    "pytorch_lightning.callbacks.",
    "pytorch_lightning.strategies.",
    "pytorch_lightning.plugins.",
    "torchmetrics.",
)
OPTIONAL_GROUPS = ("experiment", "term", "captions", "equivariance", "text")  # with +group=name alone
EVERY = {"evaluate": "metric"}  # command -> a group of which it gets every file: a new one needs no list
LISTS = {"evaluate": ("bundle",)}  # keys of a command that take a list beside what their default is
OFF = ("callbacks", "logger")  # groups that a command does without, and so without any member of theirs
# tables of parts, of which a command goes without those that are null
PARTS = (*OFF, "metric", "protocol.extractors", "protocol.distances")
# groups that some commands alone read
READERS = {"grid": ("sample", "evaluate", "export")}
READERS |= dict.fromkeys(("perceptual", "equivariance", "term", "captions", "text"), ("train",))
ACCEPTED = SCALARS | {str: (str, int, float)}  # type of a key's default -> types of values: "7" is typed as 7


def entry(name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Decorator that makes `function(config)` the command with the config `conf/<name>.yaml`."""
    return partial(_command, name)


def _command(name: str, function: Callable[[DictConfig], None]) -> Callable[[], None]:
    @wraps(function)
    def _task(config: DictConfig) -> None:
        leave_out(config)
        answer_errors(partial(function, config), lambda: _texts(OmegaConf.to_container(config)))

    run = hydra_main(version_base="1.3", config_path=str(CONF), config_name=name)(_task)

    def _run() -> None:
        # options first: argparse refuses overrides on both sides of one, as slurm/env.sh makes them;
        # then "--": it would take an override for the value of --info, which may have none
        typed = map(without_null, map(quoted_path, sys.argv[1:]))
        sys.argv[1:] = sorted([*typed, "--"], key=is_override)
        arguments = get_args_parser().parse_args()
        if arguments.help:
            return print(help_of(name, CONF))
        if arguments.hydra_help:  # which knows no key of ours
            sys.argv[1:] = ["--hydra-help"]
            return run()
        if arguments.config_dir:  # in the environment it reaches ranks and points of a sweep as well
            os.environ[CONFIG_DIR] = os.path.abspath(arguments.config_dir)
        if arguments.multirun and (arguments.cfg or arguments.info):
            refuse("a sweep has one config per point: leave out -m to see one with --cfg or --info")
        check(name, arguments.overrides, sweep=arguments.multirun)
        place = sys.argv.index("--") + 1  # before what is typed, which may choose some of them
        sys.argv[place:place] = every(name)
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises its errors to us
        logging.raiseExceptions = not arguments.info  # which is logged, perhaps to a reader that has gone
        run()

    return wraps(function)(partial(answer_errors, _run))


def without_null(argument: str) -> str:
    """`~group` for `group=null`, which Hydra can't read, and `group={}`, which it takes for no change."""
    group, _, value = argument.partition("=")
    return f"~{group}" if group in OFF and value in ("null", "{}") else argument


def leave_out(config: DictConfig) -> None:
    """Takes members that are null out of the groups in `PARTS`; one of `OFF` that is not there is empty."""
    with open_dict(config):
        for group in PARTS:
            node = OmegaConf.select(config, group)
            if node is None and group in OFF:
                config[group] = {}
            for name in [name for name in node or () if OmegaConf.is_dict(node) and node[name] is None]:
                del node[name]


def build(node: Any) -> Any:
    """Objects of a config node: `_target_` calls from an allowed list, `_partial_` as functools.partial."""
    data = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return construct(data, allowed=TARGETS)


def build_data(config: DictConfig, stage: Any) -> Any:
    """The data module of a training; one that encodes for its stage is given the stage's codec and codes."""
    node = plain(config.model.datamodule)
    wanted = signature(locate(node["_target_"], allowed=TARGETS)).parameters.keys()
    frozen = {"codec", "codes", "embedder"} & wanted & vars(stage).keys()
    return build(node | {name: getattr(stage, name) for name in frozen})


def overrides() -> list[str]:
    """What was typed after the command's name; of a sweep, with the values of this point."""
    return list(HydraConfig.get().overrides.task)


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved config as plain data, ready to be written as yaml."""
    return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def options(group: str) -> list[str]:
    """Names of a group's files, those of a user's own folders among them."""
    return sorted({path.stem for conf in (CONF, *own_confs()) for path in (conf / group).glob("*.yaml")})


def every(name: str) -> list[str]:
    """The override that gives a command every file of a group, as `metric=[cmmd,fid]`; most have none."""
    group = EVERY.get(name)
    return [] if group is None else [f"{group}=[{','.join(options(group))}]"]


def check(name: str, arguments: Iterable[str], *, sweep: bool = False) -> None:
    """Refuses what is misspelt or of the wrong type, before torch is imported.

    Whether a value is in range is checked by the constructor that it is for.

    Args:
        name: of the command's config.
        arguments: the overrides of the command line.
        sweep: whether a key may have several values, to be tried one after the other.

    Raises UserError for a key or value that is not valid, with the nearest one that is.
    """
    overrides = [parsed(argument) for argument in arguments]
    for override in overrides:
        if override.is_sweep_override() and not sweep:
            raise UserError(
                f"{override.input_line} lists several values: quote a text with commas, write a list in [ ],"
                " or add --multirun to run each"
            )
    groups = [override for override in overrides if (CONF / override.key_or_group).is_dir()]
    for override in groups:
        check_group(override, name)
    chosen = [each.input_line or "" for each in groups if not each.is_sweep_override()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            config = compose(name, overrides=[*every(name), *chosen])
    except ConfigCompositionException as error:
        twice = re.match(r"(?:Multiple values for )?(\w+)(\.| appears more than once)", str(error))
        typed = [each for each in chosen if twice and each.lstrip("+").startswith(f"{twice[1]}=")]
        if not typed:
            raise
        remedy = "keep one of them" if typed[1:] else f"write {typed[0].lstrip('+')}, without the plus"
        raise UserError(f"{' '.join(typed)}: {twice[1]} would be chosen twice: {remedy}") from error
    known = sorted(key_paths(config))
    for override in overrides:
        if override not in groups and not override.key_or_group.startswith("hydra"):
            check_value(override, config, known, lists=LISTS.get(name, ()))


def parsed(argument: str) -> Override:
    """An override as Hydra reads it; UserError with what to type instead, if Hydra can't."""
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException as error:
        if "=" not in argument:
            raise UserError(f"{argument!r} is not of the form key=value") from error
        typed = quoted(argument)
        typed = shlex.quote(typed) if set(typed) & set('"$`\\!') else f'"{typed}"'
        raise UserError(f"{argument} can't be read, as its value needs quotes: type {typed}") from error


def quoted(argument: str) -> str:
    """`key=value` with its value in Hydra's quotes."""
    key, _, value = argument.partition("=")
    inner = re.sub(r"(\\*)('|$)", lambda match: 2 * match[1] + match[2].replace("'", r"\'"), value)
    return f"{key}='{inner}'"


def is_override(argument: str) -> bool:
    """Whether an argument is `key=value` or `~key`, and not an option such as `--cfg job`."""
    return re.match(r"~|[+\w][^=]*=", argument) is not None


def quoted_path(argument: str) -> str:
    """An argument as it is; a path that Hydra can't read, as it may hold `#`, `{` or `ü`, gets its quotes."""
    if not re.match(r"[\w.+~][\w.+~-]*=(/|~/|\.{1,2}/)", argument):
        return argument
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return quoted(argument)
    return argument


def check_group(override: Override, command: str) -> None:
    """Refuses an option that its group doesn't have, and a group that the command would not look at."""
    group, value = override.key_or_group, override.value()
    names = options(group)
    if group in OPTIONAL_GROUPS and not override.is_add() and not override.is_delete():
        raise UserError(f"write +{group}={value}, with a plus: no {group} is chosen by default")
    if (value is None or override.is_delete()) and group not in (*OFF, *OPTIONAL_GROUPS):
        raise UserError(f"{group} can't be left out: the command reads it; there are: {', '.join(names)}")
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, str) and each not in names:
            there = f"{nearest(each, names)}; there are: {', '.join(names)}"
            raise UserError(f"there is no {group} {each!r}{there}")
    if command not in READERS.get(group, (command,)):
        raise UserError(f"{group} has no place in ldm.{command}, only in {', '.join(READERS[group])}")


def check_value(
    override: Override, config: DictConfig, known: list[str], *, lists: Sequence[str] = ()
) -> None:
    """Refuses a key that is not `known`, or a value of another type; `lists` may have a list of values."""
    key = override.key_or_group
    parent = key.rpartition(".")[0]
    if key not in known and not (override.is_add() and parent in known):
        names = known + [group.name for group in CONF.iterdir() if group.is_dir()]
        raise UserError(f"there is no key {key!r}{nearest(key, names)}")
    if override.is_delete() and not parent:
        raise UserError(f"{key} can't be removed: the command reads it")
    node = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    is_null = override.is_delete() or (not override.is_sweep_override() and override.value() is None)
    # of an argument, the constructor that takes it decides
    is_needed = parent and parent not in PARTS and "_target_" not in OmegaConf.select(config, parent)
    if is_null and is_needed and OmegaConf.is_dict(node) and "_target_" in node:
        raise UserError(f"{key} can't be left out: the command reads it")
    if override.is_delete() or override.is_sweep_override() or key not in known:
        return
    if key in lists and isinstance(override.value(), list):
        return
    check_type(key, override.value(), node)


def check_type(key: str, value: Any, default: Any) -> None:
    """Refuses a value whose type is not its default's; an interpolation or a default of null takes any."""
    if default is None or (isinstance(value, str) and "${" in value):
        return
    if value is None:
        if isinstance(default, str):  # a number or an object may be optional; a name or a path is not
            raise UserError(f"{key}=null is empty, expected text like {default!r}")
        return
    accepted = ACCEPTED.get(kind := type(default))
    # type, not isinstance: true is an int to Python
    if accepted and type(value) not in accepted:
        raise UserError(f"{key}={value} is {type(value).__name__}, expected {kind.__name__} like {default}")


def key_paths(config: DictConfig) -> list[str]:
    """Every dotted key of a config, inner nodes too."""
    return [key for key, _ in _nodes(config)]


def repeated_keys(config: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys whose value is another key's (`${other}`), each with that key."""
    for key, node in _nodes(config):
        is_reference = node is not None and node._is_interpolation()
        if is_reference and (whole := re.fullmatch(r"\$\{([\w.]+)\}", node._value())):
            yield key, whole[1]


def _nodes(config: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a config with its node, unresolved; None for a value that is still missing."""
    for key in config:
        node = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        yield f"{prefix}{key}", node
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _nodes(node, prefix=f"{prefix}{key}.")


def _texts(node: Any) -> Iterator[str]:
    """Every text in a tree of plain data; of a config, the paths are among them."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _texts(child)
