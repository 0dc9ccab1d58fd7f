"""The network of VQ-Diffusion: noisy codes, a timestep and a context to logits of the clean codes.

As in the released code (Gu et al. 2022, sec. 4.2): every norm before attention has its own table of timesteps
(AdaLN), and places have embeddings of their row and column.
"""

from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm.models.attention import CrossAttention, KeysValues, SelfAttention
from ldm.models.blocks import apply
from ldm.models.clip import Mlp, quick_gelu


class TimestepNorm(nn.Module):
    """Layer norm that an embedding of the timestep scales and shifts."""

    def __init__(self, width: int, *, num_steps: int) -> None:
        super().__init__()
        self.steps = nn.Embedding(num_steps, width)
        self.modulation = nn.Linear(width, 2 * width)  # rows: scale, shift

    def forward(self, x: Float[Tensor, "b n c"], t: Int[Tensor, " b"]) -> Float[Tensor, "b n c"]:
        """The normed tokens; the first row of the table is of t = 1."""
        scale, shift = self.modulation(F.silu(self.steps(t - 1))).unsqueeze(1).chunk(2, dim=-1)  # b 1 c
        return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Block(nn.Module):
    """Self-attention, cross-attention and a two-layer network; the timestep reaches the first two."""

    def __init__(self, width: int, context_dim: int, *, num_heads: int, num_steps: int) -> None:
        super().__init__()
        self.norm_self = TimestepNorm(width, num_steps=num_steps)
        self.self_attention = SelfAttention(width, num_heads=num_heads, qkv_bias=True)
        self.norm_cross = TimestepNorm(width, num_steps=num_steps)
        self.cross_attention = CrossAttention(width, context_dim, num_heads=num_heads, bias=True)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = Mlp(width, activation=quick_gelu)

    def forward(
        self, x: Float[Tensor, "b n c"], t: Int[Tensor, " b"], context: KeysValues
    ) -> Float[Tensor, "b n c"]:
        """Tokens after the three residual branches."""
        x = x + self.self_attention(self.norm_self(x, t))
        x = x + self.cross_attention(self.norm_cross(x, t), context)
        return x + self.mlp(self.norm_mlp(x))


class CodeDenoiser(nn.Module):
    """Noisy codes of a square grid, row by row, to logits of the clean ones.

    The network holds the context that stands for no text, which guidance needs (Tang et al. 2022, sec. 3.1).
    `checkpointing` is activation checkpointing of the blocks.
    """

    def __init__(  # one parameter per key of conf/backbone/codes_*.yaml
        self,
        *,
        num_codes: int,
        grid: int,
        num_steps: int,
        context_dim: int,
        context_length: int,
        width: int,
        depth: int,
        num_heads: int,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.num_codes, self.grid, self.num_steps = num_codes, grid, num_steps
        self.context_dim, self.context_length = context_dim, context_length
        self.checkpointing = checkpointing
        self.empty = nn.Parameter(torch.empty(context_length, context_dim))
        self.codes = nn.Embedding(num_codes + 1, width)  # the last one is the mask
        self.rows = nn.Embedding(grid, width)
        self.columns = nn.Embedding(grid, width)
        self.blocks = nn.ModuleList(
            Block(width, context_dim, num_heads=num_heads, num_steps=num_steps) for _ in range(depth)
        )
        self.norm_out = nn.LayerNorm(width)
        self.logits = nn.Linear(width, num_codes)
        self.initialise()

    def initialise(self) -> None:
        """Matrices and tables with deviation 0.02 and no biases, as in the released code."""
        nn.init.normal_(self.empty, std=self.context_dim**-0.5)  # rows of length 1, as those of a context
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def context(self, states: Float[Tensor, "b m e"]) -> Float[Tensor, "b m e"]:
        """The context that text states make: each of length 1; padding is not masked."""
        return F.normalize(states, dim=-1)

    def project_context(self, context: Float[Tensor, "b m e"]) -> tuple[KeysValues, ...]:
        """Keys and values of a context, to be passed in its place to several calls."""
        return tuple(block.cross_attention.project(context) for block in self._blocks())

    def forward(
        self,
        x: Int[Tensor, "b n"],
        t: Int[Tensor, " b"],
        context: Float[Tensor, "b m e"] | tuple[KeysValues, ...],
    ) -> Float[Tensor, "b n k"]:
        """Logits of x_0; t is 1 to `num_steps`, and `num_codes` in x is the mask."""
        pairs = self.project_context(context) if isinstance(context, Tensor) else context
        places = (self.rows.weight[:, None] + self.columns.weight).flatten(0, 1)  # n c
        tokens = self.codes(x) + places
        for block, pair in zip(self._blocks(), pairs, strict=True):
            tokens = apply(block, tokens, t, pair, recompute=self.checkpointing)
        return self.logits(self.norm_out(tokens))

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]
