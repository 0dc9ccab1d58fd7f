"""The priors of VQ-VAE-2 (Razavi et al. 2019, sec. 3.2): coarse codes from text, fine codes from coarse ones.

Each is a transformer, or, as in the paper, a network of masked gated convolutions and attention, as in
PixelSNAIL (Chen et al. 2018). The latter samples a code by a pass over the whole grid, where the transformer
needs one over a single place: that makes it the second choice.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import CrossAttention, SelfAttention
from ldm.models.code_transformer import CodeNetwork, CodeTransformer, Nats, Prompt, cross_entropy, head, table
from ldm.models.sequence import Drop


class Coarse(nn.Module):
    """Coarse codes as features of a finer grid: a table, residual convolutions, and nearest neighbours.

    Args:
        num_codes, grid: of the coarse codes.
        fine: side of the finer grid.
        width: channels.
        blocks: residual blocks of two 3x3 convolutions.
    """

    def __init__(self, *, num_codes: int, grid: int, fine: int, width: int, blocks: int = 3) -> None:
        super().__init__()
        if fine % grid:
            raise UserError(f"bottom.grid={fine} is no multiple of top.grid={grid}: change one of them")
        self.grid, self.times = grid, fine // grid
        self.codes = table(num_codes, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ELU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ELU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )

    def forward(self, codes: Int[Tensor, "b m"]) -> Float[Tensor, "b n c"]:
        """A vector for each place of the finer grid."""
        x = rearrange(self.codes(codes), "b (h w) c -> b c h w", h=self.grid)
        for block in self.blocks:
            x = x + block(x)
        return rearrange(F.interpolate(x, scale_factor=self.times), "b c h w -> b (h w) c")


@dataclass(frozen=True, kw_only=True)
class AlignedPrompt(Prompt):
    """A prompt with a vector for each code to come."""

    aligned: Float[Tensor, "b n c"]


class TransformerPrior(CodeTransformer):
    """Codes by a causal transformer, from text by cross-attention or from coarse codes.

    Args:
        context_dim: of the text states; None: there is no text.
        coarse: `num_codes` and `grid` of the codes that it is conditioned on; None: there are none.
        others: see `CodeTransformer`.

    Raises UserError unless exactly one of the conditions is given.
    """

    def __init__(
        self,
        *,
        num_codes: int,
        grid: int,
        width: int,
        context_dim: int | None = None,
        coarse: dict[str, int] | None = None,
        **others: Any,
    ) -> None:
        check_condition(context_dim, coarse)
        trunk = {"context_dim": context_dim}
        super().__init__(num_codes=num_codes, grid=grid, width=width, trunk=trunk, **others)
        self.context_dim = context_dim
        self.start = nn.Parameter(torch.empty(width).normal_(std=0.02))
        self.codes, self.rows, self.columns = table(num_codes, width), table(grid, width), table(grid, width)
        self.coarse = None if coarse is None else Coarse(**coarse, fine=grid, width=width)
        self.head = head(width, num_codes)

    def prompt(self, condition: Tensor) -> Prompt:
        """The first embedding; text states `b m e` for the trunk, or coarse codes `b m` as features."""
        places = self._places()
        if self.coarse is None:
            first = (self.start + places[0]).expand(len(condition), 1, -1)
            return Prompt(embeddings=first, context=self.trunk.project_context(condition))
        aligned = self.coarse(condition) + places
        return AlignedPrompt(embeddings=self.start + aligned[:, :1], aligned=aligned)

    def embed(self, codes: Int[Tensor, "b n"], place: int, prompt: Prompt) -> Float[Tensor, "b n c"]:
        """The embeddings of codes, each with the features of the place that it predicts."""
        following = slice(place + 1, place + 1 + codes.shape[1])
        aligned = prompt.aligned if isinstance(prompt, AlignedPrompt) else self._places()[None]
        return self.codes(codes) + aligned[:, following]

    def code_logits(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """Logits of codes."""
        return self.head(states)

    def _places(self) -> Float[Tensor, "n c"]:
        return (self.rows.weight[:, None] + self.columns.weight).flatten(0, 1)


class TwoLevelPriors(nn.Module):
    """Both priors of VQ-VAE-2: p(top | text) and p(bottom | top).

    Raises UserError where the bottom prior expects other codes than the top one has.
    """

    def __init__(self, *, top: CodeNetwork, bottom: CodeNetwork) -> None:
        super().__init__()
        self.top, self.bottom = top, bottom
        coarse: Coarse | None = getattr(bottom, "coarse", None)
        wanted = None if coarse is None else (coarse.codes.num_embeddings, coarse.grid)
        if wanted != (top.num_codes, top.grid):
            raise UserError(
                f"backbone: bottom reads {wanted or 'no'} coarse codes (num_codes, grid), but top has"
                f" {(top.num_codes, top.grid)}: give both the same"
            )

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles what each prior compiles: this network has no `forward`."""
        for prior in (self.top, self.bottom):
            cast(nn.Module, prior).compile(*args, **options)

    def nats(
        self,
        context: Float[Tensor, "b m e"],
        top: Int[Tensor, "b n"],
        bottom: Int[Tensor, "b k"],
        drop: Drop | None = None,
    ) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b k"]]:
        """Negative log-likelihoods of all codes of both levels; their sum is that of the picture's codes."""
        of_top, of_bottom = self.top.nats(context, top, drop), self.bottom.nats(top, bottom, drop)
        return of_top.image, of_bottom.image


def check_condition(context_dim: int | None, coarse: object) -> None:
    """Raises UserError unless a prior is conditioned on text or on coarse codes, not on both."""
    if (context_dim is None) == (coarse is None):
        raise UserError("a prior reads text (context_dim) or coarse codes (coarse): give exactly one")


class MaskedConv(nn.Conv2d):
    """A convolution that sees the places of its window before its own in raster order, and maybe its own."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, sees_own: bool) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.seen = kernel**2 // 2 + sees_own  # places of the window, the first ones

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        """The features of each place."""
        # not a buffer: a network is built on the meta device, and its buffers would stay there
        seen = torch.arange(self.kernel_size[0] ** 2, device=x.device).view(self.kernel_size) < self.seen
        return F.conv2d(x, self.weight * seen, self.bias, padding=self.padding)


class GatedBlock(nn.Module):
    """Residual block of two masked convolutions and a gate (van den Oord et al. 2016); normed by place.

    The released networks norm weights; a norm over the channels of each place is as causal.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = MaskedConv(width, width, kernel, sees_own=True)
        self.second = MaskedConv(width, 2 * width, kernel, sees_own=True)
        self.condition = nn.Conv2d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Features after the block; `condition` is added before the gate."""
        normed = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        h = self.first(F.elu(normed)) + self.condition(condition)
        return x + F.glu(self.second(F.elu(h)), dim=1)


class PixelBlock(nn.Module):
    """Gated blocks, then attention to the places so far, and to the text if there is any."""

    def __init__(
        self,
        width: int,
        *,
        residuals: int,
        kernel: int,
        num_heads: int,
        attends: bool,
        context_dim: int | None,
    ) -> None:
        super().__init__()
        self.gated = nn.ModuleList(GatedBlock(width, kernel) for _ in range(residuals))
        self.norm = nn.LayerNorm(width)
        # the features of a place hold the codes before it alone, so that it may attend to itself
        self.attention = SelfAttention(width, num_heads=num_heads, causal=True) if attends else None
        self.cross = None
        if context_dim is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.cross = CrossAttention(width, context_dim, num_heads=num_heads)

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        condition: Float[Tensor, "b c h w"],
        context: Float[Tensor, "b m e"] | None,
    ) -> Float[Tensor, "b c h w"]:
        """Features after the branches."""
        for gated in self.gated:
            x = gated(x, condition)
        tokens = rearrange(x, "b c h w -> b (h w) c")
        if self.attention is not None:
            tokens = tokens + self.attention(self.norm(tokens))
        if self.cross is not None and context is not None:
            tokens = tokens + self.cross(self.norm_cross(tokens), self.cross.project(context))
        return rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


class PixelPrior(nn.Module):
    """Codes by masked convolutions, from text or from coarse codes.

    Args:
        num_codes, grid, context_dim, coarse: as of `TransformerPrior`.
        width: channels.
        blocks, residuals: gated blocks are `residuals` to a block.
        kernel: side of their windows, odd.
        num_heads: of attention, which comes after each block.
        attends: whether places attend to each other; the paper's bottom prior has no attention.
    """

    def __init__(  # one argument an option of conf/backbone/vqvae2_pixel_*.yaml
        self,
        *,
        num_codes: int,
        grid: int,
        width: int,
        blocks: int,
        residuals: int,
        num_heads: int,
        kernel: int = 5,
        attends: bool = True,
        context_dim: int | None = None,
        coarse: dict[str, int] | None = None,
    ) -> None:
        super().__init__()
        check_condition(context_dim, coarse)
        if kernel % 2 == 0:
            raise UserError(f"{kernel=} must be odd: a window has its place in the middle")
        self.num_codes, self.grid, self.context_dim = num_codes, grid, context_dim
        self.codes, self.rows, self.columns = table(num_codes, width), table(grid, width), table(grid, width)
        self.coarse = None if coarse is None else Coarse(**coarse, fine=grid, width=width)
        self.before = MaskedConv(width, width, kernel + 2, sees_own=False)
        options: dict[str, Any] = {
            "residuals": residuals,
            "kernel": kernel,
            "num_heads": num_heads,
            "attends": attends,
        }
        self.blocks = nn.ModuleList(
            PixelBlock(width, **options, context_dim=context_dim) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = head(width, num_codes)

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid**2

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the blocks: this network has no `forward`."""
        for block in self.blocks:
            block.compile(*args, **options)

    def logits(
        self, condition: Tensor, codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Float[Tensor, "b n k"]:
        """Logits of each code, given the condition and the codes before it."""
        places = (self.rows.weight[:, None] + self.columns.weight).movedim(-1, 0)  # c h w
        aligned = places.expand(len(codes), -1, -1, -1)
        if self.coarse is not None:
            aligned = aligned + rearrange(self.coarse(condition), "b (h w) c -> b c h w", h=self.grid)
        x = self.before(rearrange(self.codes(codes), "b (h w) c -> b c h w", h=self.grid)) + aligned
        for block in self.blocks:
            x = block(x, aligned, condition if self.coarse is None else None)
        return self.head(self.norm(rearrange(x, "b c h w -> b (h w) c")))

    def nats(self, condition: Tensor, codes: Int[Tensor, "b n"], drop: Drop | None = None) -> Nats:
        """The exact negative log-likelihood of every code."""
        return Nats(image=cross_entropy(self.logits(condition, codes, drop), codes))

    def continuation(self, condition: Tensor) -> Callable[[Tensor | None], Tensor]:
        """Pictures that grow code by code; each call is a pass over the whole grid."""
        codes = torch.zeros(len(condition), self.length, dtype=torch.int64, device=condition.device)
        count = 0

        def following(more: Tensor | None = None) -> Tensor:
            """Logits of the next code, (b, k)."""
            nonlocal count
            if more is not None:
                codes[:, count : count + more.shape[1]] = more
                count += more.shape[1]
            return self.logits(condition, codes)[:, count]

        return following
