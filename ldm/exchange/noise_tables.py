"""Which noise table the buffers in a checkpoint are: one of our schedules, or a list of betas."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.construct import construct
from ldm.exchange.schedulers import table_spec
from ldm.fields import Fields

PUBLISHED = ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195), (0.0015, 0.0155))  # of betas
NEAR = {
    torch.float16: 4e-3,
    torch.bfloat16: 8e-3,
}  # of any alpha-bar: two rounding errors
NEAR_FLOAT = 2e-5  # a product of a thousand numbers in float32
MAX_STEPS = 10_000


@dataclass(frozen=True)
class Buffer:
    """A buffer of CompVis' checkpoints: its name, and alpha-bar of each table entry from its numbers."""

    name: str

    def alpha_bar(self, x: Tensor) -> Tensor:
        """alpha-bar in float64."""
        x = x.double()
        return {
            "alphas_cumprod": lambda: x,
            "betas": lambda: (1 - x).cumprod(0),
            "sqrt_alphas_cumprod": lambda: x**2,
            "sqrt_one_minus_alphas_cumprod": lambda: 1 - x**2,
            "log_one_minus_alphas_cumprod": lambda: 1 - x.exp(),
            "sqrt_recip_alphas_cumprod": lambda: x**-2,
            "sqrt_recipm1_alphas_cumprod": lambda: 1 / (1 + x**2),
        }[self.name]()


BUFFERS = [
    Buffer(name)
    for name in (
        "alphas_cumprod",
        "betas",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
    )
]


def read_tables(buffers: Mapping[str, Tensor], where: object) -> tuple[str, dict[str, Any]] | None:
    """The first buffer's name, and the table that all of them are, as fields of a scheduler of diffusers.

    Args:
        buffers: of a checkpoint, by name; those that are no tables are not looked at.
        where: the file, for sentences.

    Returns:
        `beta_schedule`, `beta_start`, `beta_end`, `num_train_timesteps` and `rescale_betas_zero_snr`; with
        `trained_betas` a table that none of ours is; None where there is no buffer.

    Raises:
        UserError: numbers that are no noise table, two buffers that are of different tables, or a table that
            is not ours and has too few digits to be taken as it is.
    """
    found = {each.name: buffers[each.name] for each in BUFFERS if each.name in buffers}
    if not found:
        return None
    first = next(iter(found))
    alpha_bar, near = _alpha_bar(first, found[first], where), _near(found[first])
    for name, tensor in found.items():
        other = _alpha_bar(name, tensor, where)
        if other.shape != alpha_bar.shape or (other - alpha_bar).abs().max() > 2 * max(near, _near(tensor)):
            raise UserError(
                f"{where}: its {first} and its {name} are of different noise tables: write declared=ignore "
                "and process=<what it was trained with>"
            )
    distances = {(other - alpha_bar).abs().max().item(): fields for fields, other in _candidates(alpha_bar)}
    least = min(distances)
    if least <= near:
        return first, distances[least]
    if near > NEAR_FLOAT:
        raise UserError(f"{where}: its {first} is none of our tables, in 16 bits: take the file in float32")
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    exact = found["betas"].double() if "betas" in found else 1 - alpha_bar / before
    betas = [float(f"{beta:.7g}") for beta in exact.tolist()]
    return first, {"trained_betas": betas, "num_train_timesteps": len(betas)}


def _near(tensor: Tensor) -> float:
    return NEAR.get(tensor.dtype, NEAR_FLOAT)


def _alpha_bar(name: str, tensor: Tensor, where: object) -> Tensor:
    if tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_STEPS or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} has the shape {tuple(tensor.shape)}, expected a noise table")
    alpha_bar = Buffer(name).alpha_bar(tensor)
    falls = (alpha_bar.diff() <= _near(tensor)).all()
    if not (alpha_bar.isfinite().all() and alpha_bar[-1] >= 0 and 0 < alpha_bar[0] <= 1 and falls):
        raise UserError(
            f"{where}: {name} is no noise table, it must fall from 1 to 0: write declared=ignore and "
            "process=<what it was trained with>"
        )
    return alpha_bar


def _candidates(alpha_bar: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Tables of ours with the same number of steps, with the fields that say them."""
    ends = [1 - alpha_bar[0].item(), 1 - (alpha_bar[-1] / alpha_bar[-2]).item()]
    rounded = [tuple(float(f"{end:.{digits}g}") for end in ends) for digits in (3, 5)]
    pairs = [pair for pair in (*PUBLISHED, *rounded) if 0 < pair[0] < pair[1] < 1]
    shapes: list[dict[str, Any]] = [{"beta_schedule": "squaredcos_cap_v2"}]
    for kind in ("scaled_linear", "linear"):
        shapes += [{"beta_schedule": kind, "beta_start": low, "beta_end": high} for low, high in pairs]
    for zero_snr in (False, True):
        for shape in shapes:
            fields = {**shape, "num_train_timesteps": len(alpha_bar), "rescale_betas_zero_snr": zero_snr}
            yield fields, construct(table_spec(Fields("", fields))).alpha_bar[1:]
