"""Captions of a split as a denoiser reads them: token ids, or the states that a text encoder makes of them.

Both are computed once and lie beside the pictures (`stored.py`). States cost nothing at a step but take
`context_length * width * 2` bytes a caption; tokens take four bytes each and one pass of the text encoder at
every step. Small sets keep states, large ones tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.data.stored import Recipe, StoredArrays

CHUNK = 64  # pictures whose captions are read at once
COUNTED = 64  # pictures whose captions are counted to know the number of all


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The captions of each picture of a split, as rows.

    Attributes:
        recipe: how the rows are computed.
        context: rows of a batch, on the device -> their states, float32, b n d.
    """

    recipe: Recipe
    context: Callable[[Tensor], Tensor]

    @cached_property
    def rows(self) -> StoredArrays:
        """One row a caption of a picture, from the disk or computed now: tokens (n) int32, or states (n, d).

        Raises:
            DataError: they were made from something else.
        """
        return self.recipe.arrays()


def stored_states(pictures: PictureDataset, codec: Codec) -> Texts:
    """States of every caption, float16."""
    origin = {"text_encoder": codec.text_fingerprint(), "dtype": "float16"}

    def states(captions: Sequence[str]) -> np.ndarray:
        return codec.states(codec.tokenizer.encode(captions)).cpu().numpy()

    size = codec.tokenizer.context_length * codec.text_encoder.width * 2  # bytes a caption
    return Texts(recipe=_recipe(pictures, "states", states, origin, size=size), context=Tensor.float)


def stored_tokens(pictures: PictureDataset, codec: Codec) -> Texts:
    """Tokens of every caption; a batch's are encoded when it is used."""
    tokenizer = hashlib.sha256("\n".join(codec.tokenizer.fingerprint()).encode()).hexdigest()

    def tokens(captions: Sequence[str]) -> np.ndarray:
        return codec.tokenizer.encode(captions).numpy().astype(np.int32)

    origin = {"tokenizer": tokenizer, "dtype": "int32"}
    size = codec.tokenizer.context_length * 4  # bytes a caption
    return Texts(
        recipe=_recipe(pictures, "tokens", tokens, origin, size=size),
        context=lambda rows: codec.states(rows).float(),
    )


def _recipe(
    pictures: PictureDataset,
    name: str,
    encode: Callable[[Sequence[str]], np.ndarray],
    made_by: dict[str, Any],
    *,
    size: int,
) -> Recipe:
    """How `encode` is applied to the captions of each picture; a caption's row takes `size` bytes."""

    def of_pictures(numbers: range) -> list[np.ndarray]:
        captions = [pictures.reader.record(number)["texts"] for number in numbers]
        rows = encode([text for own in captions for text in own])
        return np.split(rows, np.cumsum([len(own) for own in captions])[:-1])

    origin = {"captions": pictures.index.sha256, "split": pictures.split} | made_by
    numbers = range(0, len(pictures), max(1, len(pictures) // COUNTED))
    captions = sum(len(pictures.reader.record(number)["texts"]) for number in numbers) / len(numbers)
    return Recipe(
        pictures=pictures,
        encode=of_pictures,
        chunk=CHUNK,
        kind="texts",
        name=name,
        origin=origin,
        bytes_each=round(captions * size),
    )
