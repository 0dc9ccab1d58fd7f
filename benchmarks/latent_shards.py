"""Samples a second from stored latents, one process: moments of 256 px pictures (4 x 32 x 32) and 77 tokens.

    python -m benchmarks.latent_shards [--pictures 8192] [--batch 256] [--seconds 5]

Writes the shards of so many made-up pictures to a temporary folder and reads them in training order, as
`ldm.data.latents` does: draws, batches and the check for NaN included. Take the number on an idle machine.
"""

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from ldm.data.index import ShardIndex
from ldm.data.latents import StoredSplit, collate
from ldm.data.shards import Sample, write_shards
from ldm.data.stored import StoredArrays, write_origin
from ldm.data.stream import Positions, StreamDataset, StreamLoader

MOMENTS = (1, 2, 4, 32, 32)  # one orientation, mean and log-variance
CAPTIONS = 5
TOKENS = (CAPTIONS, 77)


def samples(count: int, shape: tuple[int, ...], dtype: type) -> Iterator[Sample]:
    """Made-up arrays under made-up captions."""
    generator = np.random.default_rng(0)
    for number in range(count):
        buffer = io.BytesIO()
        np.save(buffer, generator.standard_normal(shape).astype(dtype))
        texts = [f"caption {place} of picture {number}" for place in range(CAPTIONS)]
        key = f"{number:08d}"
        yield Sample(
            key=key, image=buffer.getvalue(), extension="npy", texts=texts, comment_nos=list(range(CAPTIONS))
        )


def stored(folder: Path, count: int, shape: tuple[int, ...], dtype: type) -> StoredArrays:
    """Written arrays, opened as training opens them."""
    folder.mkdir()
    origin = {"split": "train"}
    write_origin(folder, origin)
    shards = tuple(write_shards(samples(count, shape, dtype), root=folder, split="train"))
    ShardIndex(root=folder, name=folder.name, shards=shards).save()
    return StoredArrays(folder, origin=origin)


def split(folder: Path, count: int) -> StoredSplit:
    """The set that is read."""
    texts = [[f"caption {place} of picture {number}" for place in range(CAPTIONS)] for number in range(count)]
    moments = stored(folder / "moments", count, MOMENTS, np.float16)
    tokens = stored(folder / "tokens", count, TOKENS, np.int32)
    return StoredSplit(moments, texts, tokens, flips=False, seed=0)


def main() -> None:
    """Reads the options and prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stored = split(Path(folder), options.pictures)
        positions = Positions(batch_size=options.batch, num_batches=10**9)
        stream = StreamDataset(stored.sample, size=options.pictures, seed=0)
        loader = iter(StreamLoader(stream, positions, collate_fn=collate))
        next(loader)
        read, start = 0, perf_counter()
        while (elapsed := perf_counter() - start) < options.seconds:
            read += len(next(loader)["position"])
    print(f"{read / elapsed:,.0f} samples/s, one process, batches of {options.batch}, {read} samples")


if __name__ == "__main__":
    main()
