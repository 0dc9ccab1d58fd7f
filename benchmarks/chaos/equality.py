"""Whether two trainings have come to the same state, to the bit."""

from collections.abc import Mapping
from typing import Any

import torch


def compared(state: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: weights, averages, moments, learning rates, step and place in the stream."""
    names = ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "global_step")
    stream = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return {name: state[name] for name in names} | {"stream": stream}


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two nested states are not equal to the bit."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        return [line for key in ours for line in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        return [line for i in range(len(ours)) for line in differences(ours[i], theirs[i], f"{path}/{i}")]
    if isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [path]
    return [] if type(ours) is type(theirs) and ours == theirs else [path]
