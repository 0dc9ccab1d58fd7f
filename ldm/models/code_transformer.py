"""The base class of networks that generate a picture code after code; a new one needs three methods.

It turns its condition into a prompt, the embeddings that stand before the first code, embeds codes, and reads
logits off the trunk's states. Training evaluates all codes in one pass, sampling one at a time from a cache.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ldm.models.attention import KeysValues
from ldm.models.sequence import INITIAL_STD, Drop, Trunk


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What stands before the first code of each sequence."""

    embeddings: Float[Tensor, "b m c"]
    valid: Bool[Tensor, "b m"] | None = None  # False: a pad, which nothing attends to; None: there are none
    first: Int[Tensor, " b"] | None = None  # place of the first code, where pads do not count
    context: list[KeysValues] | None = None  # what cross-attentions read


class Nats(NamedTuple):
    """Negative log-likelihood of each token that a network predicts, in nats."""

    image: Float[Tensor, "b n"]
    text: Float[Tensor, "b m"] | None = None
    counted: Bool[Tensor, "b m"] | None = None  # which of the text's are tokens and no pads; None: all


@runtime_checkable
class CodeNetwork(Protocol):
    """A distribution of a picture's codes given a condition, which has a row for each picture."""

    num_codes: int
    grid: int

    @property
    def length(self) -> int:
        """Codes of a picture."""

    def nats(self, condition: Any, codes: Tensor, drop: Drop | None = None, /) -> Nats:
        """Negative log-likelihood of every code."""

    def continuation(self, condition: Any, /) -> Callable[[Tensor | None], Tensor]:
        """Pictures that grow by the codes (b, n) that it is called with; returns logits of the next (b, k).

        Its first call is with None.
        """


class CodeTransformer(nn.Module, ABC):
    """A causal trunk that predicts the codes of a picture, `grid` x `grid` of them, after a prompt.

    Args:
        num_codes, grid: of the picture's codes.
        width, depth, num_heads, checkpointing: see `Trunk`.
        trunk: further options of it, which a subclass sets.
    """

    def __init__(
        self,
        *,
        num_codes: int,
        grid: int,
        width: int,
        depth: int,
        num_heads: int,
        checkpointing: bool = False,
        trunk: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.num_codes, self.grid = num_codes, grid
        sizes: dict[str, Any] = {"width": width, "depth": depth, "num_heads": num_heads}
        self.trunk = Trunk(**sizes, checkpointing=checkpointing, **trunk)

    @abstractmethod
    def prompt(self, condition: Any) -> Prompt:
        """The prompt of a condition, which has a row for each picture."""

    @abstractmethod
    def embed(self, codes: Int[Tensor, "b n"], place: int, prompt: Prompt) -> Float[Tensor, "b n c"]:
        """The embeddings of codes, the first of which is code number `place` of its picture."""

    @abstractmethod
    def code_logits(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """Logits of the code that follows each state."""

    @property
    def length(self) -> int:
        """Codes of a picture."""
        return self.grid**2

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles the trunk: a network on codes has no `forward`, which is what torch would compile."""
        self.trunk.compile(*args, **options)

    def states(
        self, prompt: Prompt, codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Float[Tensor, "b m c"]:
        """States of prompt and codes in one pass, as training needs them."""
        x = torch.cat([prompt.embeddings, self.embed(codes, 0, prompt)], dim=1)
        return self.trunk(x, valid=_extended(prompt, codes.shape[1]), context=prompt.context, drop=drop)

    def logits(
        self, condition: Any, codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Float[Tensor, "b n k"]:
        """Logits of each code of a picture, given the condition and the codes before it."""
        prompt = self.prompt(condition)
        states = self.states(prompt, codes[:, :-1], drop)
        return self.code_logits(states[:, prompt.embeddings.shape[1] - 1 :])

    def nats(self, condition: Any, codes: Int[Tensor, "b n"], drop: Drop | None = None) -> Nats:
        """Negative log-likelihoods of codes; networks that read tokens add those of the text."""
        return Nats(image=cross_entropy(self.logits(condition, codes, drop), codes))

    def continuation(self, condition: Any) -> "Continuation":
        """Sequences of the condition's prompt that grow code by code."""
        return Continuation(self, self.prompt(condition))


class Continuation:
    """A sequence that grows by the codes that it is called with, and predicts the next one."""

    def __init__(self, net: CodeTransformer, prompt: Prompt) -> None:
        self.net, self.prompt, self.place = net, prompt, 0
        rows, length = prompt.embeddings.shape[:2]
        more = net.length - 1  # nothing follows the last code
        self.cache = net.trunk.cache(rows, length + more, valid=_extended(prompt, more))

    def __call__(self, codes: Int[Tensor, "b n"] | None = None) -> Float[Tensor, "b k"]:
        """Logits of the code after `codes`, which follow those of earlier calls; None: after the prompt."""
        if codes is None:
            x = self.prompt.embeddings
        else:
            x = self.net.embed(codes, self.place, self.prompt)
            self.place += codes.shape[1]
        states = self.net.trunk(x, cache=self.cache, context=self.prompt.context)
        return self.net.code_logits(states[:, -1:])[:, 0]


def table(count: int, width: int) -> nn.Embedding:
    """A table of `count` vectors, as GPT-2's start."""
    made = nn.Embedding(count, width)
    nn.init.normal_(made.weight, std=INITIAL_STD)
    return made


def head(width: int, count: int, *, bias: bool = False) -> nn.Linear:
    """A layer that makes logits, as GPT-2's starts."""
    made = nn.Linear(width, count, bias=bias)
    nn.init.normal_(made.weight, std=INITIAL_STD)
    if bias:
        nn.init.zeros_(made.bias)
    return made


def cross_entropy(logits: Float[Tensor, "b n k"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Negative log-likelihood of each target in nats, in float32."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(
        targets.shape
    )


def _extended(prompt: Prompt, more: int) -> Bool[Tensor, "b n"] | None:
    return None if prompt.valid is None else F.pad(prompt.valid, (0, more), value=True)
