"""Operators for which the host waits for a device, counted while a training runs."""

from typing import Any

import torch
from pytorch_lightning import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = (aten._local_scalar_dense, aten.nonzero, aten.equal)  # the host needs their values


class Synchronisations(TorchDispatchMode):
    """Notes each operator that makes the host wait for a device of a kind, forward and backward.

    These are reads of values, and copies between host and device that block. On the meta device, which holds
    no values, zeros are given in their place: what a training on a GPU does can be counted without one.

    Attributes:
        found: the names of these operators, in their order.
        launched: how many operators had a tensor on the device.
        dtypes: of all tensors that operators made on the device.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.found: list[str] = []
        self.launched = 0
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator, or stands in for it, and notes what it makes the host wait for."""
        kwargs = kwargs or {}
        packet, inputs = func.overloadpacket, self._there((args, kwargs))
        if inputs and packet in READS:
            self.found.append(str(func))
            if self.kind == "meta":
                return stand_in(packet, inputs[0])
        if packet is aten._to_copy and inputs and kwargs.get("device") == torch.device("cpu"):
            self._note_copy(func, kwargs.get("non_blocking"))
            if self.kind == "meta":
                return torch.zeros(inputs[0].shape, dtype=kwargs.get("dtype") or inputs[0].dtype)
        out = func(*args, **kwargs)
        outputs = self._there(out)
        if packet is aten.lift_fresh and outputs:  # torch.tensor(values, device=...)
            self.found.append(str(func))
        elif outputs and not inputs and packet is aten._to_copy:
            self._note_copy(func, kwargs.get("non_blocking"))
        elif packet is aten.copy_ and args[0].device.type != args[1].device.type:
            self._note_copy(func, kwargs.get("non_blocking") or args[2:] == (True,))
        self.launched += bool(inputs or outputs)
        self.dtypes |= {tensor.dtype for tensor in outputs}
        return out

    def _note_copy(self, func: Any, asynchronous: bool | None) -> None:
        if not asynchronous:
            self.found.append(str(func))

    def _there(self, tree: Any) -> list[Tensor]:
        return [
            leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.device.type == self.kind
        ]


def stand_in(packet: Any, tensor: Tensor) -> Any:
    """What an operator that reads values gives for zeros."""
    if packet is aten.nonzero:
        return tensor.new_empty((0, tensor.ndim), dtype=torch.int64)
    return True if packet is aten.equal else torch.zeros((), dtype=tensor.dtype).item()


class BySteps(Callback):
    """Splits what a mode finds by steps, each from the start of its batch to the start of the next.

    Attributes:
        steps: the operators of each step; the first entry is what comes before step 1.
    """

    def __init__(self, mode: Synchronisations) -> None:
        self.mode = mode
        self.steps: list[list[str]] = []
        self._seen = 0

    def on_train_batch_start(self, *_: Any) -> None:
        """Closes the step before."""
        self.steps.append(self.mode.found[self._seen :])
        self._seen = len(self.mode.found)

    def on_train_end(self, *_: Any) -> None:
        """Closes the last step."""
        self.on_train_batch_start()
