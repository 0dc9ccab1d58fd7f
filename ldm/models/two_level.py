"""The priors of VQ-VAE-2 (Razavi et al. 2019, sec. 3.2): coarse codes from text, fine codes from coarse ones.

Each is a transformer, or, as in the paper, a network of masked gated convolutions and attention
(`ldm.models.pixel_prior`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.code_transformer import CodeNetwork, CodeTransformer, Prompt, head, table
from ldm.models.sequence import Drop, Trunk


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
        num_codes, grid: of the codes.
        width, depth, num_heads, checkpointing: see `Trunk`.
        context_dim: of the text states; None: there is no text.
        coarse: `num_codes` and `grid` of the codes that it is conditioned on; None: there are none.

    Raises UserError unless exactly one of the conditions is given.
    """

    def __init__(  # one argument an option of conf/backbone/vqvae2_*.yaml
        self,
        *,
        num_codes: int,
        grid: int,
        width: int,
        depth: int,
        num_heads: int,
        context_dim: int | None = None,
        coarse: dict[str, int] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        check_condition(context_dim, coarse)
        self.num_codes, self.grid, self.context_dim = num_codes, grid, context_dim
        self.trunk = Trunk(
            width=width,
            depth=depth,
            num_heads=num_heads,
            context_dim=context_dim,
            checkpointing=checkpointing,
        )
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
