"""Causal transformer over a sequence of embeddings: the trunk of the systems that generate code after code.

It is GPT-2's (Radford et al. 2019) with what DALL-E (Ramesh et al. 2021) and CogView (Ding et al. 2021)
change: masks by layer, norms before and after each branch, and a softmax that stays finite in float16. Its
dropout is a function that the training passes in, so that it depends on seed and position alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import CrossAttention, KeysValues, attend
from ldm.models.blocks import apply
from ldm.models.clip import Activation, Mlp, gelu

Mask = Bool[Tensor, "n n"]  # [i, j]: whether the token at place i attends to the one at place j
Masks = Callable[[int], Sequence[Mask | None]]  # depth -> one per layer; None: all places up to its own
Drop = Callable[[Tensor, str], Tensor]  # (values, name of the place in the network) -> with some at zero

INITIAL_STD = 0.02  # Radford et al. 2018, sec. 4.1
HEADROOM = 8.0  # released code of CogView: inputs of its norms are divided by an eighth of their maximum


def dalle_masks(depth: int, *, text: int, grid: int, kernel: int = 11) -> list[Mask]:
    """The masks of a sequence of `text` tokens and then `grid` x `grid` codes, by layer as in ruDALL-E.

    Column attention in every fourth layer from the second on, convolution in the last, row attention in the
    others (Ramesh et al. 2021, app. B.1). A row and a column layer together reach the whole past.
    """
    row, column, window = row_mask(text, grid), column_mask(text, grid), window_mask(text, grid, kernel)
    return [column if number % 4 == 1 else window if number == depth - 1 else row for number in range(depth)]


def row_mask(text: int, grid: int) -> Mask:
    """All text before a token, and the last `grid` codes."""
    before, is_text = _distances(text, grid)
    return (before >= 0) & (is_text | (before <= grid))


def column_mask(text: int, grid: int) -> Mask:
    """All text before a token, and the codes above it in its column."""
    before, is_text = _distances(text, grid)
    return (before >= 0) & (is_text | (before % grid == 0))


def window_mask(text: int, grid: int, kernel: int) -> Mask:
    """All text before a token, and earlier codes in a window of `kernel` x `kernel`; edges wrap around."""
    before, is_text = _distances(text, grid)
    place = (torch.arange(text + grid**2) - text).clamp(min=0)  # text as queries sees text alone
    near = torch.ones_like(is_text)
    for line in (place // grid, place % grid):
        apart = (line[:, None] - line[None]).abs()
        near = near & (torch.minimum(apart, grid - apart) <= kernel // 2)
    return (before >= 0) & (is_text | near)


def _distances(text: int, grid: int) -> tuple[Tensor, Tensor]:
    """How many places each key (column) lies before each query (row), and whether the key is text."""
    place = torch.arange(text + grid**2)
    before = place[:, None] - place[None]
    return before, (place < text)[None].expand_as(before)


@dataclass
class Cache:
    """Keys and values of the places so far, with room for a whole sequence."""

    layers: list[Float[Tensor, "two b h room d"]]  # keys, then values
    valid: Bool[Tensor, "b n"] | None = None  # places that others attend to; None: all
    length: int = 0  # places that are filled


class TokenNorm(nn.LayerNorm):
    """Layer norm of inputs divided by an eighth of each token's own largest value: finite in float16.

    CogView divides by the largest value of the batch, which would make a picture depend on its batch.
    """

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """The same as a layer norm but for its epsilon."""
        largest = x.detach().abs().amax(dim=-1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        return super().forward(x / (largest / HEADROOM))


def relaxed_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    allowed: Bool[Tensor, "*rows n m"] | None,
    *,
    alpha: float,
) -> Float[Tensor, "b h n d"]:
    """CogView's PB-relax (Ding et al. 2021, eq. 6): softmax(alpha (q k / (alpha sqrt d) - max)) v.

    The maximum is each query's own, and only numbers of at most 0 are multiplied by alpha, in float32: logits
    of up to alpha times float16's range stay finite.
    """
    logits = (q / (alpha * q.shape[-1] ** 0.5)) @ k.transpose(-1, -2)
    if allowed is not None:
        logits = logits.masked_fill(~allowed, -torch.inf)
    logits = (logits - logits.detach().amax(dim=-1, keepdim=True)).float() * alpha
    return logits.softmax(dim=-1).to(v.dtype) @ v


class CausalAttention(nn.Module):
    """Multi-head self-attention; keys and values of earlier places come from a cache, if there is one."""

    def __init__(self, width: int, *, num_heads: int, pb_relax: float | None) -> None:
        super().__init__()
        if width % num_heads:
            raise UserError(f"{width=} is not a multiple of {num_heads=}: change one of them")
        self.num_heads, self.pb_relax = num_heads, pb_relax
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        allowed: Bool[Tensor, "*rows n m"] | None,
        cached: Float[Tensor, "two b h room d"] | None = None,
        start: int = 0,
    ) -> Float[Tensor, "b n c"]:
        """Every token as a mixture of the places that it attends to, without residual.

        Args:
            allowed: which those are; None: all up to their own.
            cached: keys and values; those of the tokens are written to their places.
            start: place of the first token.
        """
        # views by hand, here and at the end: a sampling step of a small network is mostly overhead
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cached is not None:
            stop = start + tokens.shape[1]
            cached[:, :, :, start:stop] = qkv[1:]
            q, (k, v) = qkv[0], cached[:, :, :, :stop].unbind(0)
        else:
            q, k, v = qkv.unbind(0)
        if self.pb_relax is not None:
            if allowed is None and start == 0:
                allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
            mixed = relaxed_attention(q, k, v, allowed, alpha=self.pb_relax)
        else:
            mixed = attend(q, k, v, allowed=allowed, causal=allowed is None and start == 0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Residual branches: causal self-attention, cross-attention if there is a context, and two linear layers.

    Each branch is normed before; with `sandwich` also after it (Ding et al. 2021, sec. 2.4), by norms that
    divide by each token's maximum.
    """

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        sandwich: bool,
        pb_relax: float | None,
        context_dim: int | None,
        activation: Activation,
    ) -> None:
        super().__init__()
        norm = TokenNorm if sandwich else nn.LayerNorm
        self.norm1, self.norm2 = norm(width), norm(width)
        self.close1, self.close2 = (norm(width) if sandwich else nn.Identity() for _ in range(2))
        self.attention = CausalAttention(width, num_heads=num_heads, pb_relax=pb_relax)
        self.cross = self.norm_cross = None
        if context_dim is not None:
            self.norm_cross = nn.LayerNorm(width)
            self.cross = CrossAttention(width, context_dim, num_heads=num_heads)
        self.mlp = Mlp(width, activation=activation)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        allowed: Bool[Tensor, "*rows n m"] | None,
        cached: Float[Tensor, "two b h room d"] | None,
        start: int,
        context: KeysValues | None,
        drop: Drop | None,
        name: str,
    ) -> Float[Tensor, "b n c"]:
        """Tokens after the branches."""
        branch = self.close1(self.attention(self.norm1(x), allowed, cached, start))
        x = x + (branch if drop is None else drop(branch, f"{name}/attention"))
        if self.cross is not None and self.norm_cross is not None and context is not None:
            branch = self.cross(self.norm_cross(x), context)
            x = x + (branch if drop is None else drop(branch, f"{name}/cross"))
        branch = self.close2(self.mlp(self.norm2(x)))
        return x + (branch if drop is None else drop(branch, f"{name}/mlp"))


class Trunk(nn.Module):
    """Layers over a sequence of embeddings, and the last norm; a state depends on places up to its own alone.

    Args:
        masks: the masks of the layers by their number, computed when they are needed first; None: full.
        sandwich: norms after the branches, too, and division by each token's maximum in all of them.
        pb_relax: alpha of `relaxed_attention`; None: plain attention.
        context_dim: width of a context that each layer reads by cross-attention; None: there is none.
        checkpointing: activation checkpointing of the layers.
    """

    def __init__(  # one argument an option of a network's yaml
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        masks: Masks | None = None,
        sandwich: bool = False,
        pb_relax: float | None = None,
        context_dim: int | None = None,
        activation: Activation = gelu,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.num_heads, self.masks, self.checkpointing = width, num_heads, masks, checkpointing
        options: dict[str, Any] = {"sandwich": sandwich, "pb_relax": pb_relax, "context_dim": context_dim}
        self.layers = nn.ModuleList(
            Layer(width, num_heads=num_heads, activation=activation, **options) for _ in range(depth)
        )
        self.norm = (TokenNorm if sandwich else nn.LayerNorm)(width)
        self._built: list[Mask | None] = []
        for layer in self._layers():
            for linear in (layer.attention.qkv, layer.mlp.wide, layer.attention.out, layer.mlp.narrow):
                nn.init.normal_(linear.weight, std=INITIAL_STD)
                nn.init.zeros_(linear.bias)
            # the layers that add to the residual stream start smaller in deeper networks (GPT-2, CogView)
            for linear in (layer.attention.out, layer.mlp.narrow):
                linear.weight.data.div_((2 * depth) ** 0.5)

    def cache(self, rows: int, length: int, *, valid: Bool[Tensor, "b n"] | None = None) -> Cache:
        """An empty cache for `rows` sequences of at most `length` places.

        `valid` are those that others attend to, for sequences with pads; None: all.
        """
        like = self.norm.weight
        shape = (2, rows, self.num_heads, length, self.width // self.num_heads)
        return Cache(layers=[like.new_zeros(shape) for _ in self.layers], valid=valid)

    def project_context(self, context: Float[Tensor, "b m e"]) -> list[KeysValues]:
        """Keys and values of a context for each layer, to be passed in its place to several calls."""
        return [layer.cross.project(context) for layer in self._layers() if layer.cross is not None]

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        *,
        cache: Cache | None = None,
        valid: Bool[Tensor, "b n"] | None = None,
        context: Float[Tensor, "b m e"] | list[KeysValues] | None = None,
        drop: Drop | None = None,
    ) -> Float[Tensor, "b n c"]:
        """The states of a whole sequence, or, with a cache, of the places that come next in it.

        Args:
            cache: of `cache`; it is filled.
            valid: as of `cache`, where there is none.
            context: as it is, or projected.
            drop: dropout of the embeddings and of each branch.
        """
        pairs = self.project_context(context) if isinstance(context, Tensor) else context
        start = 0 if cache is None else cache.length
        valid = valid if cache is None else cache.valid
        x = x if drop is None else drop(x, "embeddings")
        for number, layer in enumerate(self._layers()):
            allowed = self._allowed(number, start, start + x.shape[1], valid)
            cached = None if cache is None else cache.layers[number]
            pair = None if pairs is None else pairs[number]
            branch = (x, allowed, cached, start, pair, drop, str(number))
            x = apply(layer, *branch, recompute=self.checkpointing and cache is None)
        if cache is not None:
            cache.length = start + x.shape[1]
        return self.norm(x)

    def _allowed(
        self, number: int, start: int, stop: int, valid: Bool[Tensor, "b n"] | None
    ) -> Bool[Tensor, "*rows q k"] | None:
        """A layer's mask for queries from `start` to `stop`; None: as `CausalAttention` has it."""
        device = self.norm.weight.device
        if self.masks is not None and not self._built:
            # not buffers: a network is built on the meta device, and its buffers would stay there
            with torch.inference_mode(False):  # training may use them after sampling
                self._built = list(self.masks(len(self.layers)))
        mask = self._built[number] if self._built else None
        if mask is None:
            if valid is None and (start == 0 or stop == start + 1):
                return None
            mask = torch.ones(stop, stop, dtype=torch.bool, device=device).tril()
        elif mask.device != device:
            self._built = [None if each is None else each.to(device) for each in self._built]
            mask = cast(Tensor, self._built[number])
        rows = mask[start:stop, :stop]
        return rows if valid is None else rows & valid[:, None, None, :stop]

    def _layers(self) -> list[Layer]:
        return [cast(Layer, layer) for layer in self.layers]
