"""A prior of codes by masked gated convolutions and attention, as in PixelSNAIL (Chen et al. 2018).

VQ-VAE-2's own kind of prior. A code is sampled by a pass over the whole grid, where the transformer needs one
over a single place: that makes it the second choice.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import CrossAttention, SelfAttention
from ldm.models.code_transformer import Nats, cross_entropy, head, table
from ldm.models.sequence import Drop
from ldm.models.two_level import Coarse, check_condition


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
