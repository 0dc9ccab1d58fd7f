"""Tokenizers of others that list the id of each token: BERT's and minDALL-E's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Tokenizer as PieceTokenizer
from tokenizers.implementations.char_level_bpe import CharBPETokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from ldm import UserError
from ldm.tokenizers import MAX_IDS, NUM_CONTROL, SEEN, Cut, Merge, Tokenizer

WORD_PIECES_FORMAT = "ldm-word-pieces-1"
SIZES, SIDES = ("vocab_size", "context_length"), ("left", "right")  # entries of a bundle's file
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class WordPieces(Tokenizer):
    """Lower-cased words, cut into the longest pieces that the vocabulary holds; accents are left out.

    The ids (Devlin et al. 2019, sec. 3; Wu et al. 2016) are those of transformers' BertTokenizer, except that
    here no text can write a control token: "[SEP]" in a prompt is three words.

    Args:
        vocabulary: the token of each id; [PAD], [UNK], [CLS] and [SEP] are among them.
        context_length: tokens that are read of a text, [CLS] and [SEP] included; a shorter one is padded.

    Raises UserError where these are no such tokenizer.
    """

    def __init__(self, vocabulary: Sequence[str], *, context_length: int) -> None:  # no merges, no bytes
        ids = {token: number for number, token in enumerate(vocabulary)}
        if len(ids) < len(vocabulary):
            raise UserError("the vocabulary of word pieces lists a token twice: fetch or train it again")
        if missing := [token for token in (PAD, UNKNOWN, START, END) if token not in ids]:
            raise UserError(f"the vocabulary of word pieces lacks {missing[0]}: fetch or train it again")
        if context_length < NUM_CONTROL + 1:
            raise UserError(f"{context_length=} leaves no room for text: use at least {NUM_CONTROL + 1}")
        self.vocabulary, self.vocab_size, self.context_length = list(vocabulary), len(ids), context_length
        self.pad_id, self.start_id, self.eot_id = ids[PAD], ids[START], ids[END]
        self._pieces = PieceTokenizer(WordPiece(ids, unk_token=UNKNOWN))
        self._pieces.normalizer = BertNormalizer(lowercase=True)
        self._pieces.pre_tokenizer = BertPreTokenizer()

    @classmethod
    def of(cls, fields: Any) -> WordPieces:
        """That of a bundle's file; see `Tokenizer.of`."""
        length = fields.whole("context_length", high=MAX_IDS)
        return cls(fields.texts("vocabulary"), context_length=length)

    def content(self) -> dict[str, Any]:
        """The tokenizer as plain data, for a bundle's file."""
        own = {"context_length": self.context_length, "vocabulary": self.vocabulary}
        return {"format": WORD_PIECES_FORMAT, **own}

    def fingerprint(self) -> list[str]:
        """Everything that decides which ids a text gets."""
        return [f"{WORD_PIECES_FORMAT} {self.context_length}", *self.vocabulary]

    def words(self, text: str) -> list[str]:
        """The words and punctuation marks of a text; no piece reaches over their ends."""
        normal = self._pieces.normalizer.normalize_str(text)
        return [word for word, _ in self._pieces.pre_tokenizer.pre_tokenize_str(normal)]

    def cut(self, text: str) -> Cut | None:
        """Where a text is cut, or nothing where all of it is read."""
        kept = self.context_length - NUM_CONTROL
        if text.isascii() and len(text) <= kept:
            return None  # a piece is a character or more
        offsets = self._pieces.encode(text, add_special_tokens=False).offsets
        return _cut(text, offsets, limit=self.context_length, control=NUM_CONTROL)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(text, add_special_tokens=False).ids
        return ids


class CharacterTokenizer(Tokenizer):
    """minDALL-E's lower-cased byte-pair encoding of characters: CharBPETokenizer of the package `tokenizers`.

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
    def of(cls, fields: Any) -> CharacterTokenizer:
        """That of a bundle's file; see `Tokenizer.of`."""
        sizes = {name: fields.whole(name, high=MAX_IDS) for name in SIZES}
        ids, merges = (
            fields.mapping("vocabulary"),
            zip(fields.texts("left"), fields.texts("right"), strict=False),
        )
        vocabulary = {token: ids.whole(token, low=0, high=MAX_IDS) for token in ids.values}
        return cls(vocabulary, list(merges), **sizes)

    def content(self) -> dict[str, Any]:
        """The tokenizer as plain data, for `of`."""
        parts = {name: [merge[side] for merge in self.merges] for side, name in enumerate(SIDES)}
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
        return _cut(text, self._characters.encode(text).offsets, limit=self.context_length, control=0)


def _cut(text: str, offsets: list[tuple[int, int]], *, limit: int, control: int) -> Cut | None:
    """Where a text whose tokens lie at these offsets is cut, `control` tokens beside them."""
    kept = limit - control
    if len(offsets) <= kept:
        return None
    return Cut(tokens=len(offsets) + control, limit=limit, seen=text[: offsets[kept - 1][1]][-SEEN:])
