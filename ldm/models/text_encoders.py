"""Text encoders beside CLIP's: BERT, and one that is trained with the denoiser.

In BERT all tokens of a sentence attend to one another (Devlin et al. 2019, sec. 3). The other has two parts:
`TokenVectors` takes the text encoder's place in the codec and has nothing to learn. `ReadingDenoiser` puts
transformer layers over those vectors, or over the states of a CLIP, in front of a denoiser; they are weights
of the denoiser like any other (Rombach et al. 2022, sec. 4.3.1).
"""

from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import ProjectedContext, SelfAttention
from ldm.models.clip import Block, Mlp, TextOutput, gelu, initialise_blocks

EPS = 1e-12  # of every norm in BERT's released code


class PostNormBlock(nn.Module):
    """Transformer layer with its norms after the residual sums (Vaswani et al. 2017, sec. 3.1)."""

    def __init__(self, width: int, *, num_heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads=num_heads, qkv_bias=True)
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, activation=gelu)
        self.norm2 = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Float[Tensor, "b n d"], allowed: Bool[Tensor, "b 1 n n"]) -> Float[Tensor, "b n d"]:
        """Tokens after both residual branches."""
        x = self.norm1(x + self.attention(x, allowed=allowed))
        return self.norm2(x + self.mlp(x))


class SentenceEncoder(nn.Module):
    """BERT's states, and their mean as the vector of a sentence (Reimers & Gurevych 2019, sec. 3).

    No token attends to a pad. The mean over the real tokens is what a sentence encoder was trained for: it is
    `pooled`, and it also stands in the place of each pad. A denoiser attends to all places alike, so what it
    reads there is the sentence as a whole, in place of states that no training has seen, and the mean over
    all places is the sentence's vector, however long it is. The empty text has the states of the start and
    the end token, and their mean.

    Args:
        vocab_size: rows of the table of tokens.
        context_length: tokens of a text, pads included.
        pad_id: of the token that pads.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        context_length: int,
        width: int,
        num_layers: int,
        num_heads: int,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.width = vocab_size, context_length, width
        self.pad_id = pad_id
        self.tokens = nn.Embedding(vocab_size, width)
        # holds BERT's vector of the first segment, too: a caption is never a pair of sentences
        self.positions = nn.Parameter(torch.empty(context_length, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.blocks = nn.ModuleList(PostNormBlock(width, num_heads=num_heads) for _ in range(num_layers))
        for table in (self.tokens.weight, self.positions):
            nn.init.normal_(table, std=0.02)  # as in BERT's released code

    def forward(self, tokens: Int[Tensor, "b n"]) -> TextOutput:
        """States and pooled vectors of token ids; columns of pads alone may be left out."""
        real = tokens != self.pad_id  # b n
        allowed = real[:, None, None].expand(-1, 1, tokens.shape[1], -1)
        x = self.norm(self.tokens(tokens) + self.positions[: tokens.shape[1]])  # b n d
        for block in self.blocks:
            x = block(x, allowed)
        share = real / real.sum(dim=1, keepdim=True)
        pooled = (share[:, None].to(x.dtype) @ x)[:, 0]
        return TextOutput(states=torch.where(real[..., None], x, pooled[:, None]), pooled=pooled)


class TokenVectors(nn.Module):
    """A fixed vector for every token id, and nothing of the tokens around it.

    The end token is the last id of the vocabulary, as in `ldm.models.clip.TextTransformer`.
    """

    def __init__(self, *, vocab_size: int, context_length: int, width: int) -> None:
        super().__init__()
        self.vocab_size, self.context_length, self.width = vocab_size, context_length, width
        self.eot_id = vocab_size - 1
        # random directions are nearly orthogonal: a linear layer can give any few words any vectors
        rows = torch.empty(vocab_size, width).normal_(generator=torch.Generator().manual_seed(0))
        self.table = nn.Embedding(vocab_size, width, _weight=rows)

    def forward(self, tokens: Int[Tensor, "b n"]) -> TextOutput:
        """The tokens' vectors, and as the pooled vector that of the end token."""
        states = self.table(tokens)
        return TextOutput(states=states, pooled=self.table.weight[self.eot_id].expand(tokens.shape[0], -1))


class ReadingDenoiser(nn.Module):
    """A denoiser with transformer layers over its context, each token attending to all others.

    Args:
        net: the denoiser; the layers have the width of its context.
        context_length: tokens of a context, at most.
        num_layers, num_heads: of the transformer.

    Raises UserError: no layers, or heads that don't divide the context's width.
    """

    def __init__(self, *, net: nn.Module, context_length: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        if num_layers < 1:
            raise UserError(f"{num_layers=} must be at least 1; without text layers name the denoiser itself")
        self.net = net
        self.latent_channels, self.context_dim = cast(int, net.latent_channels), cast(int, net.context_dim)
        self.hidden: dict[str, tuple[int, int]] = getattr(net, "hidden", {})
        self.early_head: int | None = getattr(net, "early_head", None)
        self.positions = nn.Parameter(torch.empty(context_length, self.context_dim).normal_().mul_(0.1))
        self.blocks = nn.ModuleList(
            Block(self.context_dim, num_heads=num_heads, causal=False, activation=gelu)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(self.context_dim)
        initialise_blocks(self.blocks, width=self.context_dim)

    def project_context(self, context: Float[Tensor, "b m e"]) -> ProjectedContext:
        """What the denoiser projects of the context after the text layers; see `UNet.project_context`.

        Raises UserError for a context of more tokens than `context_length`.
        """
        tokens, most = context.shape[1], len(self.positions)
        if tokens > most:
            raise UserError(
                f"backbone.context_length={most} is too small: the text encoder makes {tokens} tokens"
            )
        context = context + self.positions[:tokens]
        for block in self.blocks:
            context = block(context)
        projected: ProjectedContext = cast(Any, self.net).project_context(self.norm(context))
        return projected

    def forward(
        self,
        x: Float[Tensor, "b c h w"],
        t: Float[Tensor, " b"],
        context: Float[Tensor, "b m e"] | ProjectedContext,
        **asked: Any,
    ) -> Float[Tensor, "b c h w"] | tuple[Tensor, dict[str, Tensor]]:
        """What the denoiser returns, for `asked` of it; the text is read once for all steps of a sampler."""
        if isinstance(context, Tensor):
            context = self.project_context(context)
        out: Tensor | tuple[Tensor, dict[str, Tensor]] = self.net(x, t, context, **asked)
        return out
