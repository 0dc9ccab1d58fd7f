"""What a `_target_` tree passes to its constructor, defaults included: what an export writes down."""

import inspect
from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.construct import NETWORKS, locate


def arguments(spec: Mapping[str, Any], *, target: str, what: str) -> dict[str, Any]:
    """Arguments of a tree whose `_target_` must be `target`; nested trees stay as they are.

    Raises:
        UserError: another target, which the format that is written has no place for.
    """
    if spec.get("_target_") != target:
        raise UserError(
            f"{what} is a {spec.get('_target_')}, which has no place there: only {target} has one"
        )
    parameters = inspect.signature(locate(target, allowed=NETWORKS)).parameters
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return defaults | {key: value for key, value in spec.items() if not key.startswith("_")}


def refuse_options(what: str, options: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Refuses each option whose value is not the only one that the other format has.

    Raises:
        UserError: one sentence with every such option.
    """
    wrong = [f"{key}={options[key]} (only {value})" for key, value in only.items() if options[key] != value]
    if wrong:
        raise UserError(f"{what} can't be written for diffusers, which lacks {', '.join(wrong)}")
