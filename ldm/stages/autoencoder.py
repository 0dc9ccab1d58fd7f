"""First stage: a KL autoencoder whose latents the denoiser will learn (Rombach et al. 2022, app. G)."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import LightningModule
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
from ldm.randomness.seeds import check_seed
from ldm.stages.latent_statistics import LatentStatistics, measure_latents, sampled
from ldm.stages.optim import Decay, OptimizerFactory, StepMean, check_optimizer, configure, parameter_groups
from ldm.stages.stage import example_pictures

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
        statistics_pictures: how many pictures, sampled by `seed`, the scale of the latents is measured on at
            the end. For the shipped autoencoder 2,048 pictures of a larger set would give standard errors of
            at most 1.4 % of a standard deviation (shift) and 0.8 % (scale).
        seed: key of the posterior's noise, of the augmentation and of that sample.

    Raises:
        UserError: fewer than two pictures for the statistics.
    """

    tokenizer = None  # it reads no captions

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
        statistics_pictures: int = 2048,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if statistics_pictures < 2:
            raise UserError(
                f"{statistics_pictures=} must be at least 2: the scale of latents is measured on them"
            )
        self.statistics_pictures = statistics_pictures
        self.net = net
        self.averaged: AutoencoderKL | None = None
        check_optimizer(optimizer, decay)
        check_seed(seed, "model.stage.seed")
        self.optimizer, self.decay = optimizer, decay
        self.kl_weight, self.seed, self.augment = kl_weight, seed, augment
        self.perceptual = (perceptual,)  # a tuple hides frozen weights from state and optimizer
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.automatic_optimization = discriminator is None
        self._step_mean = StepMean()

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
        key = {"seed": self.seed, "positions": batch["position"], "stream": "posterior"}
        noise = keyed.normal(shape, **key, device=posterior.mean.device).to(posterior.mean)
        decoded = self.net.decode(posterior.sample(noise))
        terms = self.terms(images, decoded, posterior)
        means = Terms(*self._step_mean(torch.stack(terms), self, batch_idx))
        self.log_dict({f"train/{name}": value for name, value in means._asdict().items()}, prog_bar=False)
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

    def latent_statistics(self, pictures: PictureDataset) -> LatentStatistics:
        """Those of a sample of `statistics_pictures` pictures, or of all where there are no more."""
        numbers = sampled(len(pictures), count=self.statistics_pictures, seed=self.seed)
        batches = pictures.batches(STATISTICS_BATCH, numbers=numbers)
        bar = tqdm(batches, desc=f"latent statistics of {len(numbers)} pictures", unit="batch")
        return measure_latents(self.averaged or self.net, bar, of=len(pictures))

    def example_batch(self, count: int, *, size: int) -> PictureBatch:
        """Random pictures with captions."""
        return example_pictures(count, size=size)

    def frozen(self) -> dict[str, nn.Module]:
        """The network of the perceptual distance, if there is one."""
        network = self.perceptual[0]
        return {} if network is None else {"perceptual": network}

    def generator(self) -> None:
        """None: this stage generates no pictures."""
        return None

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: PictureData) -> Path:
        """The averaged autoencoder with the statistics of its latents; the first rank measures and writes."""
        if not is_first():
            return path
        statistics = self.latent_statistics(data.train)
        print(statistics)
        net = self.averaged or self.net
        return write_bundle(
            path,
            parts={"autoencoder": Part(spec=config["autoencoder"], state=net.state_dict())},
            settings={
                "latents": {"shift": statistics.shift.tolist(), "scale": statistics.scale.tolist()},
                "latent_statistics": statistics.record(),
                "origin": origin(config),
            },
            dtype=torch.float16,
        )
