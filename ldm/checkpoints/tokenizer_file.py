"""`tokenizer.json` of a bundle: a tokenizer's sizes and merges as plain data."""

import json
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.io.reading import read_json
from ldm.tokenizers import Tokenizer, parse_merge

FORMAT = "ldm-tokenizer-1"
SIZES = ("vocab_size", "context_length", "pad_id")


def content_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """All that `tokenizer_of` makes the same tokenizer of."""
    sizes = {name: getattr(tokenizer, name) for name in SIZES}
    return {"format": FORMAT, **sizes, "merges": [" ".join(merge) for merge in tokenizer.merges]}


def tokenizer_of(content: Any, *, name: str) -> Tokenizer:
    """The tokenizer of such a content.

    Args:
        name: what the content is called in messages.

    Raises:
        UserError: the content is anything else.
    """
    try:
        fields = Fields.of(content, name=name)
        if fields.text("format") != FORMAT:
            raise UserError(f"format {fields.text('format')!r} is not {FORMAT!r}")
        sizes = {each: fields.whole(each, low=0, high=MAX_WIDTH) for each in SIZES}
        return Tokenizer([parse_merge(line) for line in fields.texts("merges")], **sizes)
    except ValueError as error:  # Python's own where a line is no merge
        raise _refusal(name, error) from None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes one json file that `load_tokenizer` turns into the same tokenizer."""
    path.write_text(json.dumps(content_of(tokenizer), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a file.

    Raises:
        UserError: no file, or one that `save_tokenizer` did not write.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise UserError(f"there is no tokenizer at {path}: give the path of a tokenizer.json") from None
    except UserError as error:
        raise _refusal(str(path), error) from None
    return tokenizer_of(content, name=str(path))


def _refusal(name: str, error: ValueError) -> UserError:
    return UserError(f"{name} is not a tokenizer written by ldm ({error}): train or copy it again")
