"""First stage: a KL autoencoder whose latents the denoiser will learn (Rombach et al. 2022, app. G)."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import to_float
from ldm.data.datamodule import PictureData
from ldm.data.shards import PictureDataset
from ldm.models.vae import AutoencoderKL, Posterior
from ldm.randomness import keyed
from ldm.stages.reconstruction import Reconstructed, ReconstructionStage, absolute_error
from ldm.stages.stage import Weights, check_share

STATISTICS_BATCH = 16  # pictures encoded at once for the statistics of the latents
# (latents, pictures, *, seed, step, least) -> the same, transformed; no side has fewer pixels than `least`
Equivariance = Callable[..., tuple[Tensor, Tensor]]


class Terms(NamedTuple):
    """Parts of the autoencoder's loss, means over the batch."""

    total: Tensor
    pixel: Tensor
    kl: Tensor
    perceptual: Tensor


@dataclass(frozen=True, kw_only=True)
class LatentStatistics:
    """Shift and scale, (c,), that give each channel mean 0 and variance 1: (latent - shift) * scale."""

    shift: Float[Tensor, " c"]
    scale: Float[Tensor, " c"]
    shift_error: Float[Tensor, " c"]  # its standard error, in standard deviations of the latents
    scale_error: Float[Tensor, " c"]  # relative
    pictures: int  # how many were encoded
    of: int  # how many there are in the set

    def __str__(self) -> str:
        if self.pictures == self.of:
            return f"latent statistics of all {self.of} pictures"
        shift, scale = float(self.shift_error.max()), float(self.scale_error.max())
        return (
            f"latent statistics of {self.pictures} of {self.of} pictures: standard errors of at most "
            f"{100 * shift:.2g} % of a standard deviation (shift) and {100 * scale:.2g} % (scale)"
        )

    def record(self) -> dict[str, object]:
        """How they were measured, as a bundle stores it."""
        errors = {name: getattr(self, name).tolist() for name in ("shift_error", "scale_error")}
        return {"pictures": self.pictures, "of": self.of} | errors


def sampled(total: int, *, count: int, seed: int) -> list[int]:
    """The numbers of `count` pictures of `total`, or of all, in order; a function of the seed alone."""
    if count >= total:
        return list(range(total))
    # the smallest hashes: a sample of more pictures holds one of fewer
    keys = [keyed.key(seed, number, "latent statistics") for number in range(total)]
    return sorted(np.argsort(keys)[:count].tolist())


@torch.no_grad()
def measure_latents(
    net: AutoencoderKL, batches: Iterable[UInt8[Tensor, "b 3 h w"]], *, of: int
) -> LatentStatistics:
    """The statistics over some pictures, summed in float64.

    The variance of a sampled latent is that of the posterior means plus the mean of the posterior's own. The
    standard errors are those of a sample of pictures without replacement from a set of `of`: values of one
    picture are correlated, so only pictures count as independent.
    """
    device = next(net.parameters()).device
    rows = []
    for pictures in batches:
        posterior = net.posterior(to_float(pictures.to(device)))
        # float64: the variance is a small difference of large sums
        mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
        rows.append(torch.stack([each.mean(dim=(2, 3)) for each in (mean, mean.square(), variance)]))
    moments = torch.cat(rows, dim=1)
    means, squares, noises = moments  # each: pictures, channels
    shift, square, noise = moments.mean(dim=1)  # all pictures have the same number of latents
    variance = square - shift.square() + noise
    number = len(means)
    remaining = (1 - number / of) / number  # finite-population variance of a mean, per variance of a picture
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


@dataclass(frozen=True, kw_only=True)
class ScalesAndTurns:
    """Latents and pictures of a step, both scaled down by one factor and turned by one angle.

    A decoder that must give the transformed picture makes the latents of a picture transform as it does, and
    these are smoother and easier to generate (EQ-VAE; Kouzelis et al. 2025, sec. 3).

    Args:
        share: of the steps that are transformed. The first never is: a dry run must see the most memory.
        smallest: factor; the sides of the scaled latents are whole numbers, uniform between it and 1. No
            picture is scaled to fewer pixels than the networks of the loss can see.
        turns: by 0, 90, 180 or 270 degrees; else scaled alone.

    Raises UserError for a share outside [0, 1] or a smallest factor outside (0, 1].
    """

    share: float = 0.5
    smallest: float = 0.25
    turns: bool = True

    def __post_init__(self) -> None:
        check_share("equivariance.share", self.share)
        if not 0 < self.smallest <= 1:
            raise UserError(f"equivariance.smallest={self.smallest} must lie in (0, 1], a factor of sides")

    def __call__(
        self,
        latents: Float[Tensor, "b c h w"],
        pictures: Float[Tensor, "b 3 H W"],
        *,
        seed: int,
        step: int,
        least: int = 1,
    ) -> tuple[Float[Tensor, "b c i j"], Float[Tensor, "b 3 I J"]]:
        """Both transformed, or as they are: a function of the seed and the step alone."""
        streams = [f"equivariance {name}" for name in ("share", "scale", "turn")]
        chance, scale, turn = (keyed.real(seed=seed, position=step, stream=each) for each in streams)
        if step == 0 or chance >= self.share:
            return latents, pictures
        rows, columns = latents.shape[-2:]
        smallest = min(1.0, max(self.smallest, least / min(pictures.shape[-2:])))
        fewest = math.ceil(smallest * rows)
        scaled = fewest + int(scale * (rows + 1 - fewest))
        shape = scaled, max(1, round(columns * scaled / rows))
        factor, quarters = pictures.shape[-1] // columns, int(4 * turn) if self.turns else 0
        large = factor * shape[0], factor * shape[1]
        return _transformed(latents, shape, quarters), _transformed(pictures, large, quarters)


def _transformed(maps: Tensor, shape: tuple[int, int], quarters: int) -> Tensor:
    if shape != maps.shape[-2:]:
        # antialiased: what is too fine for the smaller map would else fold into it
        maps = F.interpolate(maps, shape, mode="bilinear", antialias=True)
    return torch.rot90(maps, quarters, dims=(2, 3))


class AutoencoderStage(ReconstructionStage):
    """Trains an autoencoder on L1 + KL, with a perceptual term and a patch discriminator if they are given.

    Args:
        kl_weight: weight of the divergence per latent value against the absolute error per pixel value.
        squared_weight: weight of the squared error beside the absolute one. Where small objects stand before
            a plain background, the absolute error alone leaves them grey for hundreds of steps.
        statistics_pictures: size of the sample that the scale of the latents is measured on at the end. For
            the shipped autoencoder 2,048 pictures of a larger set would give standard errors of at most 1.4 %
            of a standard deviation (shift) and 0.8 % (scale).
        equivariance: changes the latents and the pictures of a training step alike, such as
            `ScalesAndTurns`; None: never.
        others: see `ReconstructionStage`.

    Raises UserError for fewer than two pictures for the statistics.
    """

    def __init__(
        self,
        *,
        net: AutoencoderKL,
        kl_weight: float,
        squared_weight: float = 0.0,
        statistics_pictures: int = 2048,
        equivariance: Equivariance | None = None,
        **others: Any,
    ) -> None:
        super().__init__(net=net, **others)
        if statistics_pictures < 2:
            raise UserError(f"{statistics_pictures=} must be at least 2: latents' scale is measured on them")
        self.statistics_pictures, self.equivariance = statistics_pictures, equivariance
        self.kl_weight, self.squared_weight = kl_weight, squared_weight

    def trained(self, images: Tensor, positions: Tensor) -> Reconstructed:
        """The reconstruction from a sample of the posterior; of some steps, both are transformed."""
        posterior = self.net.posterior(images)
        latents = posterior.sample(self._normal(posterior.mean, positions, "posterior"))
        if self.equivariance is not None:
            # by the step, not by positions: pictures of one batch, and of all ranks, have one size
            least = max(getattr(judge, "least", 1) for judge in (self.perceptual[0], self.discriminator))
            key = {"seed": self.seed, "step": self.global_step}
            latents, images = self.equivariance(latents, images, least=least, **key)
        decoded = self.net.decode(latents)
        return Reconstructed(decoded, images, self.terms(images, decoded, posterior))

    def validated(self, images: Tensor) -> Reconstructed:
        """The reconstruction from the posterior's mean."""
        posterior = self.best.posterior(images)
        decoded = self.best.decode(posterior.mean)
        return Reconstructed(decoded, images, self.terms(images, decoded, posterior))

    def terms(self, images: Tensor, decoded: Tensor, posterior: Posterior) -> Terms:
        """The loss without the adversarial term: errors per value, KL per latent, perceptual distance."""
        # means, not sums as in the released code: the weights then don't depend on the size of the pictures
        pixel = absolute_error(decoded, images, squared_weight=self.squared_weight)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        perceptual = self.perceived(decoded, images)
        total = pixel + self.kl_weight * kl + self.perceptual_weight * perceptual
        return Terms(total=total, pixel=pixel, kl=kl, perceptual=perceptual)

    def latent_statistics(self, pictures: PictureDataset) -> LatentStatistics:
        """The statistics of a sample of `statistics_pictures` pictures, or of all if there are no more."""
        numbers = sampled(len(pictures), count=self.statistics_pictures, seed=self.seed)
        batches = pictures.batches(STATISTICS_BATCH, numbers=numbers)
        bar = tqdm(batches, desc=f"latent statistics of {len(numbers)} pictures", unit="batch")
        return measure_latents(self.best, bar, of=len(pictures))

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: PictureData) -> None:
        """The EMA of the autoencoder with the statistics of its latents."""
        # only now: each change of the weights changes the latents, and with them their shift and scale
        statistics = self.latent_statistics(data.train)
        print(statistics)
        write_bundle(
            path,
            parts={"autoencoder": Part(spec=config["autoencoder"], state=state)},
            settings={
                "latents": {"shift": statistics.shift.tolist(), "scale": statistics.scale.tolist()},
                "latent_statistics": statistics.record(),
                "origin": origin(config),
            },
            dtype=torch.float16,
        )
