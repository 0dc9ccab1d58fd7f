"""Our networks on codes against transformers' GPT-2 with the same weights, in one process, in turns.

    python -m benchmarks.tokens_vs_transformers [--size tiny small medium] [--rounds 5] [--device cpu]

Prints, for each size, the largest difference of the logits in float32; then codes per second of sampling with
a cache (`ldm.generators.token_loop.generate_codes` against `GPT2LMHeadModel.generate`) and seconds of a
training step, both with their ratio (below 1: ours is faster). Take the numbers on an idle machine.

The text's vocabulary is small, so that both compute about as many logits: GPT-2 has one head for all tokens.
"""

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from benchmarks.timing import in_turns
from ldm.exchange.keymap import Rule, rename, shapes, translate, transpose
from ldm.generators.token_loop import CHUNK, Choice, generate_codes
from ldm.models.autoregressive import DalleTransformer

TEXT, WORDS = 32, 16  # tokens of a text, and their vocabulary


class Size(NamedTuple):
    """Sizes of a network and of its training batch."""

    width: int
    depth: int
    num_heads: int
    num_codes: int
    grid: int
    batch: int


SIZES = {
    "tiny": Size(width=192, depth=6, num_heads=4, num_codes=1024, grid=8, batch=32),
    "small": Size(width=512, depth=8, num_heads=8, num_codes=1024, grid=16, batch=8),
    "medium": Size(width=1024, depth=12, num_heads=16, num_codes=1024, grid=16, batch=2),
}


def rules() -> list[Rule]:
    """Names of GPT-2 against those of `DalleTransformer` with one table of positions and no own pads."""
    block = {
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "mlp.c_fc": "mlp.wide",
        "mlp.c_proj": "mlp.narrow",
    }
    theirs, ours = "transformer.h.{}.", "trunk.layers.{}."
    return [
        *(transpose(f"{theirs}{a}.weight", f"{ours}{b}.weight") for a, b in block.items()),
        *(rename(f"{theirs}{a}.bias", f"{ours}{b}.bias") for a, b in block.items()),
        *(rename(f"{theirs}ln_{n}.*", f"{ours}norm{n}.*") for n in (1, 2)),
        rename("transformer.ln_f.*", "trunk.norm.*"),
        _split("transformer.wte.weight", ("text.weight", "codes.weight"), WORDS),
        _split("transformer.wpe.weight", ("text_places.weight", "code_places.0.weight"), TEXT),
        _split("lm_head.weight", ("head_text.weight", "head_codes.weight"), WORDS),
    ]


def _split(theirs: str, ours: tuple[str, str], first: int) -> Rule:
    return Rule((theirs,), ours, lambda t: [t[0][:first], t[0][first:]], lambda t: [torch.cat(t)])


def pair(size: Size) -> tuple[DalleTransformer, GPT2LMHeadModel]:
    """Both networks with the same weights."""
    torch.manual_seed(0)
    sizes = {"num_codes": size.num_codes, "grid": size.grid, "width": size.width, "depth": size.depth}
    ours = DalleTransformer(
        **{"vocab_size": WORDS, "text_length": TEXT, "num_heads": size.num_heads, **sizes},
        **{"sparse": False, "axial": False, "own_pads": False},
    )
    config = GPT2Config(
        vocab_size=WORDS + size.num_codes,
        n_positions=TEXT + size.grid**2,
        n_embd=size.width,
        n_layer=size.depth,
        n_head=size.num_heads,
        activation_function="gelu",
        tie_word_embeddings=False,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    theirs = GPT2LMHeadModel(config)
    ours.load_state_dict(translate(theirs.state_dict(), rules(), expected=shapes(ours.state_dict())))
    return ours, theirs


def difference(ours: DalleTransformer, theirs: GPT2LMHeadModel, texts: Tensor, codes: Tensor) -> float:
    """The largest difference of the logits of codes."""
    with torch.inference_mode():
        whole = theirs(input_ids=torch.cat([texts, WORDS + codes], dim=1)).logits
        found = ours.logits(texts, codes)
        return (whole[:, TEXT - 1 : -1, WORDS:] - found).abs().max().item()


@torch.inference_mode()
def sampled(theirs: GPT2LMHeadModel, texts: Tensor, *, length: int) -> Tensor:
    """GPT-2's own sampling from the whole distribution, with its cache."""
    options = {"do_sample": True, "top_k": 0, "use_cache": True, "attention_mask": torch.ones_like(texts)}
    return theirs.generate(texts, max_new_tokens=length, min_new_tokens=length, **options)


def training_step(net: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str, size: Size, *, rounds: int, device: torch.device) -> None:
    """Prints the rows of one size."""
    ours, theirs = (net.to(device).eval() for net in pair(size))
    generator = torch.Generator().manual_seed(1)
    few = torch.randint(WORDS, (CHUNK, TEXT), generator=generator).to(device)
    texts = torch.randint(WORDS, (size.batch, TEXT), generator=generator).to(device)
    codes = torch.randint(size.num_codes, (size.batch, ours.length), generator=generator).to(device)
    count = sum(parameter.numel() for parameter in ours.parameters())
    print(f"{name}: {count / 1e6:.1f} M parameters, {TEXT} tokens and {ours.length} codes; ", end="")
    print(f"largest difference of the logits {difference(ours, theirs, texts, codes):.1e} (limit 1e-4)")
    loops = [
        lambda: generate_codes(ours, few, range(CHUNK), Choice()),
        partial(sampled, theirs, few, length=ours.length),
    ]
    row(f"  sampling, {CHUNK} pictures", loops, rounds=rounds, codes=CHUNK * ours.length)
    whole = torch.cat([texts, WORDS + codes], dim=1)

    def own_loss() -> Tensor:
        nats = ours.nats(texts, codes)
        assert nats.text is not None
        return torch.cat([nats.text, nats.image], dim=1).mean()

    steps = [
        training_step(ours, own_loss),
        training_step(theirs, lambda: theirs(input_ids=whole, labels=whole).loss),
    ]
    row(f"  training step, batch {size.batch}", steps, rounds=rounds)


def row(name: str, actions: list[Callable[[], object]], *, rounds: int, codes: int | None = None) -> None:
    """Times ours and theirs and prints a line."""
    ours, theirs = (median(own) for own in in_turns(dict(enumerate(actions)), rounds=rounds).values())
    rates = f" ({codes / ours:.0f} and {codes / theirs:.0f} codes per second)" if codes else ""
    print(f"{name}: ours {ours:.3f} s, GPT-2 {theirs:.3f} s, ratio {ours / theirs:.2f}{rates}", flush=True)


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    logging.set_verbosity_error()  # its advice would stand inside our lines
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.device}")
    for name in options.size:
        compare(name, SIZES[name], rounds=options.rounds, device=options.device)


if __name__ == "__main__":
    main()
