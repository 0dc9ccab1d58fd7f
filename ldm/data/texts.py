"""Captions of a split as a denoiser reads them: token ids, or the states that a text encoder makes of them.

Both are computed once and lie beside the pictures, named by what decides them. States cost nothing at a step
but take `context_length * width * 2` bytes a caption; tokens take four bytes each and one pass of the text
encoder at every step. Small sets keep states, large ones tokens.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from ldm.codec import Codec
from ldm.data.index import DataError, fsync
from ldm.data.pictures import PictureDataset

CHUNK = 256  # captions


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One row for each caption of a split, in the order of its pictures.

    Attributes:
        rows: tokens (captions, n) int32, or states (captions, n, d) float16; memory-mapped.
        context: rows of a batch, on the device -> their states, float32, b n d.
    """

    rows: np.ndarray
    context: Callable[[Tensor], Tensor]


def stored_states(pictures: PictureDataset, codec: Codec) -> Texts:
    """States of every caption, from the disk or computed now.

    Raises:
        DataError: what lies there is damaged.
    """
    tokens = stored_tokens(pictures, codec).rows
    name = f"states-{_key(pictures, codec.text_fingerprint())}"

    def write(path: Path) -> None:
        width = codec.text_encoder.width
        states = open_memmap(path, mode="w+", dtype=np.float16, shape=(*tokens.shape, width))
        for chunk in _chunks(len(tokens), f"text states of {pictures.split}"):
            states[chunk] = codec.states(torch.from_numpy(tokens[chunk].copy())).cpu().numpy()
        states.flush()

    return Texts(rows=_stored(pictures, name, write), context=Tensor.float)


def stored_tokens(pictures: PictureDataset, codec: Codec) -> Texts:
    """Tokens of every caption, from the disk or computed now; a batch's are encoded when it is used.

    Raises:
        DataError: what lies there is damaged.
    """
    name = f"tokens-{_key(pictures, *codec.tokenizer.fingerprint())}"

    def write(path: Path) -> None:
        captions = [text for own in pictures.texts() for text in own]
        shape = (len(captions), codec.tokenizer.context_length)
        tokens = open_memmap(path, mode="w+", dtype=np.int32, shape=shape)
        for chunk in _chunks(len(captions), f"tokens of {pictures.split}"):
            tokens[chunk] = codec.tokenizer.encode(captions[chunk]).numpy()
        tokens.flush()

    return Texts(rows=_stored(pictures, name, write), context=lambda rows: codec.states(rows).float())


def _key(pictures: PictureDataset, *lines: str) -> str:
    return hashlib.sha256("\n".join([pictures.index.sha256, *lines]).encode()).hexdigest()[:16]


def _chunks(total: int, label: str) -> Iterator[slice]:
    with tqdm(total=total, desc=label, unit="caption") as bar:
        for start in range(0, total, CHUNK):
            yield slice(start, min(start + CHUNK, total))
            bar.update(min(CHUNK, total - start))


def _stored(pictures: PictureDataset, name: str, write: Callable[[Path], None]) -> np.ndarray:
    path = pictures.index.root / "texts" / f"{pictures.split}-{name}.npy"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}.npy")
        try:
            write(temporary)
            fsync(temporary)
            temporary.rename(path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and it is made again") from error
