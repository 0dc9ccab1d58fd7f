"""Stages that train codes conditioned on text states: VQ-Diffusion's denoiser, and the priors of VQ-VAE-2."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError, send
from ldm.checkpoints.bundle import Part
from ldm.codec import Codec, PictureCodes
from ldm.data.codes import CodeBatch
from ldm.diffusion.discrete import MaskAndReplace, auxiliary
from ldm.generators.code_bundle import write_parts
from ldm.generators.text_to_codes import (
    DiscreteDiffusion,
    Texts,
    TextToCodes,
    TwoLevel,
    check_levels,
    check_parts,
)
from ldm.models.code_denoiser import CodeDenoiser
from ldm.models.two_level import TwoLevelPriors
from ldm.randomness import keyed
from ldm.randomness.uniforms import uniforms
from ldm.stages.stage import ENDLESS, ConditionedStage, Weights
from ldm.tokenizers import Tokenizer

STRATA = 8  # equal parts of the timesteps, each of which a validation looks at for every picture
FIXED_SEED = 0  # of a validation's noise: that of every training, whatever its own seed


class TextToCodesStage(ConditionedStage):
    """Trains a network on cached codes and text states; a subclass says by what loss.

    Args:
        codes: the frozen tokenizer of pictures.
        codec: frozen; its text encoder reads the captions.
        sampling: options of the generator while training, and by default from the bundle.
        others: see `ConditionedStage`.

    Raises UserError for text states of another width than the network's, options out of range, or parts that
    do not go together.
    """

    opener: str  # the callable that opens a bundle's generator

    def __init__(
        self, *, net: nn.Module, codes: PictureCodes, codec: Codec, sampling: Mapping[str, Any], **others: Any
    ) -> None:
        super().__init__(net=net, **others)
        self.codes, self.codec = codes, codec  # under the names at which the data module looks for them
        self.sampling, self.texts = dict(sampling), Texts(codec.text_encoder, codec.tokenizer)

    @abstractmethod
    def generator(self) -> TextToCodes:
        """The EMA of the network as it would be sampled now."""

    def on_fit_start(self) -> None:
        """Moves the frozen networks, which Lightning does not know of."""
        self.codes.to(self.device)
        self.codec.to(self.device)

    def _log_nats(self, nats: Tensor, pictures: Tensor) -> None:
        """Logs a validation's mean over pictures of their nats per code."""
        self.log("val/loss", nats.mean(), batch_size=len(nats), sync_dist=True, prog_bar=True)
        self._log_fixed(nats, pictures)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the captions."""
        return self.codec.tokenizer

    def example_batch(self, count: int, *, size: int) -> CodeBatch:
        """Random codes and text states: the frozen networks are not used, as in a training on stored ones."""
        text, numbers = self.codec.text_encoder, torch.arange(count)
        levels = [torch.randint(num_codes, (count, grid**2)) for grid, num_codes in self.codes.net.levels]
        return CodeBatch(
            codes=torch.cat(levels, dim=1),
            captions=[ENDLESS] * count,
            context=torch.randn(count, text.context_length, text.width),
            position=numbers,
            index=numbers,
        )

    def frozen(self) -> dict[str, nn.Module]:
        """The tokenizer of pictures and the text encoder."""
        return {"image tokenizer": self.codes.net, "text encoder": self.codec.text_encoder}

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: object) -> None:
        """The EMA of the network, the frozen parts unchanged, and how to sample."""
        write_parts(
            path,
            Part(spec=config["backbone"], state=state),
            config=config,
            codes=self.codes,
            settings={"generator": {"_target_": self.opener, **self.sampling}, **self.settings(config)},
        )

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Further entries of the bundle's config."""
        return {}


def check_width(option: str, wanted: int | None, codec: Codec) -> None:
    """Refuses a network for text states of another width than the codec's."""
    if wanted != codec.text_encoder.width:
        raise UserError(
            f"{option}={wanted}, but codec.text_encoder makes text states of {codec.text_encoder.width}:"
            " set it to that, or take another codec.text_encoder"
        )


class TwoLevelStage(TextToCodesStage):
    """Trains both priors together; neither's gradient reaches the other. A dropped caption is the empty one.

    Arguments and errors are those of `TextToCodesStage`.
    """

    opener = "ldm.generators.text_to_codes.open_two_level"

    def __init__(self, *, net: TwoLevelPriors, codes: PictureCodes, codec: Codec, **others: Any) -> None:
        super().__init__(net=net, codes=codes, codec=codec, **others)
        check_levels(net, codes)
        check_width("backbone.top.context_dim", net.top.context_dim, codec)
        self._null: Tensor | None = None  # text states of the empty prompt, on the device
        self.generator()  # refuses wrong options of sampling before the training

    def on_fit_start(self) -> None:
        """Moves the frozen networks, and encodes the empty prompt."""
        super().on_fit_start()
        self._null = self.texts.states([""])

    def loss(self, batch: CodeBatch) -> Tensor:
        """The mean over all codes of both levels of a batch."""
        assert self._null is not None
        context = torch.where(self._dropped(batch["position"]), self._null, batch["context"])
        return torch.cat(self.nats(self.net, context, batch["codes"]), dim=1).mean()

    def nats(self, net: Any, context: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The exact negative log-likelihood of every code, top and bottom."""
        top, bottom = codes.split([level.grid**2 for level in self.codes.net.levels], dim=1)
        return net.nats(context, top, bottom)

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        """Exact likelihoods of the EMA: nats per code, and bits per code of each level."""
        levels = self.nats(self.best, batch["context"], batch["codes"])
        self._log_nats(torch.cat(levels, dim=1).mean(dim=1), batch["index"])
        for name, nats in zip(("top", "bottom"), levels, strict=True):
            bits = nats.mean() / math.log(2)
            self.log(f"val/bits_{name}", bits, batch_size=len(nats), sync_dist=True, prog_bar=True)

    def generator(self) -> TextToCodes:
        """The EMA of the network as it would be sampled now."""
        return TwoLevel.made({"net": self.best, "codes": self.codes, "texts": self.texts}, self.sampling)


class LossHistory(nn.Module):
    """Running squares of the bound's terms by timestep, for importance sampling of timesteps.

    p_t is proportional to sqrt(E[L_t^2]) + 1e-4, and L_1 counts as L_2 (Nichol & Dhariwal 2021, eq. 18, with
    the numbers of VQ-Diffusion's released code). The squares are buffers: a checkpoint holds them.
    """

    squares: Tensor
    counts: Tensor

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self.register_buffer("squares", torch.zeros(num_steps))
        self.register_buffer("counts", torch.zeros(num_steps))

    def probabilities(self) -> Float[Tensor, " steps"]:
        """p_t for t = 1 .. T, float64, on the CPU: even until every timestep was seen more than ten times."""
        if not (self.counts > 10).all():
            return evenly(len(self.counts))
        sizes = self.squares.double().cpu().sqrt() + 1e-4
        sizes[:1] = sizes[1:2]
        return sizes / sizes.sum()

    @torch.no_grad()
    def update(self, t: Int[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        """Adds the losses of the pictures of all ranks; those of the same timestep are averaged.

        A loss that is not finite is left out: its step is skipped, and would else be remembered forever.
        """
        finite = losses.isfinite()
        squares = torch.where(finite, losses, 0.0) ** 2
        seen = torch.zeros_like(self.counts).index_add(0, t - 1, finite.to(self.counts))
        mean = torch.zeros_like(self.squares).index_add(0, t - 1, squares) / seen.clamp(min=1)
        self.squares.lerp_(mean, 0.1 * (seen > 0))
        self.counts.add_(seen)


class DiscreteDiffusionStage(TextToCodesStage):
    """Trains a denoiser of codes.

    Every random number is a function of the seed and the sample's position, see `LatentDiffusion`.

    Args:
        net, codes, codec, others: see `TextToCodesStage`; a dropped caption is the network's learned empty
            text.
        process: mask-and-replace.
        auxiliary_weight: of -log p(x_0 | x_t), lambda in eq. 11, times 2 - (t - 1) / T.
        importance: choose timesteps by `LossHistory`; False: spread them evenly over each batch.

    Raises UserError as `TextToCodesStage` does.
    """

    opener = "ldm.generators.text_to_codes.open_discrete_diffusion"

    def __init__(
        self,
        *,
        net: CodeDenoiser,
        process: MaskAndReplace,
        codes: PictureCodes,
        codec: Codec,
        auxiliary_weight: float = 5e-4,
        importance: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(net=net, codes=codes, codec=codec, **others)
        check_parts(net, process, codes)
        check_width("backbone.context_dim", net.context_dim, codec)
        if net.context_length != codec.text_encoder.context_length:
            raise UserError(
                f"backbone.context_length={net.context_length}: set it to that of codec.text_encoder,"
                f" {codec.text_encoder.context_length}"
            )
        self.process, self.auxiliary_weight = process, auxiliary_weight
        self.history = LossHistory(process.num_steps) if importance else None
        self.generator()  # refuses wrong options of sampling before the training

    def loss(self, batch: CodeBatch) -> Tensor:
        """Mean loss of a batch in nats per code."""
        positions, steps = batch["position"], self.process.num_steps
        p = evenly(steps) if self.history is None else self.history.probabilities()
        t = timesteps_of(keyed.spread(seed=self.seed, positions=positions, stream="time"), p)
        noise = self._noise(batch, seed=self.seed, positions=positions, stream="noise")
        context = self.net.context(batch["context"])
        context = torch.where(self._dropped(positions), self.net.empty.to(context), context)
        bound, likelihood = self.terms(self.net, batch, t, noise, context)
        if self.history is not None:
            self.history.update(*map(self._of_all_ranks, (send(t, self.device), bound.detach())))
        weight = self.auxiliary_weight * (2 - (t - 1) / steps)
        loss = (bound + send(weight, self.device) * likelihood) / send(p[t - 1].float(), self.device)
        return loss.mean() / batch["codes"].shape[1]

    def terms(
        self, net: Any, batch: CodeBatch, t: Tensor, noise: Tensor, context: Tensor
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """The bound's term of t and -log p(x_0 | x_t) of each picture, in nats of all its codes."""
        x0 = batch["codes"]
        x = self.process.noised(x0, t, noise)
        log_p = net(x, send(t, x.device), context).float().log_softmax(dim=-1)
        return self.process.divergence(log_p, x0, x, t).sum(dim=1), auxiliary(log_p, x0).sum(dim=1)

    def _noise(self, batch: CodeBatch, **key: Any) -> Float[Tensor, "b 2 n"]:
        return uniforms((2, batch["codes"].shape[1]), **key, device=self.device)

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        """The bound of -log p(codes) of the EMA in nats per code, and in bits."""
        nats = self.bound(batch)
        self._log_nats(nats, batch["index"])
        self.log("val/bits", nats.mean() / math.log(2), batch_size=len(nats), sync_dist=True)

    def bound(self, batch: CodeBatch) -> Float[Tensor, " b"]:
        """An estimate of each picture's bound in nats per code, from `STRATA` timesteps.

        Its random numbers are keyed by the picture alone, so that trainings with other seeds compare.
        """
        pictures, net, steps = batch["index"].cpu(), self.best, self.process.num_steps
        spread = keyed.spread(seed=FIXED_SEED, positions=pictures, stream="val/time")
        context, terms = net.context(batch["context"]), []
        for number in range(STRATA):
            noise = self._noise(batch, seed=FIXED_SEED, positions=pictures, stream=f"val/noise/{number}")
            t = timesteps_of((number + spread) / STRATA, evenly(steps))
            terms.append(self.terms(net, batch, t, noise, context)[0])
        nats = torch.stack(terms).mean(dim=0) * steps / batch["codes"].shape[1]
        return nats + self.process.end_divergence

    def generator(self) -> TextToCodes:
        """The EMA of the network as it would be sampled now."""
        parts = {"net": self.best, "process": self.process, "codes": self.codes, "texts": self.texts}
        return DiscreteDiffusion.made(parts, self.sampling)

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The process."""
        return {"process": config["model"]["stage"]["process"]}


def evenly(steps: int) -> Float[Tensor, " steps"]:
    """The same probability for every timestep."""
    return torch.full((steps,), 1 / steps, dtype=torch.float64)


def timesteps_of(numbers: Float[Tensor, " b"], p: Float[Tensor, " steps"]) -> Int[Tensor, " b"]:
    """The timesteps 1 .. T of numbers in [0, 1), such that t has the probability p[t - 1]."""
    # without the last edge, which is 1 but for rounding: no number may lie beyond it
    return torch.searchsorted(p.cumsum(0)[:-1], numbers.double(), right=True) + 1
