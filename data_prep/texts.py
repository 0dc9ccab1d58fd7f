"""Captions under the rules of `ldm/data/captions.py`: what happened to each goes into the tally."""

from functools import lru_cache

from data_prep.tally import LeftOut, Tally
from ldm.data.captions import UnusableCaption, usable_caption
from ldm.tokenizers import Tokenizer, clip_bpe


def clean_caption(text: object, *, name: str, tally: Tally) -> str:
    """A caption as it is stored; `name` is what the tally calls it.

    Raises:
        LeftOut: the caption can't be used.
    """
    try:
        caption = usable_caption(text)
    except UnusableCaption as unusable:
        raise LeftOut(str(unusable)) from unusable
    for kind in caption.healed:
        tally.heal(kind, name)
    return caption.text


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
