"""Pictures per second of the loader, and of the frozen networks that encode pictures and captions."""

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import Row
from benchmarks.loader import BATCH, made, ours, prepare
from ldm.planning.dry_run import made_up_codec


def loading(machine: Machine) -> Iterator[Row]:
    """Rows of the loader, in one process, and of the codec of `flickr_base`, in float32."""
    (config,) = machine.configs("flickr_base").values()
    with tempfile.TemporaryDirectory() as folder:
        batches = machine.scaled(8, 1)
        prepare(islice(made(), BATCH), Path(folder))
        load = ours(Path(folder), size=config.data.size, batches=batches)
        rate = batches * BATCH / machine.seconds(load, rounds=3, warm=1)
        yield Row(what=f"loader, {config.data.size} px, one process", value=rate, unit="pictures/s")
    codec, _ = made_up_codec(config)
    codec.to(machine.device)
    count = machine.scaled(64, 2)
    pictures = torch.randint(256, (count, 3, *2 * (config.data.size,)), dtype=torch.uint8)
    tokens = codec.tokenizer.encode(["a " * 1000] * count)
    for name, action in (
        ("autoencoder", lambda: codec.moments(pictures)),
        ("text encoder", lambda: codec.context(tokens)),
    ):
        rate = count / machine.seconds(action)
        yield Row(what=f"{name}, {count} rows", value=rate, unit="rows/s")
