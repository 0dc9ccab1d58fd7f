"""Attention of half precision on this CPU: torch's fused kernel against the parts that `attend` takes.

    python -m benchmarks.attention [--shape tiny base sd] [--rounds 5]

Prints, for every attention of the U-Net and the autoencoder of each size, the milliseconds of the forward
and of forward and backward, and the ratio of `attend` to the fused kernel (below 1: ours is faster). Where
one head has more than `CACHED_LOGITS` logits both are the same. The times are processor time of one thread,
so that other work on the machine disturbs them little; each is the least of its rounds.
"""

import argparse
from collections.abc import Callable
from functools import partial
from time import process_time

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problem_sizes import EVERY, ProblemSize, add_shape
from benchmarks.timing import in_turns
from ldm.models.attention import CACHED_LOGITS, attend

Call = tuple[int, int, int, int, int]  # batch, heads, queries, keys, channels of a head


WAYS: dict[str, Callable[..., Tensor]] = {"fused": F.scaled_dot_product_attention, "ours": attend}


def calls(size: ProblemSize) -> dict[str, Call]:
    """The attentions of a problem size by name."""
    side, found = size.latents[1], {}
    for level, (width, heads, attends) in enumerate(zip(size.widths, size.heads, size.attends, strict=True)):
        tokens = (side // 2**level) ** 2
        for name, keys in (("self", tokens), ("cross", size.context[0])) if attends else ():
            found[f"level {level}, {name}"] = (size.batch, heads, tokens, keys, width // heads)
    return found | {"autoencoder": (size.batch, 1, side**2, side**2, size.autoencoder[-1])}


def both(name: str, rows: list[Tensor]) -> None:
    """Forward and backward of one way."""
    mixed = WAYS[name](*rows)
    mixed.backward(torch.ones_like(mixed))


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, bfloat16, one thread, CACHED_LOGITS = {CACHED_LOGITS}")
    print("| shape | b h n m d | forward, fused | attend | ratio | and backward, fused | attend | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    every = {
        f"{shape}, {name}": call for shape in options.shape for name, call in calls(EVERY[shape]).items()
    }
    for name, (b, h, n, m, d) in every.items():
        # as a projection gives them: the heads of a token lie beside each other
        rows = [
            torch.randn(b, tokens, h, d, dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
            for tokens in (n, m, m)
        ]
        cells = []
        forward = {way: partial(function, *rows) for way, function in WAYS.items()}
        for actions in (forward, {way: partial(both, way, rows) for way in WAYS}):
            seconds = in_turns(actions, rounds=options.rounds, clock=process_time)
            fused, ours = (1000 * min(own) for own in seconds.values())
            cells += [f"{fused:.1f}", f"{ours:.1f}", f"{ours / fused:.2f}"]
        print(f"| {name} | {b} {h} {n} {m} {d} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
