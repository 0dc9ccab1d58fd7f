"""Shift and scale that give an autoencoder's latents mean 0 and variance 1, from a sample of pictures."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.codec import to_float
from ldm.models.vae import AutoencoderKL
from ldm.randomness import keyed


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Per channel, (c,): a scaled latent is (latent - shift) * scale.

    Attributes:
        shift_error: standard error of the shift, in standard deviations of the latents.
        scale_error: relative standard error of the scale.
        pictures, of: how many pictures were encoded, of how many in the set.
    """

    shift: Float[Tensor, " c"]
    scale: Float[Tensor, " c"]
    shift_error: Float[Tensor, " c"]
    scale_error: Float[Tensor, " c"]
    pictures: int
    of: int

    def __str__(self) -> str:
        if self.pictures == self.of:
            return f"latent statistics of all {self.of} pictures"
        shift, scale = float(self.shift_error.max()), float(self.scale_error.max())
        return (
            f"latent statistics of {self.pictures} of {self.of} pictures: standard errors of at most "
            f"{100 * shift:.2g} % of a standard deviation (shift) and {100 * scale:.2g} % (scale)"
        )

    def record(self) -> dict[str, object]:
        """What a bundle tells of how they were measured."""
        errors = {name: getattr(self, name).tolist() for name in ("shift_error", "scale_error")}
        return {"pictures": self.pictures, "of": self.of} | errors


def sampled(total: int, *, count: int, seed: int) -> list[int]:
    """The numbers of `count` pictures of `total`, or of all, in order: a function of the seed."""
    if count >= total:
        return list(range(total))
    keys = [keyed.key(seed, number, "latent statistics") for number in range(total)]
    return sorted(np.argsort(keys)[:count].tolist())


@torch.no_grad()
def measure_latents(
    net: AutoencoderKL, batches: Iterable[UInt8[Tensor, "b 3 h w"]], *, of: int
) -> LatentStatistics:
    """The statistics over some pictures, summed in float64.

    The variance of a sampled latent is that of the posterior means plus the mean of the posterior's own. The
    errors are those of a sample of whole pictures, drawn without replacement from a set of `of`: neighbouring
    values of a picture are alike, so only pictures count as independent.
    """
    device = next(net.parameters()).device
    sums, count, rows = torch.zeros(3, net.latent_channels, dtype=torch.float64, device=device), 0, []
    for pictures in batches:
        posterior = net.posterior(to_float(pictures.to(device)))
        mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
        moments = (mean, mean.square(), variance)
        sums += torch.stack([each.sum(dim=(0, 2, 3)) for each in moments])
        rows.append(torch.stack([each.mean(dim=(2, 3)) for each in moments]))
        count += mean[:, 0].numel()
    shift, square, noise = sums / count
    variance = square - shift.square() + noise
    means, squares, noises = torch.cat(rows, dim=1)  # each: pictures, channels
    number = len(means)
    remaining = (1 - number / of) / number  # variance of a mean, per variance of a picture
    influence = squares + noises - 2 * shift * means  # of a picture on the variance
    shift_error = (means.var(dim=0, correction=0) * remaining / variance).sqrt()
    scale_error = (influence.var(dim=0, correction=0) * remaining).sqrt() / (2 * variance)
    return LatentStatistics(
        shift=shift.float().cpu(),
        scale=variance.rsqrt().float().cpu(),
        shift_error=shift_error.float().cpu(),
        scale_error=scale_error.float().cpu(),
        pictures=number,
        of=of,
    )
