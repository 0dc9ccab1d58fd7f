"""Last stage: a denoiser of latents, conditioned on text (Rombach et al. 2022, sec. 3.2 and 3.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import origin
from ldm.codec import Codec
from ldm.data.stream import LatentBatch
from ldm.diffusion import Guidance
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampling
from ldm.distributed.ranks import is_first, whole_state
from ldm.generators.denoiser_writer import CodecBundles, write_denoiser
from ldm.generators.latent_diffusion import TextToImage
from ldm.randomness import keyed
from ldm.randomness.seeds import check_seed
from ldm.stages.optim import Decay, OptimizerFactory, StepMean, check_optimizer, configure
from ldm.tokenizers import Tokenizer


class LatentDiffusion(LightningModule):
    """Trains a denoiser on cached latents and text states.

    Every draw (latent, noise, time, dropped caption) is a function of the seed and the sample's position.

    Args:
        net: `net(x, t, context)`.
        process: schedule, prediction and weighting.
        codec: frozen; it is held as plain data, so it is in no checkpoint and no optimizer.
        sampling, guidance: how pictures are drawn while training, and by default from the bundle.
        size: side of the pictures in pixels.
        optimizer, decay: what makes the optimizer, and its learning-rate factor by step.
        caption_drop: share of samples trained without their caption, which guidance needs.
        time_bins: parts of [0, 1) for which the validation loss is reported.
        seed: key of all draws.
        initial: a bundle whose denoiser `net` starts as; None: as it is given.

    Raises:
        BundleError: an `initial` that is missing, damaged or of another network.
        UserError: a `net` for other latents or text states than the codec makes, or a `caption_drop` that is
            no share.
    """

    def __init__(
        self,
        *,
        net: nn.Module,
        process: Process,
        codec: Codec,
        sampling: Sampling,
        guidance: Guidance,
        size: int,
        optimizer: OptimizerFactory,
        decay: Decay,
        caption_drop: float = 0.1,
        time_bins: int = 4,
        seed: int = 0,
        initial: str | None = None,
    ) -> None:
        super().__init__()
        check_codec(net, codec)
        codec.latent_shape(size)  # refuses a size that the autoencoder can't divide
        if not 0 <= caption_drop <= 1:
            raise UserError(f"{caption_drop=} must lie in [0, 1]: it is a share of the samples")
        if initial is not None:
            Bundle.open(initial).copy_into(net, "backbone")
        self.net = net
        self.averaged: nn.Module | None = None
        self.process, self.codec = process, codec
        self.sampling, self.guidance, self.size = sampling, guidance, size
        check_optimizer(optimizer, decay)
        check_seed(seed, "model.stage.seed")
        self.optimizer, self.decay = optimizer, decay
        self.caption_drop, self.time_bins, self.seed = caption_drop, time_bins, seed
        self._null: Tensor | None = None
        self._step_mean = StepMean()

    def configure_model(self) -> None:
        """Shards the network across the ranks if the trainer's strategy does so."""
        if hasattr(self.trainer.strategy, "shard"):  # distributed/sharding.py
            self.trainer.strategy.shard(self.net)

    def configure_optimizers(self) -> Any:
        optimizer, schedule = configure(self.net, self.optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.codec.to(self.device)
        self._null = self.codec.encode_prompts([""])

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", self._step_mean(loss, self, batch_idx))
        return loss

    def loss(self, batch: LatentBatch) -> Tensor:
        """Mean loss of a batch, every draw keyed by its samples' positions."""
        positions = batch["position"].cpu()
        x0 = batch["mean"] + batch["std"] * self._normal(batch["mean"], positions, "posterior")
        noise = self._normal(x0, positions, "noise")
        times = keyed.spread(seed=self.seed, positions=positions, stream="time")
        context = self._drop_captions(batch["context"], positions)
        return self.process.loss(self.net, x0, context, noise=noise, uniform=times.to(x0)).mean()

    def _normal(self, like: Tensor, positions: Tensor, stream: str) -> Tensor:
        key = {"seed": self.seed, "positions": positions, "stream": stream}
        return keyed.normal(like.shape[1:], **key, device=like.device).to(like)

    def _drop_captions(self, context: Tensor, positions: Tensor) -> Tensor:
        assert self._null is not None
        draws = keyed.uniform(seed=self.seed, positions=positions, stream="drop")
        dropped = (draws < self.caption_drop).to(context.device)
        return torch.where(dropped.view(-1, 1, 1), self._null.to(context), context)

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """Loss of the averaged network with noise and times that are the same at every validation."""
        net = self.averaged or self.net
        positions = batch["position"].cpu()
        noise = self._normal(batch["mean"], positions, "val/noise")
        place = keyed.spread(seed=self.seed, positions=positions, stream="val/time").to(noise)
        losses = []
        for number in range(self.time_bins):
            uniform = (number + place) / self.time_bins
            loss = self.process.loss(net, batch["mean"], batch["context"], noise=noise, uniform=uniform)
            losses.append(loss.mean())
            self.log(f"val/loss_bin{number}", losses[-1], batch_size=len(positions), sync_dist=True)
        mean = torch.stack(losses).mean()
        self.log("val/loss", mean, batch_size=len(positions), sync_dist=True, prog_bar=True)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.codec.tokenizer

    def example_batch(self, count: int, *, size: int) -> LatentBatch:
        """Random latents and text states."""
        mean, text = torch.randn(count, *self.codec.latent_shape(size)), self.codec.text_encoder
        states, numbers = torch.randn(count, text.context_length, text.width), torch.arange(count)
        return LatentBatch(
            mean=mean, std=torch.ones_like(mean), context=states, position=numbers, index=numbers
        )

    def frozen(self) -> dict[str, nn.Module]:
        """The networks of the codec."""
        return {"autoencoder": self.codec.autoencoder, "text encoder": self.codec.text_encoder}

    def generator(self) -> TextToImage:
        """The averaged network as it would be sampled now."""
        return TextToImage(
            net=self.averaged or self.net,
            process=self.process,
            codec=self.codec,
            sampling=self.sampling,
            guidance=self.guidance,
            size=self.size,
        )

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: object) -> Path:
        """The averaged network, the codec's parts as they came, and how to sample.

        Every rank must ask for it, for each may hold a share of the network; the first one writes.
        """
        state = whole_state(self.averaged or self.net)
        if not is_first():
            return path
        codec = CodecBundles.named(config)
        return write_denoiser(
            path,
            Part(spec=config["backbone"], state=state),
            codec,
            config=config,
            size=self.size,
            origin=origin(config),
            codec_origin=codec.origins,
        )


def check_codec(net: nn.Module, codec: Codec) -> None:
    """Refuses a network that could not read what the codec makes of pictures and captions.

    Raises:
        UserError: other channels of latents, or text states of another width.
    """
    made = {
        "latent_channels": (codec.autoencoder.latent_channels, "latents of", "codec.autoencoder"),
        "context_dim": (codec.text_encoder.width, "text states of", "codec.text_encoder"),
    }
    for option, (count, what, part) in made.items():
        wanted = getattr(net, option, count)
        if wanted != count:
            raise UserError(
                f"backbone: {option}={wanted}, but {part} makes {what} {count}: choose a backbone for "
                f"{count}, or another {part}"
            )
