"""The rules for captions. A caption is plain text: nothing in it is ever formatted, escaped or interpreted.

| caption                                         | rule                                               |
| ----------------------------------------------- | -------------------------------------------------- |
| null, number, true or false, list in a list     | left out: "not a text"                             |
| empty, or blanks only                           | left out: "blank"                                  |
| bytes that are not UTF-8, half a surrogate pair | left out: "not UTF-8"                              |
| NUL inside: UTF-16 or binary                    | left out: "NUL"                                    |
| other control characters, tabs and line breaks  | a blank each, healed: "control characters"         |
| more than 10,000 characters                     | cut there, healed: "cut at 10000 characters"       |
| more than 77 of CLIP's tokens                   | kept whole, counted: the tokenizer cuts its tail   |
| blanks around it                                | removed                                            |
| `${...}`, `<|endoftext|>`, `%s`, html, emoji    | kept as they are                                   |

The captions of a sample in a tar are the `texts` of its json, or else its txt, which is one caption however
many lines it has, or else the `caption` of its json. Preparation and streaming both follow these rules.
"""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from ldm import UserError
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader
from ldm.data.tables import SURROGATE, decode

MAX_CHARACTERS = 10_000
CONTROL = re.compile("\r\n|[\x01-\x1f\x7f-\x9f]")


class UnusableCaption(UserError):
    """A caption that is left out; the message is the reason, one of those in the table above."""


class Caption(NamedTuple):
    """A caption as it is stored, and what was healed."""

    text: str
    healed: list[str]


def usable_caption(text: object) -> Caption:
    """Applies the rules to one caption.

    Raises:
        UnusableCaption: it is left out.
    """
    if not isinstance(text, str):
        raise UnusableCaption("not a text")
    if SURROGATE.search(text):
        raise UnusableCaption("not UTF-8")
    if "\0" in text:
        raise UnusableCaption("NUL")
    healed = []
    text = text.strip()
    if CONTROL.search(text):
        healed.append("control characters")
        text = CONTROL.sub(" ", text).strip()
    if not text:
        raise UnusableCaption("blank")
    if len(text) > MAX_CHARACTERS:
        healed.append(f"cut at {MAX_CHARACTERS} characters")
        text = text[:MAX_CHARACTERS].rstrip()
    return Caption(text, healed)


def sample_captions(members: Mapping[str, bytes]) -> list[tuple[int, object]]:
    """(number from 0, caption) of each caption of a sample, not judged yet.

    Args:
        members: bytes by extension, of which `json` and `txt` are read.
    """
    record = _json_object(members.get("json", b""))
    texts, numbers = record.get("texts"), record.get("comment_nos")
    if isinstance(texts, list) and texts:
        if not isinstance(numbers, list) or len(numbers) != len(texts) or not all(map(_is_number, numbers)):
            numbers = range(len(texts))
        return list(zip(numbers, texts, strict=True))
    if "txt" in members:
        return [(0, decode(members["txt"]))]
    return [(0, record["caption"])] if "caption" in record else []


def _is_number(value: object) -> bool:
    return type(value) is int and value >= 0


def _json_object(data: bytes) -> dict:
    try:
        record = json.loads(decode(data))
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def captions(root: str, *, split: str = "train") -> list[str]:
    """Every caption of every picture of one split, in the order of the shards.

    Raises:
        DataError: no such data set or split, or a damaged one.
    """
    reader = ShardReader(ShardIndex.load(root), split=split)
    return [text for number in range(len(reader)) for text in reader.record(number)["texts"]]
