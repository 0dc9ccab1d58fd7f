"""Codes one after the other: how the next one is chosen, and the loop that does so for pictures in chunks.

A rounding error that changes one code changes the picture. So the network always sees the same number of
rows, and each picture's choices are made with uniform numbers of its own seed: it depends on its condition
and its seed, and not on the pictures beside it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import NotFinite, UserError, send
from ldm.models.code_transformer import CodeNetwork
from ldm.models.packed import packed
from ldm.randomness.uniforms import SeededUniforms, gumbel

CHUNK = 8  # pictures that a network sees at once; a last chunk is filled up
NUMBERS = 2**18  # uniform numbers of a picture that are made at once
Watch = Callable[[Tensor, int], None]  # (codes, of which the others are 0; steps that are done)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """How the next code is sampled from logits.

    Guidance moves the log-probabilities away from those without a condition, then they are divided by the
    temperature, then only the likeliest codes are kept (top-k), then of these the nucleus (top-p).

    Raises UserError for a temperature not above 0, `top_k` below 0, `top_p` outside (0, 1], or a scale that
    is not finite.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # mass of the nucleus (Holtzman et al. 2020)
    scale: float = 1.0  # of guidance; 1: none

    def __post_init__(self) -> None:
        if not 0 < self.temperature < torch.inf:
            raise UserError(f"temperature={self.temperature} must be a finite number above 0")
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must be at least 0, which keeps all codes")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must lie in (0, 1]: it is a share of the probability")
        if not -torch.inf < self.scale < torch.inf:
            raise UserError(f"scale={self.scale} must be a finite number")

    @property
    def guided(self) -> bool:
        """Whether the logits without a condition are needed."""
        return self.scale != 1

    def __call__(
        self, logits: Float[Tensor, "b k"], noise: Float[Tensor, "b k"], empty: Float[Tensor, "b k"] | None
    ) -> Int[Tensor, " b"]:
        """A code of each row, by Gumbel noise; `empty` are logits without a condition, None: no guidance."""
        logits = logits.float()
        if empty is not None:
            logits = torch.lerp(empty.float().log_softmax(-1), logits.log_softmax(-1), self.scale)
        logits = likeliest(logits / self.temperature, top_k=self.top_k, top_p=self.top_p)
        return (logits + noise).argmax(dim=-1)


def likeliest(logits: Float[Tensor, "b k"], *, top_k: int, top_p: float) -> Float[Tensor, "b k"]:
    """Logits with all but the likeliest codes at minus infinity.

    Args:
        top_k: how many are kept, and those that are as likely as the last of them; 0: all.
        top_p: then the smallest set of the likeliest ones with at least this mass is kept.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        values, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = values.softmax(dim=-1)
        beyond = mass.cumsum(dim=-1) - mass >= top_p  # the likelier ones have the mass already
        beyond[..., 0] = False  # which rounding could drop
        logits = logits.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return logits


def generate_codes(
    net: CodeNetwork,
    condition: Tensor,
    seeds: Sequence[int],
    choice: Choice,
    *,
    empty: Tensor | None = None,
    known: tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]] | None = None,
    watch: Watch | None = None,
) -> Int[Tensor, "b n"]:
    """The codes of a picture for each row of a condition and each seed.

    Args:
        condition: what `net.continuation` reads; the network is in evaluation mode.
        empty: the empty condition in as many rows; None without guidance.
        known: codes, and which of them are kept; None: all are generated.
        watch: called after each code; what it raises ends the loop.

    Raises NotFinite for logits that are NaN.
    """
    rows = [each for each in (condition, empty if choice.guided else None) if each is not None]
    made = torch.zeros(len(condition), net.length, dtype=torch.int64, device=condition.device)
    # float32, whatever the training's precision
    with torch.inference_mode(), torch.autocast(made.device.type, enabled=False), packed(net):
        for start in range(0, len(made), CHUNK):
            own = slice(start, start + CHUNK)
            drawn = list(seeds[own])
            steps = _chunk(
                net,
                torch.cat([filled(each[own]) for each in rows]),
                SeededUniforms(drawn + drawn[-1:] * (CHUNK - len(drawn)), device=made.device),
                choice,
                count=len(rows),
                known=None
                if known is None
                else tuple(filled(send(each[own], made.device)) for each in known),
            )
            for place, codes in enumerate(steps):
                made[own, place] = codes[: len(drawn)]
                if watch is not None:
                    watch(made, start // CHUNK * net.length + place + 1)
    return made


def filled(rows: Tensor) -> Tensor:
    """Rows of a chunk, the last one repeated up to its size."""
    return torch.cat([rows, rows[-1:].expand(CHUNK - len(rows), *rows.shape[1:])])


def _chunk(
    net: CodeNetwork,
    condition: Tensor,
    uniform: SeededUniforms,
    choice: Choice,
    *,
    count: int,
    known: tuple[Tensor, ...] | None,
) -> Iterator[Int[Tensor, " b"]]:
    """The next code of each picture of a chunk, place by place.

    The condition is that of the pictures, and after it the empty one for each of them if `count` is 2.
    """
    following, codes, noise = net.continuation(condition), None, torch.empty(0)
    at_once, total = max(1, NUMBERS // net.num_codes), torch.zeros((), device=condition.device)
    for place in range(net.length):
        logits = following(None if codes is None else codes[:, None].repeat(count, 1))
        total = total + logits.sum()  # NaN as soon as one is NaN or infinite; asked at the end, as that waits
        if place % at_once == 0:
            noise = gumbel(uniform(min(at_once, net.length - place), net.num_codes))
        cond, *empty = logits.chunk(count)
        codes = choice(cond, noise[:, place % at_once], empty[0] if empty else None)
        if known is not None:
            given, kept = known
            codes = torch.where(kept[:, place], given[:, place], codes)
        yield codes
    if not total.isfinite():
        raise NotFinite("the logits of codes are NaN or infinite: take another bundle")
