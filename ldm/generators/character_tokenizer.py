"""Captions of minDALL-E as token ids: byte-pair encoding of characters, with a vocabulary of its own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers.implementations.char_level_bpe import CharBPETokenizer
from torch import Tensor

from ldm import UserError
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.tokenizers import SEEN, Cut, Merge, Tokenizer

UNKNOWN, PAD, SIZES = "[UNK]", "[PAD]", ("vocab_size", "context_length")


class CharacterTokenizer(Tokenizer):
    """Lower-cased byte-pair encoding of characters, that of CharBPETokenizer of the package `tokenizers`.

    Args:
        vocabulary: the id of each token; [UNK] and [PAD] are among them.
        merges: in their order.
        vocab_size: that of the network, above any id.
        context_length: tokens that are read of a text; a shorter one is padded.

    Raises UserError where these are no such tokenizer.
    """

    def __init__(  # not the vocabulary of bytes of `Tokenizer`
        self, vocabulary: dict[str, int], merges: Sequence[Merge], *, vocab_size: int, context_length: int
    ) -> None:
        used = [part for left, right in merges for part in (left, right, left + right)]
        for token in (UNKNOWN, PAD, *used, *vocabulary):
            if not 0 <= vocabulary.get(token, -1) < vocab_size:
                raise UserError(f"the captions' tokenizer has no id in 0 to {vocab_size - 1} for {token!r}")
        self.merges, self.vocabulary, self.pad_id = list(merges), vocabulary, vocabulary[PAD]
        self.vocab_size, self.context_length = vocab_size, context_length
        self._characters = CharBPETokenizer(vocabulary, self.merges, unk_token=UNKNOWN, lowercase=True)
        self._characters.add_special_tokens([PAD])

    @classmethod
    def read(cls, path: Path) -> "CharacterTokenizer":
        """That of a bundle's file; UserError where it holds none."""
        fields = Fields.read(path)
        sizes = {name: fields.whole(name, high=MAX_WIDTH) for name in SIZES}
        ids, merges = (
            fields.mapping("vocabulary"),
            zip(fields.texts("left"), fields.texts("right"), strict=False),
        )
        vocabulary = {token: ids.whole(token, low=0, high=MAX_WIDTH) for token in ids.values}
        return cls(vocabulary, list(merges), **sizes)

    def content(self) -> dict[str, Any]:
        """The tokenizer as plain data, for `read`."""
        parts = {name: [merge[side] for merge in self.merges] for side, name in enumerate(("left", "right"))}
        return {**{name: getattr(self, name) for name in SIZES}, "vocabulary": self.vocabulary, **parts}

    def encode(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """The ids of each text up to the context length, padded."""
        pads = [self.pad_id] * self.context_length
        rows = [[*self._characters.encode(text).ids, *pads][: len(pads)] for text in texts]
        return torch.tensor(rows, dtype=torch.int64).view(len(rows), len(pads))

    def count(self, text: str) -> int:
        """Tokens that the whole text takes."""
        return len(self._characters.encode(text).ids)

    def cut(self, text: str) -> Cut | None:
        """Where a text is cut, or nothing where all of it is read."""
        ends = [end for _, end in self._characters.encode(text).offsets]
        last = min(len(ends), limit := self.context_length) - 1
        return Cut(tokens=len(ends), limit=limit, seen=text[: ends[last]][-SEEN:]) if ends[limit:] else None
