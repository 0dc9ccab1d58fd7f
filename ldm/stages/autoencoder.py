"""First stage: a KL autoencoder whose latents the denoiser will learn (Rombach et al. 2022, app. G)."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import to_float, to_uint8
from ldm.data.datamodule import PictureData
from ldm.data.shards import PictureDataset
from ldm.data.stream import PictureBatch
from ldm.distributed.ranks import average, is_first
from ldm.metrics.reconstruction import psnr, ssim
from ldm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldm.models.perceptual import PerceptualDistance
from ldm.models.vae import AutoencoderKL, Posterior
from ldm.randomness import keyed
from ldm.stages.optim import Decay, OptimizerFactory, parameter_groups
from ldm.stages.stage import Augment, NetworkStage

STATISTICS_BATCH = 16  # pictures encoded at once for the statistics of the latents


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


class AutoencoderStage(NetworkStage):
    """Trains an autoencoder on L1 + KL, with a perceptual term and a patch discriminator if they are given.

    With a discriminator the optimisation is manual and alternates; its adversarial term starts at
    `discriminator_start`, with the adaptive weight of Esser et al. 2021.

    Args:
        net: the autoencoder.
        optimizer, decay, augment, seed: see `NetworkStage`.
        kl_weight: weight of the divergence per latent value against the absolute error per pixel value.
        squared_weight: weight of the squared error beside the absolute one. Where small objects stand before
            a plain background, the absolute error alone leaves them grey for hundreds of steps.
        perceptual, perceptual_weight: frozen feature distance and its weight.
        discriminator, discriminator_weight, discriminator_start: the adversary, its weight and first step.
        statistics_pictures: size of the sample that the scale of the latents is measured on at the end. For
            the shipped autoencoder 2,048 pictures of a larger set would give standard errors of at most 1.4 %
            of a standard deviation (shift) and 0.8 % (scale).

    Raises UserError for fewer than two pictures for the statistics.
    """

    def __init__(  # one parameter per key of conf/model/autoencoder*.yaml
        self,
        *,
        net: AutoencoderKL,
        optimizer: OptimizerFactory,
        decay: Decay,
        kl_weight: float,
        squared_weight: float = 0.0,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 0.0,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.5,
        discriminator_start: int = 0,
        augment: Augment | None = None,
        statistics_pictures: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__(net=net, optimizer=optimizer, decay=decay, augment=augment, seed=seed)
        if statistics_pictures < 2:
            raise UserError(
                f"{statistics_pictures=} must be at least 2: the scale of latents is measured on them"
            )
        self.statistics_pictures = statistics_pictures
        self.kl_weight, self.squared_weight = kl_weight, squared_weight
        self.perceptual = (perceptual,)  # a tuple hides frozen weights from checkpoint and optimizer
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.automatic_optimization = discriminator is None

    def configure_optimizers(self) -> Any:
        """The optimizer of the autoencoder with its schedule; one without schedule for the discriminator."""
        ours = super().configure_optimizers()
        if self.discriminator is None:
            return ours
        theirs = self.optimizer(parameter_groups(self.discriminator))
        return [ours["optimizer"], theirs], [ours["lr_scheduler"]["scheduler"]]

    def on_fit_start(self) -> None:
        """Moves the perceptual network to the device of the stage."""
        if self.perceptual[0] is not None:
            self.perceptual[0].to(self.device)  # hidden from Lightning, which moves the rest

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; None with a discriminator, whose alternating steps are taken here."""
        images = to_float(self._augmented(batch))
        posterior = self.net.posterior(images)
        noise = self._normal(posterior.mean, batch["position"], "posterior")
        decoded = self.net.decode(posterior.sample(noise))
        terms = self.terms(images, decoded, posterior)
        means = Terms(*self._step_mean(torch.stack(terms), self, batch_idx))
        self.log_dict({f"train/{name}": value for name, value in means._asdict().items()}, prog_bar=False)
        if self.automatic_optimization:
            return terms.total
        self._alternate(images, decoded, terms)
        return None

    def terms(self, images: Tensor, decoded: Tensor, posterior: Posterior) -> Terms:
        """The loss without the adversarial term: errors per value, KL per latent, perceptual distance."""
        # means, not sums as in the released code: the weights then don't depend on the size of the pictures
        error = decoded.float() - images
        pixel = error.abs().mean() + self.squared_weight * error.square().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        network = self.perceptual[0]
        perceptual = torch.zeros_like(pixel) if network is None else network(decoded, images).mean()
        total = pixel + self.kl_weight * kl + self.perceptual_weight * perceptual
        return Terms(total=total, pixel=pixel, kl=kl, perceptual=perceptual)

    def _alternate(self, images: Tensor, decoded: Tensor, terms: Terms) -> None:
        """One step of the autoencoder, one of the discriminator."""
        assert self.discriminator is not None
        ours, theirs = self.optimizers()
        theirs._on_before_step = theirs._on_after_step = lambda: None  # the trainer counts one step per batch
        loss = terms.total
        adversarial_phase = self.global_step >= self.discriminator_start
        if adversarial_phase:
            # weighed so that both terms pull equally at the last layer: their scales have nothing in common
            adversarial = -self.discriminator(decoded).mean()
            last_layer = self.net.decoder.conv_out.weight
            weight = adaptive_weight(terms.pixel, adversarial, last_layer, average=average)
            loss = loss + self.discriminator_weight * weight * adversarial
            self.log_dict({"train/adversarial": adversarial, "train/adaptive_weight": weight})
        self._step(ours, loss, self.net)
        self.lr_schedulers().step()
        if adversarial_phase:
            # the pictures of before the step, without their graph: nothing is decoded twice
            loss = hinge_loss(self.discriminator(images), self.discriminator(decoded.detach()))
            self.log("train/discriminator", loss)
            self._step(theirs, loss, self.discriminator)

    def _step(self, optimizer: Any, loss: Tensor, module: nn.Module) -> None:
        optimizer.zero_grad()  # the discriminator got gradients in the autoencoder's step, too
        # DDP waits for the gradients of both networks, and this step has those of one
        wrapper = self.trainer.model
        with wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext():
            self.manual_backward(loss, inputs=list(module.parameters()))
        average(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        optimizer.step()

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        """Loss, PSNR and SSIM of reconstructions from posterior means, by the EMA."""
        net = self.best
        images = to_float(batch["image"])
        posterior = net.posterior(images)
        decoded = net.decode(posterior.mean)  # not a sample: the numbers of two validations compare
        terms, pictures = self.terms(images, decoded, posterior), to_uint8(decoded)
        scores = {
            "val/loss": terms.total,
            "val/kl": terms.kl,
            "val/psnr": psnr(pictures, batch["image"]).mean(),
            "val/ssim": ssim(pictures, batch["image"]).mean(),
        }
        self.log_dict(scores, batch_size=len(images), sync_dist=True, prog_bar=True)

    def latent_statistics(self, pictures: PictureDataset) -> LatentStatistics:
        """The statistics of a sample of `statistics_pictures` pictures, or of all if there are no more."""
        numbers = sampled(len(pictures), count=self.statistics_pictures, seed=self.seed)
        batches = pictures.batches(STATISTICS_BATCH, numbers=numbers)
        bar = tqdm(batches, desc=f"latent statistics of {len(numbers)} pictures", unit="batch")
        return measure_latents(self.best, bar, of=len(pictures))

    def frozen(self) -> dict[str, nn.Module]:
        """The network of the perceptual distance, if there is one."""
        network = self.perceptual[0]
        return {} if network is None else {"perceptual": network}

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: PictureData) -> Path:
        """The EMA of the autoencoder with the statistics of its latents; see `Stage`."""
        if not is_first():
            return path
        # only now: each change of the weights changes the latents, and with them their shift and scale
        statistics = self.latent_statistics(data.train)
        print(statistics)
        return write_bundle(
            path,
            parts={"autoencoder": Part(spec=config["autoencoder"], state=self.best.state_dict())},
            settings={
                "latents": {"shift": statistics.shift.tolist(), "scale": statistics.scale.tolist()},
                "latent_statistics": statistics.record(),
                "origin": origin(config),
            },
            dtype=torch.float16,
        )
