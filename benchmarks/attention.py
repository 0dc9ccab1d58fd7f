"""Attention of half precision on this CPU: torch's fused kernel against the parts that `attend` takes.

    python -m benchmarks.attention [--rounds 5]

Prints, for shapes from the tiny preset's to Stable Diffusion's, the milliseconds of the forward and of
forward and backward, and the ratio of `attend` to the fused kernel (below 1: `attend` is faster). Where one
head has more than `CACHED_LOGITS` logits both are the same. The times are processor time of one thread, so
that other work on the machine disturbs them little; each is the least of its rounds.
"""

import argparse
from collections.abc import Callable
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor

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

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def milliseconds(attention: Attention, rows: list[Tensor], *, backward: bool, rounds: int) -> float:
    """The least processor time of some calls."""
    times = []
    for _ in range(rounds + 1):  # the first warms up
        start = process_time()
        mixed = attention(*rows)
        if backward:
            mixed.backward(torch.ones_like(mixed))
        times.append(process_time() - start)
    return 1000 * min(times[1:])


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
        for backward in (False, True):
            fused = milliseconds(F.scaled_dot_product_attention, rows, backward=backward, rounds=rounds)
            ours = milliseconds(attend, rows, backward=backward, rounds=rounds)
            cells += [f"{fused:.1f}", f"{ours:.1f}", f"{ours / fused:.2f}"]
        print(f"| {name} | {b} {h} {n} {m} {d} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
