"""Vectors to codes and back: learned codebooks, finite scalar quantization, and the Gumbel relaxation.

A quantizer takes a feature map ``b c h w`` and returns one code for each place. Nothing here depends on the
number of ranks: a stage sums `Statistics` over them before `update`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError

LOGITS = 2**24  # distances or similarities to codes that are computed at once: 64 MB
SMOOTHING = 1e-5  # Laplace smoothing of the counts, as in Sonnet's and rosinality's VQ-VAE
ANNEALED = 2**31  # a step after any annealing: validations of a training compare
Schedule = Callable[[int], float]  # step -> value


class Draw(NamedTuple):
    """What a training step gives to a quantizer; without it, codes are the likeliest ones."""

    step: int  # number of the optimizer step, for annealing
    gumbel: Callable[[Tensor], Tensor]  # Gumbel noise of a tensor's shape, keyed by the samples' positions


class Quantized(NamedTuple):
    """A quantized feature map."""

    values: Float[Tensor, "b d h w"]  # what a decoder gets; its gradient reaches the encoder
    codes: Int[Tensor, "b h w"]
    loss: Float[Tensor, ""]  # weighted terms that belong to the quantizer
    inputs: Float[Tensor, "b d h w"] | None = None  # detached: what statistics are computed of, if anything


class Statistics(NamedTuple):
    """Counts and sums of the vectors of a batch, which add up over its parts, and some of the vectors."""

    counts: Float[Tensor, " k"]  # how many vectors each code has
    sums: Float[Tensor, "k d"]  # of these vectors
    candidates: Float[Tensor, "m d"]  # vectors that may replace unused codes
    scores: Float[Tensor, " m"]  # the candidates with the largest ones are taken


def cosine(step: int, *, start: float, end: float, steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `steps`, and constant from there."""
    progress = min(1.0, step / max(1, steps))
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def straight_through(
    inputs: Float[Tensor, "b d h w"], values: Float[Tensor, "b d h w"]
) -> Float[Tensor, "b d h w"]:
    """`values` to the bit, with the gradient of `inputs` (Bengio et al. 2013)."""
    # not inputs + (values - inputs).detach(), which rounds: decoding codes must give the same pictures
    return values.detach() + (inputs - inputs.detach())


class VectorQuantizer(nn.Module):
    """The nearest vector of a codebook (van den Oord et al. 2017, eq. 1 to 3).

    The loss is ``encoder_weight |z - sg(e)|^2 + codebook_weight |sg(z) - e|^2``, means over values. Published
    networks differ: VQ-VAE-2 has 0.25 and a codebook of moving averages; CLIP-GEN 1 and 0.2; taming's VQGAN 1
    and 0.25, in what its authors call the legacy order, or 0.25 and 1.

    A code that is used less than ``restart_below`` of the mean is replaced by a vector of the batch. Without
    that, most codes of a small training are never used.

    Args:
        num_codes, dim: size of the codebook.
        decay: of the moving averages of counts and sums (ibid., app. A.1).
        learned: train the codebook by its gradient, and not by moving averages.
        encoder_weight, codebook_weight: of the loss; the second is of a learned codebook.
        normalised: compare vectors of length 1 (Yu et al. 2022, sec. 3.2).
        restart_below: share of the mean count below which a code is replaced; 0 replaces none.

    Raises UserError for sizes below 1, a decay outside [0, 1), or a codebook that nothing would train.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self,
        *,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        learned: bool = False,
        encoder_weight: float = 0.25,
        codebook_weight: float = 0.0,
        normalised: bool = False,
        restart_below: float = 0.1,
    ) -> None:
        super().__init__()
        if num_codes < 1 or dim < 1:
            raise UserError(f"quantizer: {num_codes=} and {dim=} must be at least 1")
        if not 0 <= decay < 1:
            raise UserError(f"quantizer: {decay=} of the moving averages must lie in [0, 1)")
        if learned == (codebook_weight == 0):
            raise UserError(
                f"quantizer: {codebook_weight=} with {learned=}: a learned codebook needs a weight, and one"
                " of moving averages has none"
            )
        self.num_codes, self.channels, self.dim = num_codes, dim, dim
        self.decay, self.learned = decay, learned
        self.encoder_weight, self.codebook_weight = encoder_weight, codebook_weight
        self.normalised, self.restart_below = normalised, restart_below
        self.register_buffer("counts", torch.zeros(num_codes))
        if learned:
            # taming's: smaller than any distance between codes and features at first
            small = nn.init.uniform_(torch.empty(num_codes, dim), -1 / num_codes, 1 / num_codes)
            self.codebook = nn.Parameter(small)
        else:
            self.register_buffer("codebook", nn.init.normal_(torch.empty(num_codes, dim)))
            self.register_buffer("sums", torch.zeros(num_codes, dim))

    def vectors(self) -> Float[Tensor, "k d"]:
        """The vectors of all codes, in float32."""
        codebook = self.codebook.float()
        return F.normalize(codebook, dim=1) if self.normalised else codebook

    def forward(self, features: Float[Tensor, "b d h w"], draw: Draw | None = None) -> Quantized:
        """The nearest code of each place; in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            inputs = F.normalize(features.float(), dim=1) if self.normalised else features.float()
            rows = rearrange(inputs.detach(), "b d h w -> (b h w) d")
            codes = nearest(rows, self.vectors().detach()).view(len(inputs), *inputs.shape[2:])
            values = self.lookup(codes)
            loss = self.encoder_weight * F.mse_loss(inputs, values.detach())
            if self.learned:
                loss = loss + self.codebook_weight * F.mse_loss(values, inputs.detach())
            return Quantized(straight_through(inputs, values), codes, loss, inputs.detach())

    def lookup(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors of codes."""
        return rearrange(F.embedding(codes, self.vectors()), "b h w d -> b d h w")

    @torch.no_grad()
    def statistics(self, quantized: Quantized, scores: Float[Tensor, "b h w"]) -> Statistics:
        """Counts and sums of a batch, and the vectors with the largest `scores` as candidates."""
        assert quantized.inputs is not None
        rows = rearrange(quantized.inputs, "b d h w -> (b h w) d")
        codes, order = quantized.codes.flatten(), scores.flatten()
        sums = rows.new_zeros(self.num_codes, rows.shape[1] + 1)
        ones = F.pad(rows, (0, 1), value=1.0)  # the last column counts
        each = max(1, LOGITS // self.num_codes)
        with torch.autocast(rows.device.type, enabled=False):  # bfloat16 can't count beyond 256
            for some, own in zip(ones.split(each), codes.split(each), strict=True):
                # a product, not index_add_, whose order of summation on a GPU is not repeatable
                sums += F.one_hot(own, self.num_codes).to(some).T @ some
        best = order.topk(min(self.num_codes, len(order)) if self.restart_below else 0)
        return Statistics(sums[:, -1], sums[:, :-1], rows[best.indices], best.values)

    @torch.no_grad()
    def update(self, batch: Statistics) -> None:
        """One step of the moving averages, and new vectors for codes that are hardly used.

        ``N <- decay N + (1 - decay) n``, the same for the sums m, and ``e = m / N`` with smoothed counts.
        Both averages start at 0: their quotient is the mean of the first batch after the first step.
        """
        self.counts.lerp_(batch.counts, 1 - self.decay)
        if not self.learned:
            self.sums.lerp_(batch.sums, 1 - self.decay)
            total = self.counts.sum()
            smooth = (self.counts + SMOOTHING) / (total + self.num_codes * SMOOTHING) * total
            used = (self.counts > 0)[:, None]  # a code that never was has no mean
            self.codebook.copy_(torch.where(used, self.sums / smooth[:, None], self.codebook))
        if self.restart_below and len(batch.candidates):
            self._restart(batch)

    def _restart(self, batch: Statistics) -> None:
        mean = self.counts.mean()
        dead = self.counts < self.restart_below * mean
        candidates = batch.candidates[batch.scores.argsort(descending=True)]
        number = dead.cumsum(0) - 1  # among the dead ones; no wait for how many there are
        replaced = dead & (number < len(candidates))
        new = candidates[number.clamp(0, len(candidates) - 1)]
        # as if used for the mean: a new code has the time of about 1 / (1 - decay) steps to be chosen
        self.counts.copy_(torch.where(replaced, mean, self.counts))
        self.codebook.copy_(torch.where(replaced[:, None], new, self.codebook))
        if not self.learned:
            self.sums.copy_(torch.where(replaced[:, None], new * mean, self.sums))


def nearest(rows: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, " n"]:
    """The index of the nearest vector of a codebook to each row."""
    # |z - e|^2 without |z|^2, which all codes of a row share
    squares = codebook.square().sum(dim=1)
    parts = rows.split(max(1, LOGITS // len(codebook)))
    return torch.cat([torch.addmm(squares, part, codebook.T, alpha=-2).argmin(dim=1) for part in parts])


class FiniteScalarQuantizer(nn.Module):
    """Each of a few channels rounded to one of its levels, whose product is the number of codes.

    Mentzer et al. 2023, sec. 3.
    """

    def __init__(self, *, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise UserError(f"quantizer: levels={list(levels)} must be at least one number, each 2 or more")
        self.levels = tuple(levels)
        self.channels = self.dim = len(levels)
        self.num_codes = math.prod(levels)

    def forward(self, features: Float[Tensor, "b d h w"], draw: Draw | None = None) -> Quantized:
        """Values in [-1, 1] on the grid of levels, with the gradient of the bounded features."""
        levels = self._column(self.levels, features)
        # an even number of levels lies half a step off 0; the 1e-3 keeps the outer ones reachable
        half, offset = (levels - 1) * (1 + 1e-3) / 2, (levels % 2 == 0) * 0.5
        bounded = torch.tanh(features.float() + torch.atanh(offset / half)) * half - offset
        whole = levels // 2
        places = bounded.detach().round()
        codes = ((places + whole) * self._column(self._bases(), features)).sum(dim=1).long()
        values = straight_through(bounded / whole, places / whole)
        return Quantized(values, codes, values.new_zeros(()))

    def lookup(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The values of codes."""
        like = codes[:, None].float()
        levels, bases = self._column(self.levels, like), self._column(self._bases(), like)
        whole = levels // 2
        # int64 division: codes may be too large for float32
        digits = codes[:, None] // bases.long() % levels.long()
        return (digits - whole) / whole

    def _bases(self) -> list[int]:
        return [math.prod(self.levels[:place]) for place in range(self.dim)]

    @staticmethod
    def _column(values: Sequence[int], like: Tensor) -> Float[Tensor, "1 d 1 1"]:
        # made at each call: a bundle's buffers would have to be stored
        return torch.tensor(values, dtype=torch.float32, device=like.device).view(1, -1, 1, 1)


class GumbelQuantizer(nn.Module):
    """Softmax with Gumbel noise in training, the likeliest code else (Ramesh et al. 2021, sec. 2.1).

    The loss is the divergence of the softmax of the logits to the uniform distribution, mean over places, in
    nats. Nothing is learned of counts, and no code has to be restarted.

    Args:
        channels: of the features.
        num_codes, dim: number of codes and of the channels that a decoder gets.
        temperature: of the softmax, by step.
        divergence_weight: of the loss, by step. DALL-E's 6.6 stands before a sum over places per pixel value:
            with f = 8 that is 6.6 / 192 here.
    """

    def __init__(
        self, *, channels: int, num_codes: int, dim: int, temperature: Schedule, divergence_weight: Schedule
    ) -> None:
        super().__init__()
        self.channels, self.num_codes, self.dim = channels, num_codes, dim
        self.temperature, self.divergence_weight = temperature, divergence_weight
        self.to_logits = nn.Conv2d(channels, num_codes, 1)
        self.codebook = nn.Parameter(nn.init.normal_(torch.empty(num_codes, dim)))

    def forward(self, features: Float[Tensor, "b c h w"], draw: Draw | None = None) -> Quantized:
        """Mixtures of the codes' vectors if there is a `draw`, else the vectors of the likeliest codes.

        In float32 even under autocast, as OpenAI's layers on both sides of the codes are.
        """
        with torch.autocast(features.device.type, enabled=False):
            logits = self.to_logits(features.float())
            codes, divergence = logits.argmax(dim=1), divergence_to_uniform(logits).mean()
            if draw is None:
                return Quantized(self.lookup(codes), codes, divergence * self.divergence_weight(ANNEALED))
            shares = ((logits + draw.gumbel(logits)) / self.temperature(draw.step)).softmax(dim=1)
            values = torch.einsum("bkhw,kd->bdhw", shares, self.codebook)
            return Quantized(values, codes, divergence * self.divergence_weight(draw.step))

    def lookup(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The vectors of codes."""
        return rearrange(F.embedding(codes, self.codebook.float()), "b h w d -> b d h w")


def divergence_to_uniform(logits: Float[Tensor, "b k h w"]) -> Float[Tensor, "b h w"]:
    """KL of the softmax over dimension 1 to the uniform distribution, in nats: 0 to ln k."""
    logs = logits.log_softmax(dim=1)
    return (logs.exp() * logs).sum(dim=1) + math.log(logits.shape[1])
