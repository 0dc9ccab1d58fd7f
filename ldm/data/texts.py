"""Captions of a split as a denoiser reads them: token ids, or the states that a text encoder makes of them.

Both are computed once and lie beside the pictures (`stored.py`). States cost nothing at a step but take
`context_length * width * 2` bytes a caption; tokens take four bytes each and one pass of the text encoder at
every step. Small sets keep states, large ones tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.data.stored import StoredArrays, folder_of, stored_arrays

CHUNK = 64  # pictures whose captions are read at once


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The captions of each picture of a split, as rows.

    Attributes:
        rows: of a picture, one a caption: tokens (n) int32, or states (n, d) float16.
        context: rows of a batch, on the device -> their states, float32, b n d.
    """

    rows: StoredArrays
    context: Callable[[Tensor], Tensor]


def stored_states(pictures: PictureDataset, codec: Codec) -> Texts:
    """States of every caption, from the disk or computed now.

    Raises:
        DataError: they were made from something else.
    """
    origin = {"text_encoder": codec.text_fingerprint(), "dtype": "float16"}

    def states(captions: Sequence[str]) -> np.ndarray:
        return codec.states(codec.tokenizer.encode(captions)).cpu().numpy()

    return Texts(rows=_stored(pictures, "states", states, origin), context=Tensor.float)


def stored_tokens(pictures: PictureDataset, codec: Codec) -> Texts:
    """Tokens of every caption, from the disk or computed now; a batch's are encoded when it is used.

    Raises:
        DataError: they were made from something else.
    """
    tokenizer = hashlib.sha256("\n".join(codec.tokenizer.fingerprint()).encode()).hexdigest()

    def tokens(captions: Sequence[str]) -> np.ndarray:
        return codec.tokenizer.encode(captions).numpy().astype(np.int32)

    return Texts(
        rows=_stored(pictures, "tokens", tokens, {"tokenizer": tokenizer, "dtype": "int32"}),
        context=lambda rows: codec.states(rows).float(),
    )


def _stored(
    pictures: PictureDataset,
    name: str,
    encode: Callable[[Sequence[str]], np.ndarray],
    made_by: dict[str, Any],
) -> StoredArrays:
    """What `encode` makes of the captions of each picture."""

    def of_pictures(numbers: range) -> list[np.ndarray]:
        captions = [pictures.reader.record(number)["texts"] for number in numbers]
        rows = encode([text for own in captions for text in own])
        return np.split(rows, np.cumsum([len(own) for own in captions])[:-1])

    origin = {"captions": pictures.index.sha256, "split": pictures.split} | made_by
    folder = folder_of(pictures, "texts", name, origin)
    return stored_arrays(pictures, of_pictures, kind=name, folder=folder, origin=origin, chunk=CHUNK)
