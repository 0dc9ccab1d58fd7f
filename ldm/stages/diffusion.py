"""Last stage: a denoiser of latents, conditioned on text (Rombach et al. 2022, sec. 3.2 and 3.3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import origin
from ldm.codec import Codec
from ldm.data.stream import LatentBatch
from ldm.diffusion import Guidance
from ldm.diffusion.process import Noised, Process
from ldm.diffusion.samplers import Sampling
from ldm.generators.denoiser_writer import CodecBundles, write_denoiser
from ldm.generators.latent_diffusion import TextToImage
from ldm.randomness import keyed
from ldm.stages.stage import ConditionedStage, Weights
from ldm.tokenizers import Tokenizer

# Middles of eight equal parts of [0, 1], in whole thousandths: a DDPM table has entries there.
FIXED_TIMES = (0.062, 0.188, 0.312, 0.438, 0.562, 0.688, 0.812, 0.938)
TIME_BINS = 4  # equal parts of [0, 1) in t for which the validation loss is reported
FIXED_SEED = 0  # of the noise at these timesteps: that of every training, whatever its own seed


class LatentDiffusion(ConditionedStage):
    """Trains a denoiser on cached latents and text states (Rombach et al. 2022, eq. 3).

    Every random number (latent, noise, timestep, dropped caption) is a function of the seed and the sample's
    position: a resumed training, or one on other ranks, sees the same.

    Args:
        net: `net(x, t, context)`.
        process: schedule, prediction and weighting.
        codec: frozen; it is held as plain data, so it is in no checkpoint and no optimizer.
        sampling, guidance: how pictures are sampled while training, and by default from the bundle.
        size: side of the pictures in pixels.
        initial: a bundle whose denoiser's weights `net` starts with; None: its own.
        others: see `ConditionedStage`.

    Raises BundleError for an `initial` that is missing, damaged or of another network, UserError for a `net`
    of other latents or text states than the codec's.
    """

    def __init__(  # one parameter per key of conf/model/diffusion.yaml
        self,
        *,
        net: nn.Module,
        process: Process,
        codec: Codec,
        sampling: Sampling,
        guidance: Guidance,
        size: int,
        initial: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__(net=net, **others)
        check_codec(net, codec)
        codec.latent_shape(size)  # refuses a size that the autoencoder can't divide
        if initial is not None:
            Bundle.open(initial).copy_into(net, "backbone")
        self.process, self.codec, self.size = process, codec, size
        self.sampling, self.guidance = sampling, guidance
        self._null: Tensor | None = None  # text states of the empty prompt, on the device

    def configure_model(self) -> None:
        """Shards the network across the ranks if the trainer's strategy does so (distributed/sharding.py)."""
        # asked for by its method: this module and its network do not load FSDP where nobody shards
        if hasattr(self.trainer.strategy, "shard"):
            self.trainer.strategy.shard(self.net)

    def on_fit_start(self) -> None:
        """Moves the codec, which Lightning does not know of, and encodes the empty prompt."""
        self.codec.to(self.device)
        self._null = self.codec.encode_prompts([""])

    def loss(self, batch: LatentBatch) -> Tensor:
        """Mean loss of a batch."""
        noised, context = self.noised(batch)
        return noised.error(self.net(noised.x, noised.time, context)).mean()

    def noised(self, batch: LatentBatch) -> tuple[Noised, Tensor]:
        """Latents of a batch at their timesteps, and the context; random numbers keyed by the positions."""
        positions = batch["position"]
        # a new latent of the posterior at each step: the mean alone would hide the autoencoder's uncertainty
        x0 = batch["mean"] + batch["std"] * self._normal(batch["mean"], positions, "posterior")
        noise = self._normal(x0, positions, "noise")
        # spread evenly over the batch, which lowers the variance of its loss
        times = keyed.spread(seed=self.seed, positions=positions, stream="time")
        # the unconditional denoiser of classifier-free guidance (Ho & Salimans 2022, Alg. 1)
        assert self._null is not None
        context = torch.where(self._dropped(positions), self._null.to(batch["context"]), batch["context"])
        return self.process.noised(x0, noise=noise, uniform=times), context

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        """Losses of the EMA, with noise and timesteps that are the same at every validation."""
        pictures = batch["index"].cpu()
        # other streams than training, and no posterior noise: less variance between validations
        noise = self._normal(batch["mean"], pictures, "val/noise")
        place = keyed.spread(seed=self.seed, positions=pictures, stream="val/time")
        losses = []
        # strata of t: the loss varies more with t than with anything else
        for number in range(TIME_BINS):
            uniform = (number + place) / TIME_BINS
            loss = self.process.loss(self.best, batch["mean"], batch["context"], noise=noise, uniform=uniform)
            losses.append(loss.mean())
            self.log(f"val/loss_bin{number}", losses[-1], batch_size=len(pictures), sync_dist=True)
        mean = torch.stack(losses).mean()
        self.log("val/loss", mean, batch_size=len(pictures), sync_dist=True, prog_bar=True)
        self._log_fixed(self.loss_at_fixed_times(batch), batch["index"])

    def loss_at_fixed_times(self, batch: LatentBatch) -> Tensor:
        """Mean over `FIXED_TIMES` of each picture's unweighted loss by the EMA: float32, (b,).

        Its noise is keyed by the picture and the timestep alone, so that trainings with other seeds, batch
        sizes, densities or weights of timesteps compare, as long as schedule and prediction are the same.
        """
        process, pictures, mean = self.process.at_given_timesteps(), batch["index"].cpu(), batch["mean"]
        losses = []
        for t in FIXED_TIMES:
            key = {"seed": FIXED_SEED, "positions": pictures, "stream": f"val/fixed/{t}"}
            noise = keyed.normal(mean.shape[1:], **key, device=mean.device)
            times = torch.full((len(pictures),), t, dtype=torch.float64)
            losses.append(process.loss(self.best, mean, batch["context"], noise=noise, uniform=times))
        return torch.stack(losses).mean(dim=0)

    @property
    def tokenizer(self) -> Tokenizer:
        """The codec's tokenizer, which reads the captions."""
        return self.codec.tokenizer

    def example_batch(self, count: int, *, size: int) -> LatentBatch:
        """Random latents and text states: the codec is not used, as in a training on stored ones."""
        text, numbers = self.codec.text_encoder, torch.arange(count)
        mean = torch.randn(count, *self.codec.latent_shape(size))
        states = torch.randn(count, text.context_length, text.width)
        std = torch.ones_like(mean)
        return LatentBatch(mean=mean, std=std, context=states, position=numbers, index=numbers)

    def frozen(self) -> dict[str, nn.Module]:
        """The networks of the codec."""
        return {"autoencoder": self.codec.autoencoder, "text encoder": self.codec.text_encoder}

    def generator(self) -> TextToImage:
        """The EMA of the network as it would be sampled now."""
        return TextToImage(
            net=self.best,
            process=self.process,
            codec=self.codec,
            sampling=self.sampling,
            guidance=self.guidance,
            size=self.size,
        )

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: object) -> None:
        """The EMA of the network, the codec's parts unchanged, and how to sample."""
        codec = CodecBundles.named(config)
        write_denoiser(
            path,
            Part(spec=config["backbone"], state=state),
            codec,
            config=config,
            size=self.size,
            origin=origin(config),
            codec_origin=codec.origins,
        )


def check_codec(net: nn.Module, codec: Codec) -> None:
    """Refuses a network for other channels of latents or another width of text states than the codec's."""
    given = (
        ("latent_channels", codec.autoencoder.latent_channels, "latents of", "codec.autoencoder"),
        ("context_dim", codec.text_encoder.width, "text states of", "codec.text_encoder"),
    )
    for option, count, what, part in given:
        if (wanted := getattr(net, option, count)) != count:
            raise UserError(
                f"backbone: {option}={wanted}, but {part} makes {what} {count}: choose a backbone for "
                f"{count}, or another {part}"
            )
