"""From data to objects: `_target_` trees made into what they name, and nothing that isn't on a list.

A config that lies beside downloaded weights is code if any callable may be named in it. Here a target must
start with an allowed prefix and must be *defined* there: an alias such as `ldm.data.index.json.loads` is as
foreign as the module that it leads to.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from ldm import UserError

SCALARS: dict[Any, tuple[type, ...]] = {  # annotation -> types of a value
    int: (int,),
    float: (float, int),
    bool: (bool,),
    str: (str,),
    NoneType: (NoneType,),
}
NETWORKS = ("ldm.models.", "ldm.diffusion.")
MOVED = {  # names in configs and bundles of earlier versions -> where these are now
    "ldm.metrics.cmmd.Cmmd": "ldm.metrics.kernel_distance.Cmmd",
    "ldm.metrics.lpips.Lpips": "ldm.metrics.perceptual.Lpips",
    "ldm.metrics.nearest.PictureRecall": "ldm.metrics.retrieval.PictureRecall",
    "ldm.metrics.pixels.Pixels": "ldm.metrics.features.Pixels",
    "ldm.metrics.r_precision.RPrecision": "ldm.metrics.clip_score.RPrecision",
    "ldm.metrics.vendi.VendiScore": "ldm.metrics.diversity.VendiScore",
}


def construct(node: Any, *, allowed: Iterable[str] = NETWORKS) -> Any:
    """Builds a tree of plain data: mappings with `_target_` become calls with the other keys as arguments.

    With `_partial_: true` the call is left open (`functools.partial`). Lists and mappings are followed.

    Raises:
        UserError: a target that is not on the list, does not exist, or has other arguments.
    """
    if isinstance(node, Mapping):
        built = {key: construct(child, allowed=allowed) for key, child in node.items()}
        if "_target_" not in built:
            return built
        name = built.pop("_target_")
        target = locate(name, allowed=allowed)
        is_partial = built.pop("_partial_", False)
        if name.startswith("ldm."):
            _check_arguments(name, target, built)
        try:
            if is_partial:
                signature(target).bind_partial(**built)
                return partial(target, **built) if built else target
            return target(**built)
        except TypeError as error:
            raise UserError(f"_target_ {name!r} can't be called with what it is given: {error}") from error
    if isinstance(node, list | tuple):
        return [construct(child, allowed=allowed) for child in node]
    return node


def locate(name: object, *, allowed: Iterable[str]) -> Any:
    """The class, function or class method with a dotted name.

    Raises:
        UserError: the name is not under an allowed prefix, does not exist, or is an alias of something else.
    """
    prefixes = tuple(allowed)
    if not isinstance(name, str) or not name.startswith(prefixes):
        raise UserError(f"_target_ {name!r} is refused: targets start with one of {', '.join(prefixes)}")
    module_name, _, attribute = MOVED.get(name, name).rpartition(".")
    try:
        owner = _module_or_class(module_name)
        found = getattr(owner, attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"_target_ {name!r} does not exist ({error})") from error
    if not callable(found) or not f"{getattr(found, '__module__', '')}.".startswith(prefixes):
        raise UserError(f"_target_ {name!r} is refused: it is not defined under {', '.join(prefixes)}")
    return found


def accepts(function: Any, contract: Any) -> bool:
    """Whether a function can be called as `Callable[[...], ...]` or a protocol's `__call__` says."""
    if not callable(function):
        return False
    if get_origin(contract) is Callable:
        wanted = get_args(contract)[0]
        places, names = (None if wanted is Ellipsis else len(wanted)), []
    else:
        _, *wanted = signature(contract.__call__).parameters.values()
        names = [each.name for each in wanted if each.kind is Parameter.KEYWORD_ONLY]
        places = len(wanted) - len(names)
    try:
        if places is not None:
            signature(function).bind(*[None] * places, **dict.fromkeys(names))
    except TypeError:
        return False
    return True


def _check_arguments(name: str, target: Any, arguments: Mapping[str, Any]) -> None:
    """Refuses a text where a number belongs, a schedule in a sampler's place, and the like.

    The annotations of `target` say what belongs where: scalars, and functions with their arguments.

    Raises:
        UserError: the argument.
    """
    for key, parameter in signature(target).parameters.items():
        annotation = parameter.annotation
        kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        if key not in arguments or any(_suits(arguments[key], kind) for kind in kinds):
            continue
        words = " or ".join(getattr(kind, "__name__", "a function") for kind in kinds)
        if not all(kind in SCALARS for kind in kinds):
            words = f"a _target_ of another kind ({words})"
        value = str(arguments[key])[:40]
        raise UserError(f"_target_ {name!r} can't be called with {key}={value!r}: it must be {words}")


def _suits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotation's kind; only scalars and functions are looked at."""
    if kind in SCALARS:
        return type(value) in SCALARS[kind]
    if get_origin(kind) is Callable or (getattr(kind, "_is_protocol", False) and "__call__" in vars(kind)):
        return accepts(value, kind)
    return True


def _module_or_class(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError:
        module_name, _, class_name = name.rpartition(".")
        if not module_name:
            raise
        return getattr(import_module(module_name), class_name)
