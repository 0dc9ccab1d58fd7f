"""The stage of VQ-Diffusion: a denoiser of codes, conditioned on text (Gu et al. 2022, sec. 4)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError, send
from ldm.codec import Codec, PictureCodes
from ldm.data.codes import CodeBatch
from ldm.diffusion.discrete import MaskAndReplace, auxiliary
from ldm.generators.text_to_codes import DiscreteDiffusion, TextToCodes, check_parts
from ldm.models.code_denoiser import CodeDenoiser
from ldm.randomness import keyed
from ldm.randomness.uniforms import uniforms
from ldm.stages.text_to_codes import TextToCodesStage, check_width

STRATA = 8  # equal parts of the timesteps, each of which a validation looks at for every picture
FIXED_SEED = 0  # of a validation's noise: that of every training, whatever its own seed


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
