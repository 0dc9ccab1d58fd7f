"""For programs that know one latent scale: shift and scale of each channel, moved into the weights."""

from collections.abc import Mapping

import torch
from torch import Tensor

READ, READ_BIAS = "to_moments.weight", "to_moments.bias"
WRITE, WRITE_BIAS = "from_latents.weight", "from_latents.bias"


def has_one_scale(latents: Mapping[str, list[float]]) -> bool:
    """Whether all channels share one scale and none is shifted, as StableDiffusionPipeline wants them."""
    return not any(latents["shift"]) and len(set(latents["scale"])) == 1


def folded(state: Mapping[str, Tensor], latents: Mapping[str, list[float]]) -> dict[str, Tensor]:
    """The autoencoder whose own latents are (z - shift) * scale, so that their scale is 1.

    Both maps that touch the latents are 1x1 convolutions, so this is exact but for rounding: the means are
    shifted and scaled, the log-variances grow by 2 log(scale), the decoder's first map undoes it.
    """
    shift, scale = (torch.tensor(latents[name], dtype=torch.float64) for name in ("shift", "scale"))
    factor = torch.cat([scale, torch.ones_like(scale)])
    offset = torch.cat([-shift * scale, 2 * scale.log()])
    read, read_bias, write, write_bias = (
        state[name].double() for name in (READ, READ_BIAS, WRITE, WRITE_BIAS)
    )
    changed = {
        READ: read * factor[:, None, None, None],
        READ_BIAS: read_bias * factor + offset,
        WRITE: write / scale[None, :, None, None],
        WRITE_BIAS: write_bias + write[:, :, 0, 0] @ shift,
    }
    return {**state, **{name: tensor.to(state[name].dtype) for name, tensor in changed.items()}}
