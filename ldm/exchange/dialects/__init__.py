"""The parts of a pipeline as others name them: tables of tensors' names and configs, one library a module."""

import inspect
from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.construct import NETWORKS, locate


def arguments(spec: Mapping[str, Any], *, target: str, what: str) -> dict[str, Any]:
    """The arguments of a `_target_` tree with their defaults; nested trees stay as they are.

    Args:
        target: the only target that the other format has a place for.
        what: the part that the tree describes, for the sentence.

    Raises:
        UserError: another target.
    """
    if spec.get("_target_") != target:
        raise UserError(
            f"{what} is a {spec.get('_target_')}, which has no place there: only {target} has one"
        )
    parameters = inspect.signature(locate(target, allowed=NETWORKS)).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    return defaults | {key: value for key, value in spec.items() if not key.startswith("_")}


def refuse_options(what: str, options: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Refuses each option whose value is not the only one that diffusers has.

    Raises:
        UserError: one sentence with every such option.
    """
    wrong = [f"{key}={options[key]} (only {value})" for key, value in only.items() if options[key] != value]
    if wrong:
        raise UserError(f"{what} can't be written for diffusers, which lacks {', '.join(wrong)}")
