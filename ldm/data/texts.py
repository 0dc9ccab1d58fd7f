"""Captions of a split, encoded once and kept beside the pictures: as tokens, or as the context of each.

`context` is what the denoiser reads: the text encoder's output for every token. It costs nothing at a step
but takes `context_length * width * 2` bytes a caption; tokens take four bytes each and one pass of the text
encoder at every step. Small sets keep the context, large ones the tokens.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.data.stored import Recipe

CHUNK = 64  # pictures whose captions are encoded at once
COUNTED = 64  # pictures whose captions are counted to estimate the number of all


def stored_states(pictures: PictureDataset, codec: Codec) -> Recipe:
    """The context of every caption: float16, (captions, n, d) a picture."""

    def encode(captions: Sequence[str]) -> np.ndarray:
        return codec.context(codec.tokenizer.encode(captions)).cpu().numpy()

    size = codec.tokenizer.context_length * codec.text_encoder.width * 2
    origin = {"text_encoder": codec.text_fingerprint(), "dtype": "float16"}
    return _recipe(pictures, "states", encode, origin, bytes_each=size)


def stored_tokens(pictures: PictureDataset, codec: Codec) -> Recipe:
    """The tokens of every caption: int32, (captions, n) a picture; `LatentData` encodes those of a batch."""

    def encode(captions: Sequence[str]) -> np.ndarray:
        return codec.tokenizer.encode(captions).numpy().astype(np.int32)

    tokenizer = hashlib.sha256("\n".join(codec.tokenizer.fingerprint()).encode()).hexdigest()
    origin = {"tokenizer": tokenizer, "dtype": "int32"}
    return _recipe(pictures, "tokens", encode, origin, bytes_each=codec.tokenizer.context_length * 4)


def _recipe(
    pictures: PictureDataset,
    name: str,
    encode: Callable[[Sequence[str]], np.ndarray],
    made_by: dict[str, Any],
    *,
    bytes_each: int,
) -> Recipe:
    """How `encode` is applied to the captions of each picture; one caption takes `bytes_each`."""

    def encode_pictures(numbers: range) -> list[np.ndarray]:
        captions = [pictures.captions(number) for number in numbers]
        encoded = encode([caption for own in captions for caption in own])
        return np.split(encoded, np.cumsum([len(own) for own in captions])[:-1])

    counted = range(0, len(pictures), max(1, len(pictures) // COUNTED))
    mean = sum(len(pictures.captions(number)) for number in counted) / len(counted)
    return Recipe(
        pictures=pictures,
        encode=encode_pictures,
        chunk=CHUNK,
        kind="texts",
        name=name,
        origin={"captions": pictures.index.sha256, "split": pictures.split} | made_by,
        bytes_each=round(mean * bytes_each),
    )
