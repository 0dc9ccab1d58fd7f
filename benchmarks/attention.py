"""Attention of half precision on this CPU: torch's fused kernel against the parts that `attend` takes.

    python -m benchmarks.attention [--rounds 5]

Prints, for shapes from the tiny preset's to Stable Diffusion's, the milliseconds of the forward and of
forward and backward, and the ratio of `attend` to the fused kernel (below 1: `attend` is faster). Where one
head has more than `CACHED_LOGITS` logits both are the same. The times are processor time of one thread, so
that other work on the machine disturbs them little; each is the least of its rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import in_turns
from ldm.models.attention import CACHED_LOGITS, attend

SHAPES = {  # batch, heads, queries, keys, channels of a head
    "tiny, self": (64, 4, 64, 64, 32),
    "tiny, cross": (64, 4, 64, 32, 32),
    "16x16 latents, self": (16, 8, 256, 256, 64),
    "32x32 latents, self": (4, 8, 1024, 1024, 40),
    "32x32 latents, cross": (16, 8, 1024, 77, 40),
    "64x64 latents, self": (1, 8, 4096, 4096, 40),
    "64x64 latents, cross": (4, 8, 4096, 77, 40),
    "autoencoder, 32x32": (2, 1, 1024, 1024, 512),
}

WAYS: dict[str, Callable[..., Tensor]] = {"fused": F.scaled_dot_product_attention, "ours": attend}


def both(name: str, rows: list[Tensor]) -> None:
    """Forward and backward of one way."""
    mixed = WAYS[name](*rows)
    mixed.backward(torch.ones_like(mixed))


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, bfloat16, one thread, CACHED_LOGITS = {CACHED_LOGITS}")
    print("| shape | b h n m d | forward, fused | attend | ratio | and backward, fused | attend | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (b, h, n, m, d) in SHAPES.items():
        # as a projection gives them: the heads of a token lie beside each other
        rows = [
            torch.randn(b, tokens, h, d, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
            for tokens in (n, m, m)
        ]
        cells = []
        forward = {way: partial(function, *rows) for way, function in WAYS.items()}
        for actions in (forward, {way: partial(both, way, rows) for way in WAYS}):
            seconds = in_turns(actions, rounds=rounds, clock=process_time)
            fused, ours = (1000 * min(own) for own in seconds.values())
            cells += [f"{fused:.1f}", f"{ours:.1f}", f"{ours / fused:.2f}"]
        print(f"| {name} | {b} {h} {n} {m} {d} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
