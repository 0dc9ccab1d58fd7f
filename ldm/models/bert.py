"""BERT as an encoder of sentences: all tokens attend to one another (Devlin et al. 2019, sec. 3)."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ldm.models.attention import SelfAttention
from ldm.models.clip import Mlp, TextOutput, gelu

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
