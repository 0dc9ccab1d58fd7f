"""The files of transformers' CLIPTokenizer as a tokenizer of ours, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

from ldm import UserError
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.io.reading import MAX_JSON
from ldm.tokenizers import Merge, Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
VERSION = "#version: 0.2"  # first line of a merges.txt


def ids(merges: Sequence[Merge], *, vocab_size: int) -> dict[str, int]:
    """Every token with its id: bytes, bytes that end a word, merges, and at the very end start and end."""
    symbols = sorted(ByteLevel.alphabet())  # by code point, which is GPT-2's order
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    return {token: number for number, token in enumerate(tokens)} | {
        START: vocab_size - 2,
        END: vocab_size - 1,
    }


def padding(tokenizer: Tokenizer) -> str:
    """The token that a tokenizer pads with.

    Raises:
        UserError: an id that has no spelling.
    """
    for token, number in ids(tokenizer.merges, vocab_size=tokenizer.vocab_size).items():
        if number == tokenizer.pad_id:
            return token
    raise UserError(f"the tokenizer's pad_id={tokenizer.pad_id} has no spelling, which diffusers wants")


def read_vocabulary(folder: Path, *, context_length: int, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder, whose ids must be laid out as ours are.

    Args:
        context_length, vocab_size: of the text encoder, which the files must agree with.

    Raises:
        UserError: a file that is missing or damaged, another layout of ids, or other sizes.
    """
    vocabulary, merges = _tables(folder)
    wanted = ids(merges, vocab_size=vocab_size)
    if vocabulary != wanted:
        strange = min(vocabulary.items() ^ wanted.items(), key=lambda item: str(item))
        raise UserError(
            f"{folder}: token {strange[0]!r} is not where CLIP's layout of {vocab_size} ids has it"
        )
    config = _config(folder)
    length = config.whole("model_max_length", context_length, high=10**31)  # a huge one means: not told
    if length != context_length and length <= MAX_WIDTH:
        raise UserError(f"{folder}: model_max_length={length}, but the text encoder reads {context_length}")
    return Tokenizer(
        merges, vocab_size=vocab_size, context_length=context_length, pad_id=_pad_id(config, vocabulary)
    )


def write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """The four files that CLIPTokenizer.from_pretrained reads.

    It takes the padding token for padding in a prompt, too; ours has no such reading.

    Raises:
        UserError: pads with an id that has no spelling.
    """
    vocabulary = ids(tokenizer.merges, vocab_size=tokenizer.vocab_size)
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": padding(tokenizer)}
    lines = [VERSION, *(f"{left} {right}" for left, right in tokenizer.merges)]
    folder.mkdir(parents=True)
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write(folder / "vocab.json", vocabulary)
    _write(folder / "special_tokens_map.json", special)
    config = {"model_max_length": tokenizer.context_length, "do_lower_case": True, "add_prefix_space": False}
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **config, **special})


def _tables(folder: Path) -> tuple[dict[str, int], list[Merge]]:
    """Ids and merges, from the two files of old or from the one that transformers 5 writes."""
    if (folder / "vocab.json").is_file():
        vocabulary = dict(Fields.read(folder / "vocab.json").values)
        path = folder / "merges.txt"
        if not path.is_file() or path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is missing or has more than {MAX_JSON} bytes: fetch the folder again")
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        pairs: list[Any] = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    else:
        fields = Fields.read(folder / "tokenizer.json")
        model = fields.mapping("model", {})
        vocabulary = dict(model.mapping("vocab", {}).values)
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.entries("merges")]
        for entry in fields.entries("added_tokens"):
            added = Fields.of(entry, name=f"{fields.name}: added_tokens")
            vocabulary[added.text("content")] = added.whole("id", low=0, high=MAX_WIDTH)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise UserError(f"{folder}: the merges are damaged: fetch the folder again")
    if not all(isinstance(number, int) for number in vocabulary.values()):
        raise UserError(f"{folder}: the vocabulary is damaged, an id is no number: fetch the folder again")
    return vocabulary, [(str(left), str(right)) for left, right in pairs]


def _config(folder: Path) -> Fields:
    paths = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    read = [Fields.read(path) for path in paths if path.is_file()]
    return Fields(str(folder), {key: value for fields in read for key, value in fields.values.items()})


def _pad_id(config: Fields, vocabulary: Mapping[str, int]) -> int:
    pad = config.values.get("pad_token", END)
    pad = pad.get("content") if isinstance(pad, dict) else pad
    if not isinstance(pad, str) or pad not in vocabulary:
        raise UserError(f"{config.name}: pad_token={pad!r} is no token of the vocabulary")
    return vocabulary[pad]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
