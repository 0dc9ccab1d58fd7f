"""Builds the objects that `_target_` keys in plain data name, from an allowed list of packages alone.

A config that lies beside downloaded weights is code if any callable may be named in it. Here a target must
start with an allowed prefix and must be *defined* there: an alias such as `ldm.data.index.json.loads` is as
foreign as the module that it leads to. The environment variable LDM_PACKAGES adds a user's own packages.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from ldm import UserError

PACKAGES = "LDM_PACKAGES"  # environment variable: a user's own packages, comma-separated
CONFIG_DIR = "LDM_CONFIG_DIR"  # environment variable: a user's own folder of yaml files; --config-dir sets it
SCALARS: dict[Any, tuple[type, ...]] = {  # annotation -> types of a value
    int: (int,),
    float: (float, int),
    bool: (bool,),
    str: (str,),
    NoneType: (NoneType,),
}
LISTS = (Sequence, Iterable, list)
NETWORKS = ("ldm.models.", "ldm.diffusion.")
MOVES = Path(__file__).with_name("assets") / "moved.json"


def construct(node: Any, *, allowed: Iterable[str] = NETWORKS) -> Any:
    """Builds a tree of plain data: mappings with `_target_` become calls with the other keys as arguments.

    With `_partial_: true` the call is left open (`functools.partial`). Lists and mappings are followed.

    Raises UserError for a target that is not on the list, does not exist, or has other arguments.
    """
    if isinstance(node, Mapping):
        built = {key: construct(child, allowed=allowed) for key, child in node.items()}
        if "_target_" not in built:
            return built
        name = built.pop("_target_")
        target = locate(name, allowed=allowed)
        is_partial = built.pop("_partial_", False)
        check_arguments(name, target, built, is_partial=is_partial)
        if is_partial:
            return partial(target, **built) if built else target
        return target(**built)  # an error from inside is the target's own, and shows its traceback
    if isinstance(node, list | tuple):
        return [construct(child, allowed=allowed) for child in node]
    return node


def locate(name: object, *, allowed: Iterable[str]) -> Any:
    """The class, function or class method with a dotted name; UserError if it is foreign or missing."""
    prefixes = (*allowed, *(f"{package}." for package in own_packages()))
    if not isinstance(name, str) or not name.startswith(prefixes):
        raise UserError(f"_target_ {name!r} is refused: targets start with one of {', '.join(prefixes)}")
    module_name, _, attribute = moved(name).rpartition(".")
    try:
        owner = _module_or_class(module_name)
        found = getattr(owner, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_ {name!r} does not exist ({error})") from error
    if not callable(found) or not f"{getattr(found, '__module__', '')}.".startswith(prefixes):
        raise UserError(f"_target_ {name!r} is refused: it is not defined under {', '.join(prefixes)}")
    return found


def arguments_of(target: Any) -> Signature:
    """The signature of a callable; in that of a class, `**others` are the arguments of the class above it."""
    known = signature(target)
    if "others" not in known.parameters:
        return known
    above = arguments_of(target.__mro__[1]).parameters
    merged = {**above, **{name: each for name, each in known.parameters.items() if name != "others"}}
    return known.replace(parameters=list(merged.values()))


def moved(name: str) -> str:
    """Where a name of an earlier version's configs and bundles is now; other texts as they are."""
    module, _, attribute = name.rpartition(".")
    now = moves().get(f"{module}.*")  # of a module whose objects are all in another one now
    return moves().get(name) or (f"{now}.{attribute}" if now else name)


@cache
def moves() -> dict[str, str]:
    """Objects, and modules as `ldm.module.*`, as earlier versions name them, with their present names."""
    names: dict[str, str] = json.loads(MOVES.read_text(encoding="utf-8"))
    return names


def own_packages() -> list[str]:
    """The packages and modules that the environment variable LDM_PACKAGES adds to every allowed list.

    Only who runs a command can set it: no config and no bundle can make it longer. Raises UserError for what
    is no name of a package, or is one of Python's own modules.
    """
    names = [name.strip() for name in os.environ.get(PACKAGES, "").split(",") if name.strip()]
    for name in names:
        if not name.isidentifier() or name in (*sys.stdlib_module_names, "builtins"):
            raise UserError(f"{PACKAGES}={name}: name a package of your own, as in {PACKAGES}=my_systems")
    return names


def own_confs() -> list[Path]:
    """A user's own config folders, searched after ours: LDM_CONFIG_DIR, and `conf` of LDM_PACKAGES."""
    folders = [Path(path).absolute()] if (path := os.environ.get(CONFIG_DIR)) else []
    if folders and not folders[0].is_dir():
        raise UserError(f"--config-dir={path}: there is no such folder")
    for name in own_packages():
        found = find_spec(name)
        if found is None or found.origin is None:
            raise UserError(f"LDM_PACKAGES={name}: there is no such package: put its folder on PYTHONPATH")
        folder = Path(found.origin).parent / "conf"
        folders += [folder] if folder.is_dir() else []
    return folders


def accepts(function: Any, contract: Any) -> bool:
    """Whether a function can be called as `Callable[[...], ...]` or a protocol's `__call__` says."""
    if not callable(function):
        return False
    if get_origin(contract) is Callable:
        wanted, names = get_args(contract)[0], []
        if wanted is Ellipsis:
            return True
    else:
        _, *wanted = signature(contract.__call__).parameters.values()
        names = [each.name for each in wanted if each.kind is Parameter.KEYWORD_ONLY]
    try:
        signature(function).bind(*[None] * (len(wanted) - len(names)), **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def check_arguments(name: str, target: Any, arguments: Mapping[str, Any], *, is_partial: bool) -> None:
    """Compares arguments with the signature of what they are for, before it is called.

    Raises UserError for an argument that is missing (unless others may follow: `is_partial`), of another
    type, or unknown, with the nearest known one.
    """
    try:
        known = arguments_of(target)
    except ValueError:  # some functions that are written in C have none
        return
    try:
        known.bind_partial(**arguments)  # first: an unknown argument explains a missing one
        if not is_partial:
            known.bind(**arguments)
    except TypeError as error:
        strange = next((key for key in arguments if key not in known.parameters), None)
        hint = "" if strange is None else nearest(str(strange), known.parameters)
        raise UserError(f"_target_ {name!r} can't be called with these arguments: {error}{hint}") from None
    if name.startswith("ldm."):  # other packages' annotations are documentation at best
        _check_values(name, known.parameters, arguments)


def nearest(name: str, names: Iterable[str]) -> str:
    """The words ", did you mean X?", or none where nothing is near."""
    found = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {found[0]!r}?" if found else ""


def _check_values(name: str, parameters: Mapping[str, Parameter], arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that don't fit their annotations, such as a text where a number belongs."""
    for key, value in arguments.items():
        annotation = parameters[key].annotation if key in parameters else Any
        if not _fits(value, annotation):
            given = f"{key}={str(value)[:40]!r}: it must be {_words(annotation)}"
            raise UserError(f"_target_ {name!r} can't be called with {given}")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value fits an annotation; values and annotations of other forms than these always do."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in SCALARS:
        return type(value) in SCALARS[annotation]
    if origin in (UnionType, Union):
        return any(_fits(value, each) for each in inner)
    if is_function(annotation):
        return accepts(value, annotation)
    if value is None and isinstance(annotation, type):
        return annotation is object
    if not isinstance(value, str | int | float | list | Mapping | None):
        return True
    if origin in LISTS:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    return origin is not Mapping or isinstance(value, Mapping)


def is_function(annotation: Any) -> bool:
    """Whether an annotation is a Callable's, or a protocol of one."""
    is_protocol = getattr(annotation, "_is_protocol", False)
    return get_origin(annotation) is Callable or (is_protocol and "__call__" in vars(annotation))


def _words(annotation: Any) -> str:
    """An annotation as a part of a sentence."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if is_function(annotation):
        return f"a _target_ of another kind ({getattr(annotation, '__name__', 'a function')})"
    if origin in (UnionType, Union):
        return " or ".join(map(_words, inner))
    if origin in LISTS:
        return f"a list of {_words(inner[0])}"
    return "a mapping" if origin is Mapping else getattr(annotation, "__name__", str(annotation))


def _module_or_class(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module_name, _, class_name = name.rpartition(".")
        if not module_name:
            raise
        return getattr(import_module(module_name), class_name)
