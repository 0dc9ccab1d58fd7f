"""Linear layers of a network that samples with few rows on a CPU: weights packed once for many calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def packed(net: object) -> Iterator[None]:
    """Context in which a network's linear layers multiply by copies of their weights in oneDNN's layout.

    Results differ by the rounding of float32 sums. Nothing changes with gradients or autocast, on other
    devices or in other dtypes, for sharded weights, or for a compiled network, which would be traced again.

    The weights must not change meanwhile, and only one thread may use the network. The copies take as much
    memory as the weights.
    """
    # `F.linear` takes float32 weights as stored. On an AMD EPYC with AVX-512 (one thread; torch 2.14)
    # packed ones took 0.46 to 0.91 of its time for 8 rows at ten shapes from 192x192 to 3072x1024, and 0.81
    # to 0.91 for 1,024 rows; a single row of a small layer took up to 1.7, but chunks have 8 rows or more.
    layers = _layers(net) if _is_fast() else []
    for layer in layers:
        # an attribute hides the method of the class: no layer is replaced, and `state_dict` stays the same
        layer.forward = partial(_product, _pack(layer.weight), layer.bias)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_fast() -> bool:
    """Whether this CPU and the way the network is called profit; torch has the operators for its compiler."""
    return bool(
        torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and torch.backends.cpu.get_cpu_capability().startswith("AVX")
        and not torch.is_grad_enabled()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")  # private, so a later torch may lack it
        and not torch.is_autocast_enabled("cpu")
    )


def _layers(net: object) -> list[nn.Linear]:
    """The layers to pack: float32 on a CPU, not packed yet, no subclasses; none of a compiled network."""
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    if any(module._compiled_call_impl is not None for module in modules):
        return []
    return [
        module
        for module in modules
        if type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and (module.weight.device.type, module.weight.dtype) == ("cpu", torch.float32)
        and "forward" not in vars(module)
    ]


def _pack(weight: Float[Tensor, "d c"]) -> Tensor:
    """The weight in a layout of oneDNN's own, which only `_product` can read."""
    return torch.ops.mkldnn._reorder_linear_weight.default(weight.detach())


def _product(
    weight: Tensor, bias: Float[Tensor, " d"] | None, x: Float[Tensor, "*b c"]
) -> Float[Tensor, "*b d"]:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
