"""A config-driven laboratory for text-to-image latent diffusion."""

from typing import Any

__version__ = "0.1.0"


class UserError(ValueError):
    """A user's mistake, in one sentence: what is wrong, the limit, and what to type instead.

    Commands print the sentence alone and exit with status 1; any other error is a fault of the program and
    shows its traceback. It lives here for networks and samplers, which import nothing else of ldm.
    """


class NotFinite(UserError, FloatingPointError):
    """Numbers of a training or of its pictures have become NaN or infinite."""


def send(tensor: Any, device: Any) -> Any:
    """A tensor on a device; from the host by pinned memory, so that it doesn't wait for the copy."""
    on_host = tensor.device.type == "cpu"
    pinned = tensor.pin_memory() if on_host and device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=on_host)
