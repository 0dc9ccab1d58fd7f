"""BERT's tokenizer: words in pieces of a fixed vocabulary (Devlin et al. 2019, sec. 3; Wu et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer as PieceTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from ldm import UserError
from ldm.tokenizers import MAX_IDS, NUM_CONTROL, SEEN, Cut, Tokenizer

WORD_PIECES_FORMAT = "ldm-word-pieces-1"
PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"


class WordPieces(Tokenizer):
    """Lower-cased words, cut into the longest pieces that the vocabulary holds; accents are left out.

    The ids are those of transformers' BertTokenizer, except that here no text can write a control token:
    "[SEP]" in a prompt is three words.

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
        ends = [end for _, end in self._pieces.encode(text, add_special_tokens=False).offsets]
        if len(ends) <= kept:
            return None
        seen = text[: ends[kept - 1]][-SEEN:]
        return Cut(tokens=len(ends) + NUM_CONTROL, limit=self.context_length, seen=seen)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._pieces.encode(text, add_special_tokens=False).ids
        return ids
