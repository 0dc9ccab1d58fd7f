"""Networks on the meta device: shapes without memory, to be counted or to load weights into."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock, get_ident
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from ldm import UserError

IN_PLACE = re.compile(r"(trunc_|kaiming_|xavier_)?(normal|uniform)_|mul_|div_")  # makes initial values
# torch's hooks are of all threads: one must not be added or removed while another thread calls them
ONE_AT_A_TIME = RLock()


@contextmanager
def meta_init(*, most: int | float = math.inf) -> Iterator[None]:
    """Context in which networks are built on the meta device, without random initialisation.

    PyTorch's random numbers and arithmetic of meta tensors import its compiler, seconds: networks make their
    initial values by functions of `IN_PLACE`, which are skipped here.

    Raises UserError at the first weight beyond `most` of all networks together, an empty tensor counted as
    one, so that a forged config takes no more time than its file is long.
    """
    count, owner = 0, get_ident()  # torch's hook sees the networks of other threads, too

    def counted(module: nn.Module, name: str, weight: Tensor | None) -> None:
        """Adds one weight; raises UserError for the first beyond `most`."""
        nonlocal count
        count += 0 if weight is None or get_ident() != owner else max(1, weight.numel())
        if count > most:
            raise UserError(f"the network has more than {most:,} weights, far more than the file")

    with ONE_AT_A_TIME, torch.device("meta"), _NothingDrawn():
        hook = register_module_parameter_registration_hook(counted)
        try:
            yield
        finally:
            hook.remove()


class _NothingDrawn(TorchFunctionMode):
    """Skips the calls that fill tensors with random numbers, or scale these."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if IN_PLACE.fullmatch(func.__name__):  # a meta tensor has no memory to fill
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
