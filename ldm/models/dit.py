"""Diffusion transformer over patches of latents, reading text by cross-attention.

The blocks are DiT's (Peebles & Xie 2023) with PixArt-α's shared modulation and cross-attention (Chen et al.
2023, sec. 2.3), rotary places, normalised queries and keys, and the long skips of U-ViT (Bao et al. 2023,
sec. 3.1).
"""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import (
    AttentionPool,
    CrossAttention,
    FeedForward,
    KeysValues,
    ProjectedContext,
    SelfAttention,
)
from ldm.models.blocks import TimeEmbedding, apply, axial_angles, check_divides, zero

TIME_CHANNELS = 256  # released code of Peebles & Xie 2023


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the timestep shifts, scales and gates first and last.

    The timestep's six vectors are computed once for all blocks; each block adds a table of its own to them
    (adaLN-single; Chen et al. 2023, sec. 2.3). With ``merges`` it also reads the output of an earlier block.
    """

    def __init__(
        self, width: int, context_dim: int, *, num_heads: int, ff_mult: int, merges: bool = False
    ) -> None:
        super().__init__()
        self.merge = nn.Linear(2 * width, width) if merges else None
        self.table = nn.Parameter(torch.zeros(6, width))
        self.norm_self = nn.LayerNorm(width, elementwise_affine=False)  # the timestep scales and shifts it
        self.self_attention = SelfAttention(width, num_heads=num_heads, qk_norm=True)
        self.norm_cross = nn.LayerNorm(width)  # a gain of its own: the timestep does not reach this branch
        self.cross_attention = CrossAttention(width, context_dim, num_heads=num_heads, qk_norm=True)
        self.norm_ff = nn.LayerNorm(width, elementwise_affine=False)
        self.ff = FeedForward(width, mult=ff_mult)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        time: Float[Tensor, "b six c"],
        angles: Float[Tensor, "n half"],
        context: KeysValues,
        earlier: Float[Tensor, "b n c"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Tokens after the three branches; `time` holds the six vectors, `earlier` the output to merge."""
        if self.merge is not None and earlier is not None:
            tokens = self.merge(torch.cat([tokens, earlier], dim=-1))
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (self.table + time).unsqueeze(2).unbind(1)  # b 1 c
        mixed = self.self_attention(self.norm_self(tokens) * (1 + scale) + shift, angles)
        tokens = tokens + gate * mixed
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), context)
        return tokens + gate_ff * self.ff(self.norm_ff(tokens) * (1 + scale_ff) + shift_ff)


class DiT(nn.Module):
    """Noisy latents, network times (about 0 to 1000) and a context to a prediction shaped like the latents.

    Squares of ``patch`` x ``patch`` latents are the tokens. With ``long_skips`` each block of the second half
    reads the output of its counterpart in the first. ``early_head`` is the number of blocks after which a
    second head predicts, too, for internal guidance (arXiv 2512.24176); None: there is none.
    ``checkpointing`` is activation checkpointing of the blocks. Raises UserError on sizes that do not fit.

    Attributes:
        hidden: (channels, latents along a side of one place) of each hidden state that `forward` returns when
            asked: the outputs of the blocks, from block0 on.
    """

    def __init__(  # one parameter per key of conf/backbone/dit_*.yaml
        self,
        *,
        latent_channels: int,
        context_dim: int,
        width: int,
        depth: int,
        num_heads: int,
        ff_mult: int,
        patch: int,
        long_skips: bool = False,
        early_head: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width % (4 * num_heads):  # rotations turn pairs of features, along two axes
            raise UserError(
                f"width={width} does not divide into num_heads={num_heads} heads of a multiple of 4 "
                "features; change one of them."
            )
        if long_skips and depth % 2 == 0:
            raise UserError(f"depth={depth} with long_skips has no middle block; make it odd.")
        if early_head is not None and not 0 < early_head < depth:
            raise UserError(f"{early_head=} must be at least 1 and below depth={depth}")
        self.latent_channels, self.context_dim, self.early_head = latent_channels, context_dim, early_head
        self.head_dim = width // num_heads
        self.patch = self.factor = patch
        self.checkpointing = checkpointing
        self.hidden = {f"block{number}": (width, patch) for number in range(depth)}

        self.time = TimeEmbedding(TIME_CHANNELS, width)
        self.pool = AttentionPool(context_dim, width, num_heads=1)
        self.modulation = nn.Linear(width, 6 * width)
        self.patches_in = nn.Linear(latent_channels * patch**2, width)
        self.skips = depth // 2 if long_skips else 0
        self.blocks = nn.ModuleList(
            Block(
                width, context_dim, num_heads=num_heads, ff_mult=ff_mult, merges=number >= depth - self.skips
            )
            for number in range(depth)
        )
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.patches_out = nn.Linear(width, latent_channels * patch**2)
        if early_head is not None:  # after all others, whose first weights are as without it
            self.early_modulation = nn.Linear(width, 2 * width)
            self.early_out = nn.Linear(width, latent_channels * patch**2)
        self.initialise()

    def initialise(self) -> None:
        """Zeroes every layer that ends a branch; the rest keeps torch's own initialisation."""
        # with the tables at zero all gates are: a block starts as the identity (adaLN-Zero)
        zero(self.modulation)
        zero(self.modulation_out)
        zero(self.patches_out)  # the first prediction is 0, the mean of every target
        if self.early_head is not None:
            zero(self.early_modulation)
            zero(self.early_out)
        for block in self._blocks():
            zero(block.cross_attention.out)  # no gate here: it is this zero that adds nothing at first
            if block.merge is not None:
                zero(block.merge)
                width = block.merge.out_features
                block.merge.weight.data[:, :width] = torch.eye(width)  # starts as if there were no skip

    def project_context(self, context: Float[Tensor, "b m e"]) -> ProjectedContext:
        """Keys, values and pooled vector of a context, to be passed in its place to several calls."""
        pairs = tuple(block.cross_attention.project(context) for block in self._blocks())
        return ProjectedContext(keys_values=pairs, pooled=self.pool(context))

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b m e"] | ProjectedContext,
        hidden: Sequence[str] = (),
        early: float = 1.0,
    ) -> Float[Tensor, "b c h w"] | tuple[Tensor, dict[str, Tensor]]:
        """The prediction; `context` may be projected already, as it is for all steps of a sampler.

        With names of `hidden` states, also those by name, (b, channels, rows, columns); `early` is the early
        head's prediction. With a number `early`, the prediction is E + early (P - E) of both heads' E and P.

        Raises UserError where there is no early head, or where it would be left untrained.
        """
        self._check_early(asked="early" in hidden or early != 1)
        check_divides(x, self.patch)
        if isinstance(context, Tensor):
            context = self.project_context(context)
        rows, columns = (side // self.patch for side in x.shape[-2:])
        time = F.silu(self.time(t) + cast(Tensor, context.pooled))
        modulation = rearrange(self.modulation(time), "b (six c) -> b six c", six=6)
        angles = axial_angles(rows, columns, self.head_dim, device=x.device)

        tokens = self.patches_in(
            rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        )
        kept = (*hidden, "early") if early != 1 else hidden
        tokens, states = self._transform(tokens, modulation, angles, context.keys_values, kept)
        out = self._latents(tokens, self.modulation_out(time), self.patches_out, rows=rows)
        maps = {name: rearrange(state, "b (h w) c -> b c h w", h=rows) for name, state in states.items()}
        if "early" in states:
            maps["early"] = self._latents(
                states["early"], self.early_modulation(time), self.early_out, rows=rows
            )
        if early != 1:
            out = torch.lerp(maps["early"].float(), out.float(), early)
        return (out, {name: maps[name] for name in hidden}) if hidden else out

    def _latents(self, tokens: Tensor, modulation: Tensor, head: nn.Module, *, rows: int) -> Tensor:
        shift, scale = modulation.unsqueeze(1).chunk(2, dim=-1)  # b 1 c
        patches: Tensor = head(self.norm_out(tokens) * (1 + scale) + shift)
        return rearrange(patches, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=self.patch, q=self.patch)

    def _check_early(self, *, asked: bool) -> None:
        if asked and self.early_head is None:
            raise UserError("the DiT has no early head to guide by: train one with +term=internal")
        trains = self.training and torch.is_grad_enabled()
        if trains and not asked and self.early_head is not None:
            raise UserError(
                f"backbone.early_head={self.early_head} is trained by +term=internal: add that, or write "
                "backbone.early_head=null"
            )

    def _transform(
        self,
        tokens: Tensor,
        time: Tensor,
        angles: Tensor,
        pairs: tuple[KeysValues, ...],
        hidden: Sequence[str],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        outputs: list[Tensor] = []
        states: dict[str, Tensor] = {}
        for number, (block, pair) in enumerate(zip(self._blocks(), pairs, strict=True)):
            # a stack: the last block of the first half is read first, as in a U-Net
            earlier = outputs.pop() if block.merge is not None else None
            tokens = apply(block, tokens, time, angles, pair, earlier, recompute=self.checkpointing)
            if len(outputs) < self.skips and block.merge is None:
                outputs.append(tokens)
            if (name := f"block{number}") in hidden:
                states[name] = tokens
            if number + 1 == self.early_head and "early" in hidden:
                states["early"] = tokens
        return tokens, states

    def _blocks(self) -> list[Block]:
        return [cast(Block, block) for block in self.blocks]
