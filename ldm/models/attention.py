"""Attention over tokens ``b n c``; projections that read the same tokens are one matrix product."""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.blocks import rotate


class KeysValues(NamedTuple):
    """Keys and values of a context; sampling computes them once per prompt, not at every step."""

    keys: Float[Tensor, "b heads n d"]
    values: Float[Tensor, "b heads n d"]


class ProjectedContext(NamedTuple):
    """The projections of a context by all cross-attentions of a backbone, for any number of calls."""

    keys_values: tuple[KeysValues, ...]  # one per cross-attention, in the order of the forward pass
    pooled: Float[Tensor, "b c"] | None


@dataclass(frozen=True, kw_only=True)
class TransformerSpec:
    """The transformers of a U-Net, which read its context; give ``num_heads`` or ``head_dim``, not both.

    With ``pool_context`` a learned pool of the context, with its heads, joins the time embedding.
    """

    context_dim: int
    levels: list[bool]  # whether each resolution has transformers, finest first; the middle always has one
    pool_context: bool = False
    num_heads: int | None = None
    head_dim: int | None = None
    depth: int = 1
    ff_mult: int = 4
    qk_norm: bool = False  # whether queries and keys are normalised, as `HeadNorm` does

    def heads(self, width: int) -> int:
        """Number of heads at a level of ``width`` channels."""
        if (self.num_heads is None) == (self.head_dim is None):
            raise UserError(f"num_heads={self.num_heads}, head_dim={self.head_dim}: give exactly one of them")
        heads = self.num_heads or width // (self.head_dim or width)
        if heads < 1 or width % heads or (self.head_dim and width % self.head_dim):
            raise UserError(
                f"Width {width} does not divide into num_heads={self.num_heads} or head_dim={self.head_dim}; "
                "choose a divisor of the width."
            )
        return heads


# Logits that half-precision attention on a CPU computes at a time: 4 MB of bfloat16, which fit its caches.
# `python -m benchmarks.attention` prints the times of this and of torch's own kernel.
CACHED_LOGITS = 2**21


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    *,
    causal: bool = False,
    allowed: Bool[Tensor, "*rows n m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """Scaled dot-product attention; the softmax is computed in float32 and rounded once.

    Args:
        causal: each query attends to the places up to its own.
        allowed: or to those where this is true, which may be the same for all heads, or for the batch, too.
    """
    one_head = q.shape[2] * k.shape[2]
    if q.device.type != "cpu" or q.dtype == torch.float32 or one_head > CACHED_LOGITS:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal)
    # torch's fused kernel takes up to 8 times as long for half precision on a CPU, most of it in its backward
    if causal:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    heads = [rows.flatten(0, 1).split(CACHED_LOGITS // one_head) for rows in (q, k, v)]
    masks = _of_heads(allowed, q.shape[:2]).split(CACHED_LOGITS // one_head) if allowed is not None else None
    parts = zip(*heads, masks or [None] * len(heads[0]), strict=True)
    return torch.cat([_attend_in_parts(*few) for few in parts]).unflatten(0, q.shape[:2])


def _of_heads(allowed: Bool[Tensor, "*rows n m"], shape: torch.Size) -> Bool[Tensor, "bh n m"]:
    """A mask for each of b h heads, without copies where all have the same."""
    number, sides = shape.numel(), allowed.shape[-2:]
    if allowed.numel() == sides.numel():
        return allowed.view(1, *sides).expand(number, -1, -1)
    return allowed.expand(*shape, *sides).flatten(0, 1)


def _attend_in_parts(
    q: Float[Tensor, "h n d"],
    k: Float[Tensor, "h m d"],
    v: Float[Tensor, "h m d"],
    allowed: Bool[Tensor, "h n m"] | None,
) -> Float[Tensor, "h n d"]:
    """The same as two matrix products around a softmax."""
    # q is scaled, not the logits, which are more numbers and could overflow float16
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # h n m
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    return logits.softmax(dim=-1) @ v  # torch's softmax of half precision computes in float32 and rounds once


class HeadNorm(nn.RMSNorm):
    """RMS norm of queries or keys in float32, so that logits stay bounded (Dehghani et al. 2023, sec. 2)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__(head_dim, eps=1e-6)

    def forward(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Queries or keys of root mean square 1, times the learned gain."""
        return super().forward(x.to(self.weight.dtype))


class SelfAttention(nn.Module):
    """Multi-head self-attention; the rows of the fused projection are ordered q, k, v.

    ``angles`` of the tokens' places rotate queries and keys, so that their product depends on the distance.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        qkv_bias: bool = False,
        causal: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"{width=} is not a multiple of {num_heads=}: change one of them")
        self.num_heads = num_heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)  # one product: the tokens are read once
        self.norm_q, self.norm_k = (HeadNorm(width // num_heads) if qk_norm else nn.Identity() for _ in "qk")
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        angles: Float[Tensor, "n half"] | None = None,
        *,
        allowed: Bool[Tensor, "*rows n n"] | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Every token as a mixture of all tokens, or of those that are `allowed`; without residual."""
        q, k, v = rearrange(self.qkv(tokens), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        q, k = self.norm_q(q), self.norm_k(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        # norms and rotations return float32; torch's kernels want one dtype
        mixed = attend(q.to(v.dtype), k.to(v.dtype), v, causal=self.causal, allowed=allowed)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from tokens to projected context; the rows of ``kv`` are ordered k, v."""

    def __init__(
        self, width: int, context_dim: int, *, num_heads: int, qk_norm: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=bias)  # without, as in Stable Diffusion
        self.kv = nn.Linear(context_dim, 2 * width, bias=bias)
        self.norm_q, self.norm_k = (HeadNorm(width // num_heads) if qk_norm else nn.Identity() for _ in "qk")
        self.out = nn.Linear(width, width)

    def project(self, context: Float[Tensor, "b m e"]) -> KeysValues:
        """Keys and values of a context."""
        keys, values = rearrange(self.kv(context), "b m (two h d) -> two b h m d", two=2, h=self.num_heads)
        return KeysValues(keys=self.norm_k(keys).to(values.dtype), values=values)

    def forward(self, tokens: Float[Tensor, "b n c"], context: KeysValues) -> Float[Tensor, "b n c"]:
        """Every token as a mixture of the context, without residual."""
        q = self.norm_q(rearrange(self.q(tokens), "b n (h d) -> b h n d", h=self.num_heads))
        mixed = attend(q.to(context.values.dtype), context.keys, context.values)
        return self.out(rearrange(mixed, "b h n d -> b n (h d)"))


class FeedForward(nn.Module):
    """Two layers with a GELU gate: GEGLU (Shazeer 2020, eq. 6); the rows of ``hidden`` are value, gate."""

    def __init__(self, width: int, *, mult: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, 2 * mult * width)
        self.out = nn.Linear(mult * width, width)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Every token by itself, without residual."""
        value, gate = self.hidden(tokens).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, cross-attention and feed-forward."""

    def __init__(self, width: int, *, spec: TransformerSpec) -> None:
        super().__init__()
        self.norm_self = nn.LayerNorm(width)
        heads, qk_norm = spec.heads(width), spec.qk_norm
        self.self_attention = SelfAttention(width, num_heads=heads, qk_norm=qk_norm)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, spec.context_dim, num_heads=heads, qk_norm=qk_norm)
        self.norm_ff = nn.LayerNorm(width)
        self.ff = FeedForward(width, mult=spec.ff_mult)

    def forward(self, tokens: Float[Tensor, "b n c"], context: KeysValues) -> Float[Tensor, "b n c"]:
        """Tokens after the three residual branches."""
        tokens = tokens + self.self_attention(self.norm_self(tokens))
        tokens = tokens + self.cross_attention(self.norm_cross(tokens), context)
        return tokens + self.ff(self.norm_ff(tokens))


class SpatialTransformer(nn.Module):
    """Residual transformer over the pixels of a feature map (Rombach et al. 2022, app. E.2.1)."""

    def __init__(self, channels: int, *, spec: TransformerSpec, norm_groups: int = 32) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=1e-6)  # Stable Diffusion's eps
        self.proj_in = nn.Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, spec=spec) for _ in range(spec.depth))
        self.proj_out = nn.Linear(channels, channels)

    def project(self, context: Float[Tensor, "b m e"]) -> tuple[KeysValues, ...]:
        """Keys and values for each block."""
        return tuple(cast(TransformerBlock, block).cross_attention.project(context) for block in self.blocks)

    def forward(
        self, x: Float[Tensor, "b c h w"], context: tuple[KeysValues, ...]
    ) -> Float[Tensor, "b c h w"]:
        """The feature map after all blocks; `context` holds one pair per block."""
        # both reshapes are views when x is channels-last
        # a linear layer over tokens is the 1x1 convolution of Stable Diffusion 1 with its weights reshaped
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block, keys_values in zip(self.blocks, context, strict=True):
            tokens = block(tokens, keys_values)
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class SpatialAttention(nn.Module):
    """Residual single-head attention over all pixels: the middle of the autoencoder."""

    def __init__(self, channels: int, *, norm_groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=eps)
        self.attention = SelfAttention(channels, num_heads=1, qkv_bias=True)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The feature map with every pixel attending to all."""
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class AttentionPool(nn.Module):
    """One vector from a context: the mean of its tokens attends to them and to itself.

    diffusers' ``TextTimeEmbedding``, the pooled text of DeepFloyd IF. The gain of the last norm starts at 1,
    as it does there: it takes small steps, and from 0 it holds the text back for hundreds of them. The layers
    that end a network start at zero, so that the vector changes no first prediction.
    """

    def __init__(self, context_dim: int, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_in = nn.LayerNorm(context_dim)
        # distinguishes the mean from the tokens; scaled as in the attention pool of CLIP's image encoder
        self.place = nn.Parameter(torch.empty(1, context_dim).normal_().div_(context_dim**0.5))
        self.q = nn.Linear(context_dim, context_dim)
        self.kv = nn.Linear(context_dim, 2 * context_dim)
        self.out = nn.Linear(context_dim, width)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, context: Float[Tensor, "b m e"]) -> Float[Tensor, "b c"]:
        """One vector per context."""
        tokens = self.norm_in(context)
        # the mean is one of the tokens that it attends to, so that it can keep itself
        mean = tokens.mean(dim=1, keepdim=True) + self.place.to(tokens.dtype)
        # one query per text: the pooled state costs little beside the cross-attentions
        q = rearrange(self.q(mean), "b n (h d) -> b h n d", h=self.num_heads)
        all_tokens = self.kv(torch.cat([mean, tokens], dim=1))
        k, v = rearrange(all_tokens, "b m (two h d) -> two b h m d", two=2, h=self.num_heads)
        pooled = rearrange(attend(q, k, v), "b h 1 d -> b (h d)")
        return self.norm_out(self.out(pooled))
