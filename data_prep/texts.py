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

A file in UTF-16 is refused as a whole; the byte order mark of UTF-8 is dropped.
"""

import re
from functools import lru_cache
from pathlib import Path

from data_prep.tally import LeftOut, Tally
from ldm.data.index import DataError
from ldm.tokenizers import Tokenizer, clip_bpe

MAX_CHARACTERS = 10_000
SURROGATE = re.compile("[\ud800-\udfff]")
CONTROL = re.compile("[\x01-\x1f\x7f-\x9f]")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def clean_caption(text: object, *, name: str, tally: Tally) -> str:
    """A caption as it is stored; `name` is what the tally calls it.

    Raises:
        LeftOut: the caption can't be used.
    """
    if not isinstance(text, str):
        raise LeftOut("not a text")
    if SURROGATE.search(text):
        raise LeftOut("not UTF-8")
    if "\0" in text:
        raise LeftOut("NUL")
    text = text.strip()
    if CONTROL.search(text):
        tally.heal("control characters", name)
        text = CONTROL.sub(" ", text).strip()
    if not text:
        raise LeftOut("blank")
    if len(text) > MAX_CHARACTERS:
        tally.heal(f"cut at {MAX_CHARACTERS} characters", name)
        text = text[:MAX_CHARACTERS].rstrip()
    return text


def printable(path: str) -> str:
    """A path as a text for UTF-8: bytes of it that are not are written as `\\udcXX`."""
    return path.encode("utf-8", "backslashreplace").decode()


def is_long(text: str) -> bool:
    """Whether CLIP's tokenizer cuts a caption at its 77 tokens."""
    tokenizer = _clip()
    return tokenizer.count(text) > tokenizer.context_length


@lru_cache(maxsize=1)
def _clip() -> Tokenizer:
    return clip_bpe()


def read_text(path: Path) -> str:
    """A text file, UTF-8; bytes that are not stay recognisable as lone surrogates, for the rule above.

    Raises:
        DataError: UTF-16.
    """
    data = path.read_bytes()
    if data.startswith(UTF_16):
        raise DataError(f"{path} is UTF-16: save it as UTF-8")
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
