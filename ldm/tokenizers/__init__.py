"""Text to token ids: byte pairs of CLIP's layout, whose vocabulary may be trained on a small set."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import ftfy
import regex
import torch
from jaxtyping import Int
from tokenizers import Tokenizer as BytePairTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor

from ldm import UserError

Merge = tuple[str, str]

TOKENIZER_FORMAT = "ldm-tokenizer-1"
SIZES = ("vocab_size", "context_length", "pad_id")
WORD_END = "</w>"
MAX_IDS = 2**17  # of a vocabulary, and of a text's tokens, in a file of others; CLIP's vocabulary has 49,408
NUM_CONTROL = 2  # start and end
NUM_BYTE_TOKENS = 512  # every byte, inside a word and at its end
SEEN = 30  # characters before a cut that are shown

# contractions, runs of letters, single digits, runs of anything else that is not a space; by the package that
# CLIP's own code uses, for what counts as a letter differs between regular expressions of different ages
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
BYTES = ByteLevel(add_prefix_space=False, use_regex=False)  # a word to the symbols of its bytes


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A text of which a tokenizer reads only the beginning."""

    tokens: int  # that the whole text takes, start and end included
    limit: int  # how many are read
    seen: str  # the last words that are read, cleaned as the tokenizer cleans them

    def __str__(self) -> str:
        start = f"has {self.tokens} tokens, the model reads {self.limit}"
        return f"{start}: what follows '...{self.seen}' is not seen"


class Tokenizer:
    """Lower-cased byte-level BPE with a fixed context length.

    Ids run: 256 bytes inside a word, the same 256 ending a word, one id per merge, and at the very end of
    the vocabulary start (`vocab_size - 2`) and end (`vocab_size - 1`). These two control ids have no
    spelling, so no prompt can write them.
    """

    def __init__(self, merges: Sequence[Merge], *, vocab_size: int, context_length: int, pad_id: int):
        if vocab_size < NUM_BYTE_TOKENS + len(merges) + NUM_CONTROL:
            raise UserError(
                f"{vocab_size=} is too small for {len(merges)} merges: use at least "
                f"{NUM_BYTE_TOKENS + len(merges) + NUM_CONTROL}"
            )
        if context_length < NUM_CONTROL + 1:
            raise UserError(f"{context_length=} leaves no room for text: use at least {NUM_CONTROL + 1}")
        if not 0 <= pad_id < vocab_size:
            raise UserError(f"{pad_id=} is outside the vocabulary: use 0 to {vocab_size - 1}")
        self.merges = list(merges)
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.pad_id = pad_id
        self.start_id = vocab_size - 2
        self.eot_id = vocab_size - 1
        self._bpe = _byte_pairs(self.merges)

    @classmethod
    def of(cls, fields: Any) -> Tokenizer:
        """The tokenizer that a bundle's file describes, by its `ldm.io.fields.Fields`.

        Raises ValueError, of which UserError is one, where they describe none.
        """
        sizes = {name: fields.whole(name, low=0, high=MAX_IDS) for name in SIZES}
        return cls([parse_merge(line) for line in fields.texts("merges")], **sizes)

    def encode(self, texts: Sequence[str]) -> Int[Tensor, "b n"]:
        """Start, text, end, pads up to the context length; a long text loses its tail, not the end token."""
        if isinstance(texts, str):
            raise UserError("encode takes a list of texts, not one string: write encode([text])")
        tokens = torch.full((len(texts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = [self.start_id, *self._ids(text)[: self.context_length - NUM_CONTROL], self.eot_id]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def count(self, text: str) -> int:
        """Tokens the whole text takes, start and end included: above `context_length` it is cut."""
        return len(self._ids(text)) + NUM_CONTROL

    def cut(self, text: str) -> Cut | None:
        """Where a text is cut, or nothing where all of it is read."""
        if text.isascii() and "&" not in text and len(text) <= self.context_length - NUM_CONTROL:
            return None  # each token is a byte or more, and cleaning lengthens no such text
        cleaned = clean(text)
        spans = [found.span() for found in WORDS.finditer(cleaned)]
        encoded = [cleaned[start:end] for start, end in spans]
        owners = self._bpe.encode(encoded, is_pretokenized=True, add_special_tokens=False).word_ids
        kept = self.context_length - NUM_CONTROL
        if len(owners) <= kept:
            return None
        end = spans[owners[kept] - 1][1] if owners[kept] else 0  # of the last word that is read whole
        return Cut(tokens=len(owners) + NUM_CONTROL, limit=self.context_length, seen=cleaned[:end][-SEEN:])

    def cut_line(self, texts: Sequence[str], *, what: str) -> str | None:
        """One line on the texts, each a `what` ("prompt"), that are read in part; None if there are none."""
        cuts = {number: cut for number, text in enumerate(texts, start=1) if (cut := self.cut(text))}
        if not cuts:
            return None
        number, longest = max(cuts.items(), key=lambda item: item[1].tokens)
        name = what if len(texts) == 1 else f"{what} {number}"
        if len(cuts) == 1:
            return f"{name} {longest}"
        share = f"{100 * len(cuts) / len(texts):.2g} %"
        return f"{len(cuts)} of {len(texts)} {what}s ({share}) are cut; the longest, {name}, {longest}"

    def words(self, text: str) -> list[str]:
        """The words of a text, in order; no token reaches over their ends."""
        return words(text)

    def fingerprint(self) -> list[str]:
        """Everything that decides which ids a text gets."""
        sizes = f"{self.vocab_size} {self.context_length} {self.pad_id}"
        return [sizes, *(" ".join(merge) for merge in self.merges)]

    def content(self) -> dict[str, Any]:
        """The tokenizer as plain data, for a bundle's file."""
        sizes = {name: getattr(self, name) for name in SIZES}
        return {"format": TOKENIZER_FORMAT, **sizes, "merges": [" ".join(merge) for merge in self.merges]}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._bpe.encode(words(text), is_pretokenized=True, add_special_tokens=False).ids
        return ids


def train(texts: Iterable[str], *, vocab_size: int = 2048, context_length: int = 32) -> Tokenizer:
    """A vocabulary of CLIP's layout learned from captions; the same texts give the same ids on any machine.

    Pads with the end token, as Stable Diffusion does. Where the texts hold fewer merges than asked for, the
    ids between the last merge and the start token stay unused: `vocab_size` is always the number asked for.
    """
    num_merges = vocab_size - NUM_BYTE_TOKENS - NUM_CONTROL
    if num_merges < 1:
        raise UserError(f"{vocab_size=} leaves no room for merges: use over {NUM_BYTE_TOKENS + NUM_CONTROL}")
    learner = BytePairTokenizer(BPE(end_of_word_suffix=WORD_END))
    learner.pre_tokenizer = BYTES
    trainer = BpeTrainer(
        vocab_size=NUM_BYTE_TOKENS + num_merges,
        # listed, they get fixed ids: ties between pairs are broken by id, which else follows a hash's order
        special_tokens=_byte_tokens(),
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator((words(text) for text in texts), trainer)
    merges = [(left, right) for left, right in json.loads(learner.to_str())["model"]["merges"]]
    return Tokenizer(merges, vocab_size=vocab_size, context_length=context_length, pad_id=vocab_size - 1)


def words(text: str) -> list[str]:
    """The words of a text, once it is cleaned; no token reaches over their ends."""
    return WORDS.findall(clean(text))


def clean(text: str) -> str:
    """CLIP's cleaning: mojibake mended, doubly escaped html undone, single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def _byte_tokens() -> list[str]:
    # GPT-2's order: the 188 bytes that print as themselves, then the others as U+0100, U+0101, ...
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    symbols = [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]
    return symbols + [symbol + WORD_END for symbol in symbols]


def _byte_pairs(merges: Sequence[Merge]) -> BytePairTokenizer:
    tokens = _byte_tokens() + [left + right for left, right in merges]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    missing = next((part for merge in merges for part in merge if part not in vocabulary), None)
    if missing is not None:
        raise UserError(f"the merges use {missing!r}, which no other merge makes: the vocabulary is damaged")
    tokenizer = BytePairTokenizer(BPE(vocabulary, list(merges), end_of_word_suffix=WORD_END))
    tokenizer.pre_tokenizer = BYTES
    return tokenizer


def parse_merge(line: str) -> Merge:
    """The two parts of a merge, with a blank between them; ValueError for a line of any other form."""
    left, right = line.split(" ")
    return left, right
