"""First stage: a KL autoencoder whose latents the denoiser will learn (Rombach et al. 2022, app. G)."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ldm.checkpoints.bundle import Part, write_bundle
from ldm.checkpoints.provenance import origin
from ldm.codec import to_float, to_uint8
from ldm.data import keyed
from ldm.data.batch import PictureBatch
from ldm.data.datamodule import PictureData
from ldm.distributed import average, is_first
from ldm.metrics.reconstruction import psnr, ssim
from ldm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from ldm.models.perceptual import PerceptualDistance
from ldm.models.vae import AutoencoderKL, Posterior
from ldm.stages.optim import Decay, OptimizerFactory, configure, parameter_groups

STATISTICS_BATCH = 16  # pictures encoded at once for the statistics of the latents
Augment = Callable[..., Tensor]  # (images, *, seed, positions) -> images


class Terms(NamedTuple):
    """Parts of the autoencoder's loss, means over the batch."""

    total: Tensor
    pixel: Tensor
    kl: Tensor
    perceptual: Tensor


class AutoencoderStage(LightningModule):
    """Trains an autoencoder on L1 + KL, with a perceptual term and a patch discriminator if they are given.

    With a discriminator the optimisation is manual and alternates; its adversarial term starts at
    `discriminator_start`, with the adaptive weight of Esser et al. 2021.

    Args:
        net: the autoencoder.
        optimizer, decay: what makes the optimizer, and its learning-rate factor by step.
        kl_weight: weight of the divergence per latent value against the error per pixel value.
        perceptual, perceptual_weight: frozen feature distance and its weight.
        discriminator, discriminator_weight, discriminator_start: adversary, weight, first step.
        augment: random change of the pictures, keyed by position.
        seed: key of the posterior's noise and of the augmentation.
    """

    def __init__(
        self,
        *,
        net: AutoencoderKL,
        optimizer: OptimizerFactory,
        decay: Decay,
        kl_weight: float,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 0.0,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.5,
        discriminator_start: int = 0,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.net = net
        self.averaged: AutoencoderKL | None = None
        self.optimizer, self.decay = optimizer, decay
        self.kl_weight, self.seed, self.augment = kl_weight, seed, augment
        self.perceptual = (perceptual,)  # a tuple hides frozen weights from state and optimizer
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.automatic_optimization = discriminator is None

    def configure_optimizers(self) -> Any:
        optimizer, schedule = configure(self.net, self.optimizer, self.decay)
        if self.discriminator is None:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
        return [optimizer, self.optimizer(parameter_groups(self.discriminator))], [schedule]

    def on_fit_start(self) -> None:
        if self.perceptual[0] is not None:
            self.perceptual[0].to(self.device)  # hidden from Lightning, which moves the rest

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor | None:
        pictures = batch["image"]
        if self.augment is not None:
            pictures = self.augment(pictures, seed=self.seed, positions=batch["position"])
        images = to_float(pictures)
        posterior = self.net.posterior(images)
        shape = posterior.mean.shape[1:]
        noise = keyed.normal(shape, seed=self.seed, positions=batch["position"], stream="posterior")
        decoded = self.net.decode(posterior.sample(noise.to(posterior.mean)))
        terms = self.terms(images, decoded, posterior)
        self.log_dict({f"train/{name}": value for name, value in terms._asdict().items()}, prog_bar=False)
        if self.automatic_optimization:
            return terms.total
        self._alternate(images, decoded, terms)
        return None

    def terms(self, images: Tensor, decoded: Tensor, posterior: Posterior) -> Terms:
        """The loss without the adversary."""
        pixel = (decoded.float() - images).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        network = self.perceptual[0]
        perceptual = torch.zeros_like(pixel) if network is None else network(decoded, images).mean()
        total = pixel + self.kl_weight * kl + self.perceptual_weight * perceptual
        return Terms(total=total, pixel=pixel, kl=kl, perceptual=perceptual)

    def _alternate(self, images: Tensor, decoded: Tensor, terms: Terms) -> None:
        """One step of the autoencoder, one of the discriminator."""
        assert self.discriminator is not None
        ours, theirs = self.optimizers()
        theirs._on_before_step = theirs._on_after_step = lambda: None  # the trainer counts one step a batch
        loss = terms.total
        adversarial_phase = self.global_step >= self.discriminator_start
        if adversarial_phase:
            adversarial = -self.discriminator(decoded).mean()
            last_layer = self.net.decoder.conv_out.weight
            weight = adaptive_weight(terms.pixel, adversarial, last_layer, average=average)
            loss = loss + self.discriminator_weight * weight * adversarial
            self.log_dict({"train/adversarial": adversarial, "train/adaptive_weight": weight})
        self._step(ours, loss, self.net)
        self.lr_schedulers().step()
        if adversarial_phase:
            loss = hinge_loss(self.discriminator(images), self.discriminator(decoded.detach()))
            self.log("train/discriminator", loss)
            self._step(theirs, loss, self.discriminator)

    def _step(self, optimizer: Any, loss: Tensor, module: nn.Module) -> None:
        optimizer.zero_grad()
        # the wrapper of several ranks waits for the gradients of both networks, and here are those of one
        wrapper = self.trainer.model
        with wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext():
            self.manual_backward(loss, inputs=list(module.parameters()))
        average(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        optimizer.step()

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        net = self.averaged or self.net
        images = to_float(batch["image"])
        posterior = net.posterior(images)
        decoded = net.decode(posterior.mean)
        terms, count = self.terms(images, decoded, posterior), len(images)
        pictures = to_uint8(decoded)
        scores = {
            "val/loss": terms.total,
            "val/kl": terms.kl,
            "val/psnr": psnr(pictures, batch["image"]).mean(),
            "val/ssim": ssim(pictures, batch["image"]).mean(),
        }
        self.log_dict(scores, batch_size=count, sync_dist=True, prog_bar=True)

    @torch.no_grad()
    def latent_statistics(self, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Shift and scale that give the latents of pictures (uint8) mean 0 and variance 1, per channel.

        Summed in float64 over posterior means and variances: the variance of a drawn latent is that of the
        means plus the mean of the posterior's own.
        """
        net = self.averaged or self.net
        device = next(net.parameters()).device
        sums, count = torch.zeros(3, net.latent_channels, dtype=torch.float64, device=device), 0
        for pictures in batches:
            posterior = net.posterior(to_float(pictures.to(device)))
            mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
            sums += torch.stack([each.sum(dim=(0, 2, 3)) for each in (mean, mean.square(), variance)])
            count += mean[:, 0].numel()
        shift, square, noise = sums / count
        return shift.float().cpu(), (square - shift.square() + noise).rsqrt().float().cpu()

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: PictureData) -> Path:
        """The averaged autoencoder with the statistics of its latents; the first rank measures and writes."""
        if not is_first():
            return path
        batches = data.train.batches(STATISTICS_BATCH)
        shift, scale = self.latent_statistics(tqdm(batches, desc="latent statistics", total=len(batches)))
        net = self.averaged or self.net
        return write_bundle(
            path,
            parts={"autoencoder": Part(spec=config["autoencoder"], state=net.state_dict())},
            settings={
                "latents": {"shift": shift.tolist(), "scale": scale.tolist()},
                "origin": origin(config),
            },
            dtype=torch.float16,
        )
