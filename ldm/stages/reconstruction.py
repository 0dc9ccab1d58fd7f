"""The base class of autoencoder stages: a pixel error, a perceptual term and a patch discriminator.

With a discriminator the optimisation is manual and alternates; its adversarial term starts at
`discriminator_start`, with the adaptive weight of Esser et al. 2021.
"""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ldm.codec import to_float, to_uint8
from ldm.data.stream import PictureBatch
from ldm.distributed.ranks import average
from ldm.metrics.reconstruction import psnr, ssim
from ldm.models.losses import PatchDiscriminator, PerceptualDistance, adaptive_weight, hinge_loss
from ldm.stages.optim import parameter_groups
from ldm.stages.stage import PictureStage

UNLISTED = ("total", "pixel", "perceptual")  # terms that a validation has under other names, or not


def absolute_error(decoded: Tensor, images: Tensor, *, squared_weight: float = 0.0) -> Tensor:
    """Mean absolute error per value, and the mean squared one with its weight."""
    error = decoded.float() - images
    return error.abs().mean() + squared_weight * error.square().mean()


class Reconstructed(NamedTuple):
    """A batch through the network and back."""

    pictures: Tensor  # float, b 3 h w
    originals: Tensor  # what they are compared with
    terms: Any  # a named tuple of scalars: `total` is the loss, `pixel` its error of pixels


class ReconstructionStage(PictureStage, ABC):
    """Trains a network on pictures to reconstruct them. A subclass says by what loss.

    Args:
        perceptual, perceptual_weight: frozen feature distance and its weight.
        discriminator, discriminator_weight, discriminator_start: the adversary, its weight and first step.
        others: see `PictureStage`. The last layer of the network must be `net.decoder.conv_out`.
    """

    def __init__(
        self,
        *,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 0.0,
        discriminator: PatchDiscriminator | None = None,
        discriminator_weight: float = 0.5,
        discriminator_start: int = 0,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.perceptual = (perceptual,)  # a tuple hides frozen weights from checkpoint and optimizer
        self.perceptual_weight = perceptual_weight
        self.discriminator = discriminator
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.automatic_optimization = discriminator is None

    @abstractmethod
    def trained(self, images: Tensor, positions: Tensor) -> Reconstructed:
        """The reconstruction of a batch to train on, its random numbers keyed by the samples' positions."""

    @abstractmethod
    def validated(self, images: Tensor) -> Reconstructed:
        """The reconstruction by the EMA, without random numbers: two validations compare."""

    def configure_optimizers(self) -> Any:
        """The optimizer of the network with its schedule; one without schedule for the discriminator."""
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
        decoded, images, terms = self.trained(images, batch["position"])
        means = type(terms)(*self._step_mean(torch.stack(terms), batch_idx))
        self.log_dict({f"train/{name}": value for name, value in means._asdict().items()}, prog_bar=False)
        if self.automatic_optimization:
            return terms.total
        self._alternate(images, decoded, terms)
        return None

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        """Loss, PSNR and SSIM of reconstructions by the EMA."""
        images = to_float(batch["image"])
        decoded, _, terms = self.validated(images)
        pictures = to_uint8(decoded)
        scores = {"val/loss": terms.total}
        scores |= {f"val/{name}": term for name, term in terms._asdict().items() if name not in UNLISTED}
        scores["val/psnr"] = psnr(pictures, batch["image"]).mean()
        scores["val/ssim"] = ssim(pictures, batch["image"]).mean()
        self.log_dict(scores, batch_size=len(images), sync_dist=True, prog_bar=True)

    def perceived(self, decoded: Tensor, images: Tensor) -> Tensor:
        """The mean perceptual distance; 0 without a network for it."""
        network = self.perceptual[0]
        return images.new_zeros(()) if network is None else network(decoded, images).mean()

    def frozen(self) -> dict[str, nn.Module]:
        """The network of the perceptual distance, if there is one."""
        network = self.perceptual[0]
        return {} if network is None else {"perceptual": network}

    def _alternate(self, images: Tensor, decoded: Tensor, terms: Any) -> None:
        """One step of the network, one of the discriminator."""
        assert self.discriminator is not None
        ours, theirs = self.optimizers()
        theirs._on_before_step = theirs._on_after_step = lambda: None  # the trainer counts one step per batch
        self.discriminator.check(decoded)  # at the first step, not at the first that is judged
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
        optimizer.zero_grad()  # the discriminator got gradients in the network's step, too
        # DDP waits for the gradients of both networks, and this step has those of one
        wrapper = self.trainer.model
        with wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext():
            self.manual_backward(loss, inputs=list(module.parameters()))
        average(parameter.grad for parameter in module.parameters() if parameter.grad is not None)
        optimizer.step()
