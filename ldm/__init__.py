"""A config-driven laboratory for text-to-image latent diffusion."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device

__version__ = "0.1.0"


class UserError(ValueError):
    """A user's mistake, in one sentence: what is wrong, the limit, and what to type instead.

    Commands print the sentence alone and exit with status 1; any other error is a fault of the program and
    shows its traceback. It lives here so that networks and samplers, which import nothing else of ldm, can
    raise it.
    """


class NotFinite(UserError, FloatingPointError):
    """Numbers of a training or of its pictures have become NaN or infinite."""


def send(tensor: "Tensor", to: "device") -> "Tensor":
    """A tensor on a device. A copy from the host neither waits for the device's queue nor blocks the host."""
    on_host = tensor.device.type == "cpu"
    if on_host and to.type == "cuda":
        tensor = tensor.pin_memory()  # what is not pinned would be copied only once the queue is empty
    return tensor.to(to, non_blocking=on_host)
