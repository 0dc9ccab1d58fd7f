"""Which word moved which part of a picture: the weights of the cross-attentions while it is generated.

The weights of all cross-attentions and steps are brought to one size and averaged (DAAM; Tang et al. 2023,
sec. 3).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ldm.generators.generator import Opened
from ldm.models.attention import CrossAttention, KeysValues
from ldm.sampling.batches import generate_batch
from ldm.sampling.jobs import Job
from ldm.tokenizers import Tokenizer, words

SIDE = 32  # of a map
NONE = "This system has no cross-attention from places in the picture to words: there is nothing to show."
THIRDS = (
    ("upper left", "top", "upper right"),
    ("left", "middle", "right"),
    ("lower left", "bottom", "lower right"),
)


@dataclass
class Maps:
    """The sum of the weights that were seen, tokens times places, and how many there were."""

    total: Float[Tensor, "m s s"] | None = None
    seen: int = 0
    length: int = field(default=0)  # tokens of the context

    def add(self, weights: Float[Tensor, "n m"]) -> None:
        """Adds the weights of one attention, whose places are a square; others say nothing of places."""
        side = math.isqrt(len(weights))
        if side < 2 or side**2 != len(weights) or self.length not in (0, weights.shape[1]):
            return
        grid = rearrange(weights, "(h w) m -> 1 m h w", h=side)
        sized = F.interpolate(grid, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        self.total = sized if self.total is None else self.total + sized
        self.seen, self.length = self.seen + 1, weights.shape[1]

    def mean(self) -> Float[Tensor, "m s s"]:
        """The average."""
        assert self.total is not None
        return self.total / self.seen


def weights_of(attention: CrossAttention, tokens: Tensor, context: KeysValues) -> Float[Tensor, "n m"]:
    """The softmax of one attention, averaged over its heads, for the first text: guidance follows it."""
    first = tokens[:1]
    q = attention.norm_q(rearrange(attention.q(first), "b n (h d) -> b h n d", h=attention.num_heads)).float()
    logits = q @ context.keys[:1].float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[0]


@contextmanager
def watched(nets: list[nn.Module]) -> Iterator[Maps]:
    """The weights of every cross-attention of networks, added up while the block runs."""
    maps = Maps()

    def _see(module: nn.Module, arguments: Any, _: Any) -> None:
        assert isinstance(module, CrossAttention)
        maps.add(weights_of(module, *arguments).cpu())

    found = [each for net in nets for each in net.modules() if isinstance(each, CrossAttention)]
    handles = [each.register_forward_hook(_see) for each in found]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def networks_of(generator: Any) -> list[nn.Module]:
    """The networks that a generator holds; a weak one, which only guides, is none of them."""
    held = vars(generator).items() if hasattr(generator, "__dict__") else ()
    return [value for name, value in held if isinstance(value, nn.Module) and name != "weak"]


def heat_maps(opened: Opened, job: Job) -> dict[str, Any]:
    """The maps of a picture's words as plain data, from 0 to 1 each; generates the picture once more.

    Returns `sentence`, and `words` with `word`, `map` (a list of rows) and `place`, none for a system without
    cross-attention.
    """
    with torch.no_grad(), watched(networks_of(opened.generator)) as maps:
        generate_batch(opened, [job])
    tokenizer = opened.generator.tokenizer
    if maps.seen == 0 or tokenizer is None:
        return {"sentence": NONE, "words": []}
    mean, listed = maps.mean(), []
    for word, positions in spans(job.prompt, tokenizer):
        if positions and max(positions) < len(mean):
            grid = mean[positions].sum(dim=0)
            span = (grid.max() - grid.min()).clamp(min=1e-12)
            scaled = (grid - grid.min()) / span
            rows = [[round(value, 3) for value in row] for row in scaled.tolist()]
            listed.append({"word": word, "map": rows, "place": place_of(scaled)})
    sentence = f"Bright is where a word was read most; the mean of {maps.seen} attentions."
    return {"sentence": sentence, "words": listed}


def spans(prompt: str, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """The words of a prompt with the positions of their tokens, as far as they are read."""
    found, start = [], 1  # the first token is the start
    for word in words(prompt):
        count = tokenizer.count(word) - 2
        positions = [each for each in range(start, start + count) if each < tokenizer.context_length - 1]
        if any(letter.isalnum() for letter in word):
            found.append((word, positions))
        start += count
    return found


def place_of(grid: Float[Tensor, "s s"]) -> str:
    """Where the centre of a map lies, in words."""
    heavy = grid.square()  # the bright parts count, not the wide dim ones
    total = heavy.sum().clamp(min=1e-12)
    places = torch.arange(len(grid)) + 0.5
    row, column = ((heavy.sum(dim=dim) * places).sum() / total / len(grid) for dim in (1, 0))
    return THIRDS[min(2, int(3 * row))][min(2, int(3 * column))]
