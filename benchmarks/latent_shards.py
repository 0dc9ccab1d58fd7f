"""Samples a second from stored latents and tokens, one process.

    python -m benchmarks.latent_shards [--shape base] [--pictures 8192] [--batch 256] [--seconds 5]

Writes the shards of so many made-up pictures to a temporary folder and reads them in training order, as
`ldm.data.latents` does: draws, batches and the check for NaN included. Take the number on an idle machine.
"""

import argparse
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import torch

from benchmarks.problem_sizes import EVERY, ProblemSize, add_shape
from data_prep.making import write_shards
from ldm.data.index import ShardIndex
from ldm.data.latents import StoredSplit, collate
from ldm.data.shards import Sample
from ldm.data.stored import ORIGIN, StoredArrays
from ldm.data.stream import Positions, StreamDataset, StreamLoader

CAPTIONS = 5


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
    (folder / ORIGIN).write_text(json.dumps(origin))
    shards = tuple(write_shards(samples(count, shape, dtype), root=folder, split="train"))
    ShardIndex(root=folder, name=folder.name, shards=shards).save()
    return StoredArrays(folder, origin=origin)


def split(folder: Path, size: ProblemSize, count: int) -> StoredSplit:
    """The set that is read."""
    channels, side = size.latents
    mean_and_logvar = (1, 2, channels, side, side)  # of one orientation
    moments = stored(folder / "moments", count, mean_and_logvar, np.float16)
    tokens = stored(folder / "tokens", count, (CAPTIONS, size.context[0]), np.int32)
    return StoredSplit({"moments": moments}, tokens, flips=False, seed=0)


def main() -> None:
    """Reads the options and prints the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser, "base")
    parser.add_argument("--pictures", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for shape in options.shape:
        measure(shape, options)


def measure(shape: str, options: argparse.Namespace) -> None:
    """Prints the figure of a size."""
    with tempfile.TemporaryDirectory() as folder:
        stored = split(Path(folder), EVERY[shape], options.pictures)
        positions = Positions(batch_size=options.batch, num_batches=10**9)
        stream = StreamDataset(stored.sample, size=options.pictures, seed=0)
        loader = iter(StreamLoader(stream, positions, collate_fn=collate))
        next(loader)
        read, start = 0, perf_counter()
        while (elapsed := perf_counter() - start) < options.seconds:
            read += len(next(loader)["position"])
    print(
        f"{shape}: {read / elapsed:,.0f} samples/s, one process, batches of {options.batch}, {read} samples"
    )


if __name__ == "__main__":
    main()
