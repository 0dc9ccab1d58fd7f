"""What a computation takes, counted operator by operator: most bytes alive at once, and operations."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Meter(TorchDispatchMode):
    """Counts what operators make while it is on, on any device, in the forward and the backward pass.

    A storage counts from the operator that made it until nothing holds it. What operators need while they
    run, and what an allocator rounds up, is not seen.

    Attributes:
        peak: most bytes alive at once, of storages made under this meter and not forgotten.
        operations: multiplications and additions of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.operations = 0
        self._alive: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        inputs = {
            id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        out = func(*args, **kwargs)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in inputs:
                self._meet(leaf.untyped_storage())
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **kwargs, out_val=out)
        return out

    def forget(self, tensor: Tensor) -> None:
        """Counts a tensor no longer."""
        self._leave(id(tensor.untyped_storage()))

    def _meet(self, storage: UntypedStorage) -> None:
        key = id(storage)
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._total += storage.nbytes()
            self.peak = max(self.peak, self._total)
            weakref.finalize(storage, self._leave, key).atexit = False

    def _leave(self, key: int) -> None:
        self._total -= self._alive.pop(key, 0)
