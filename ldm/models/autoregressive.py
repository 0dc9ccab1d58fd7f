"""The networks of DALL-E, CogView and CLIP-GEN: text and codes in one sequence, or codes after one vector."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import UserError
from ldm.models.code_transformer import CodeTransformer, Nats, Prompt, cross_entropy, head, table
from ldm.models.sequence import Drop, dalle_masks


class DalleTransformer(CodeTransformer):
    """Text tokens and codes in one sequence, each with its own vocabulary (Ramesh et al. 2021, sec. 2.2).

    Text predicts text and codes predict codes: the logits are restricted by position.

    Args:
        vocab_size, text_length: of the text's tokens, the last of which is the end token.
        sparse: DALL-E's masks; False: every layer sees the whole past, as in minDALL-E.
        kernel: side of the window of the last layer's mask.
        axial: code positions as row plus column; False: a table of all of them, as in minDALL-E.
        own_pads: a learned token for each place of a pad; False: pads are the end token, and learned as such.
        others: see `CodeTransformer`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        text_length: int,
        num_codes: int,
        grid: int,
        width: int,
        sparse: bool = True,
        kernel: int = 11,
        axial: bool = True,
        own_pads: bool = True,
        **others: Any,
    ) -> None:
        masks = partial(dalle_masks, text=text_length, grid=grid, kernel=kernel) if sparse else None
        super().__init__(num_codes=num_codes, grid=grid, width=width, trunk={"masks": masks}, **others)
        self.vocab_size, self.text_length, self.own_pads = vocab_size, text_length, own_pads
        words = vocab_size + (text_length if own_pads else 0)
        self.text, self.codes = table(words, width), table(num_codes, width)
        self.text_places = table(text_length, width)
        self.code_places = nn.ModuleList(table(n, width) for n in ([grid, grid] if axial else [grid**2]))
        self.head_text, self.head_codes = head(width, words), head(width, num_codes)

    def prompt(self, condition: Int[Tensor, "b m"]) -> Prompt:
        """The embeddings of token ids, as the tokenizer returns them."""
        check_length(condition, self.text_length)
        return Prompt(embeddings=self.text(self.words(condition)) + self.text_places.weight)

    def words(self, tokens: Int[Tensor, "b m"]) -> Int[Tensor, "b m"]:
        """Token ids with the pads, which follow the end token, as the tokens of their places."""
        if not self.own_pads:
            return tokens
        place = torch.arange(self.text_length, device=tokens.device)
        pad = place >= text_lengths(tokens, self.vocab_size)[:, None]
        return torch.where(pad, self.vocab_size + place, tokens)

    def embed(self, codes: Int[Tensor, "b n"], place: int, prompt: Prompt) -> Float[Tensor, "b n c"]:
        """The embeddings of codes with those of their positions."""
        places = torch.arange(place, place + codes.shape[1], device=codes.device)
        if len(self.code_places) == 1:
            return self.codes(codes) + self.code_places[0](places)
        rows, columns = self.code_places
        return self.codes(codes) + rows(places // self.grid) + columns(places % self.grid)

    def code_logits(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """Logits of codes alone."""
        return self.head_codes(states)

    def nats(
        self, condition: Int[Tensor, "b m"], codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Nats:
        """Negative log-likelihoods of codes, and of the text's tokens after the first, pads included."""
        states = self.states(self.prompt(condition), codes[:, :-1], drop)
        text, image = states[:, : self.text_length - 1], states[:, self.text_length - 1 :]
        words = self.words(condition)[:, 1:]
        return Nats(
            image=cross_entropy(self.code_logits(image), codes),
            text=cross_entropy(self.head_text(text), words),
        )


class CogViewTransformer(CodeTransformer):
    """Text tokens and codes in one vocabulary and one sequence (Ding et al. 2021, sec. 2).

    The sequence is [ROI1] text [BASE] [BOI1] codes [EOI1], with the tokenizer's start and end tokens as
    [ROI1] and [BASE]; turned round, [BASE] [BOI1] codes [EOI1] [ROI1] text [BASE], it is a picture and its
    caption. Pads between text and [BOI1] are as if they were not there. The output embedding is the input's.

    Args:
        vocab_size, text_length: as of `DalleTransformer`.
        sandwich, pb_relax: see `Trunk`.
        shrink: share of their gradient that embeddings get (ibid., sec. 2.4).
        others: see `CodeTransformer`.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        text_length: int,
        num_codes: int,
        grid: int,
        width: int,
        sandwich: bool = True,
        pb_relax: float | None = 32.0,
        shrink: float = 0.1,
        **others: Any,
    ) -> None:
        trunk = {"sandwich": sandwich, "pb_relax": pb_relax}
        super().__init__(num_codes=num_codes, grid=grid, width=width, trunk=trunk, **others)
        self.vocab_size, self.text_length, self.shrink = vocab_size, text_length, shrink
        self.begin_image, self.end_image = vocab_size, vocab_size + 1  # [BOI1], [EOI1]
        self.text, self.codes = table(vocab_size + 2, width), table(num_codes, width)
        self.places = table(text_length + grid**2 + 2, width)  # the caption after the codes takes most

    def prompt(self, condition: Int[Tensor, "b m"]) -> Prompt:
        """The embeddings of token ids, as the tokenizer returns them, and of [BOI1]."""
        check_length(condition, self.text_length)
        lengths = text_lengths(condition, self.vocab_size)
        place = torch.arange(self.text_length, device=condition.device)
        valid = F.pad(place < lengths[:, None], (0, 1), value=True)
        places = torch.cat([place.expand_as(condition), lengths[:, None]], dim=1)
        ids = F.pad(condition, (0, 1), value=self.begin_image)
        x = self._shrunk(self.text(ids) + self.places(places))
        return Prompt(embeddings=x, valid=valid, first=lengths + 1)

    def embed(self, codes: Int[Tensor, "b n"], place: int, prompt: Prompt) -> Float[Tensor, "b n c"]:
        """The embeddings of codes with those of their positions in each sequence."""
        assert prompt.first is not None
        places = torch.arange(place, place + codes.shape[1], device=codes.device) + prompt.first[:, None]
        return self._shrunk(self.codes(codes) + self.places(places))

    def code_logits(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """Logits of the codes: no other token may follow [BOI1]."""
        return F.linear(states, self.codes.weight)

    def nats(
        self, condition: Int[Tensor, "b m"], codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Nats:
        """Negative log-likelihoods among all tokens and codes: of codes; of text, [BOI1] and [EOI1]."""
        states = self.states(self.prompt(condition), codes, drop)
        lengths = text_lengths(condition, self.vocab_size)
        # the state that predicts [BOI1] is that of the text's end, wherever it lies before the pads
        ends = states.gather(1, (lengths - 1)[:, None, None].expand(-1, 1, states.shape[-1]))
        text = torch.cat([states[:, : self.text_length - 1], ends, states[:, -1:]], dim=1)
        specials = torch.tensor([self.begin_image, self.end_image], device=codes.device)
        targets = torch.cat([condition[:, 1:], specials.expand(len(codes), 2)], dim=1)
        place = torch.arange(1, self.text_length, device=codes.device)
        return Nats(
            image=self._nats(states[:, self.text_length : -1], self.vocab_size + 2 + codes),
            text=self._nats(text, targets),
            counted=F.pad(place < lengths[:, None], (0, 2), value=True),
        )

    def caption_nats(
        self, condition: Int[Tensor, "b m"], codes: Int[Tensor, "b n"], drop: Drop | None = None
    ) -> Nats:
        """Negative log-likelihoods, among text tokens, of the caption after its picture; no image terms."""
        check_length(condition, self.text_length)
        begin, end = (
            condition.new_full((len(codes), 1), each) for each in (self.begin_image, self.end_image)
        )
        base = condition.new_full((len(codes), 1), self.vocab_size - 1)
        before, after = torch.cat([base, begin], dim=1), torch.cat([end, condition[:, :-1]], dim=1)
        x = torch.cat([self.text(before), self.codes(codes), self.text(after)], dim=1)
        x = self.trunk(self._shrunk(x + self.places.weight[: x.shape[1]]), drop=drop)
        logits = F.linear(x[:, -(self.text_length - 1) :], self.text.weight[: self.vocab_size])
        place = torch.arange(1, self.text_length, device=codes.device)
        return Nats(
            image=logits.new_zeros(len(codes), 0),
            text=cross_entropy(logits, condition[:, 1:]),
            counted=place < text_lengths(condition, self.vocab_size)[:, None],
        )

    def _shrunk(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        return (
            x
            if self.shrink == 1 or not torch.is_grad_enabled()
            else self.shrink * x + (1 - self.shrink) * x.detach()
        )

    def _nats(self, states: Float[Tensor, "b n c"], targets: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        return cross_entropy(F.linear(states, torch.cat([self.text.weight, self.codes.weight])), targets)


class PrefixTransformer(CodeTransformer):
    """Codes after one vector: a picture's in training, a text's in sampling (Wang et al. 2022, CLIP-GEN).

    The vector is normalised, so its length says nothing; a vector of zeros is the empty condition.

    Args:
        prefix_dim: of the vector, CLIP's.
        others: see `CodeTransformer`.
    """

    def __init__(self, *, prefix_dim: int, num_codes: int, grid: int, width: int, **others: Any) -> None:
        super().__init__(num_codes=num_codes, grid=grid, width=width, **others)
        self.prefix_dim = prefix_dim
        self.prefix = nn.Linear(prefix_dim, width)
        self.codes, self.places = table(num_codes, width), table(grid**2, width)
        self.head = head(width, num_codes, bias=True)

    def prompt(self, condition: Float[Tensor, "b e"]) -> Prompt:
        """The projection of a vector, in place 0."""
        vector = F.normalize(condition.float(), dim=-1).to(self.prefix.weight.dtype)
        return Prompt(embeddings=(self.prefix(vector) + self.places.weight[0])[:, None])

    def embed(self, codes: Int[Tensor, "b n"], place: int, prompt: Prompt) -> Float[Tensor, "b n c"]:
        """The embeddings of codes with those of their places, which follow the vector's."""
        return self.codes(codes) + self.places.weight[place + 1 : place + 1 + codes.shape[1]]

    def code_logits(self, states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n k"]:
        """Logits of codes."""
        return self.head(states)


def text_lengths(tokens: Int[Tensor, "b m"], vocab_size: int) -> Int[Tensor, " b"]:
    """Tokens of each text up to its end token, the last of the vocabulary, which may also stand for pads."""
    return (tokens == vocab_size - 1).int().argmax(dim=1) + 1


def check_length(tokens: Int[Tensor, "b m"], text_length: int) -> None:
    """Raises UserError for texts of another number of tokens than the network's."""
    if tokens.shape[1] != text_length:
        raise UserError(
            f"backbone.text_length={text_length}, but the tokenizer's texts have {tokens.shape[1]} tokens: "
            "set it to the tokenizer's context_length"
        )
