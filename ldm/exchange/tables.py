"""The noise table in a checkpoint's buffers, as fields of a scheduler of diffusers."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.construct import construct
from ldm.exchange.schedulers import MAX_STEPS, table_spec
from ldm.io.reading import Fields

PUBLISHED = ((0.00085, 0.012), (0.0001, 0.02), (0.0015, 0.0195), (0.0015, 0.0155))  # first and last beta
ROUNDING = {torch.float16: 4e-3, torch.bfloat16: 8e-3}  # of any alpha-bar: two rounding errors
ROUNDING_FLOAT = 2e-5  # of a product of a thousand numbers in float32
ALPHA_BAR: dict[str, Callable[[Tensor], Tensor]] = {  # alpha-bar from each buffer that a checkpoint may have
    "alphas_cumprod": lambda x: x,
    "betas": lambda x: (1 - x).cumprod(0),
    "sqrt_alphas_cumprod": lambda x: x**2,
    "sqrt_one_minus_alphas_cumprod": lambda x: 1 - x**2,
    "log_one_minus_alphas_cumprod": lambda x: 1 - x.exp(),
    "sqrt_recip_alphas_cumprod": lambda x: x**-2,
    "sqrt_recipm1_alphas_cumprod": lambda x: 1 / (1 + x**2),
}


def read_tables(found: Mapping[str, Tensor], where: Path) -> dict[str, Any]:
    """The fields of the noise table in a checkpoint's buffers, which must all contain the same one.

    A table that is none of ours becomes `trained_betas`, if it has more than 16 bits.
    """
    first = next(iter(found))
    alpha_bar, near = _alpha_bar(first, found[first], where), _rounding(found[first])
    for name, tensor in found.items():
        other, far = _alpha_bar(name, tensor, where), 2 * max(near, _rounding(tensor))
        if other.shape != alpha_bar.shape or (other - alpha_bar).abs().max() > far:
            raise UserError(
                f"{where}: its {first} and its {name} are of different noise tables: write declared=ignore "
                "and the process= that it was trained with"
            )
    distances = {(other - alpha_bar).abs().max().item(): fields for fields, other in _candidates(alpha_bar)}
    least = min(distances)
    if least <= near:
        return distances[least]
    if near > ROUNDING_FLOAT:
        raise UserError(f"{where}: its {first} is none of our tables, in 16 bits: use the file in float32")
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    exact = found["betas"].double() if "betas" in found else 1 - alpha_bar / before
    betas = [float(f"{beta:.7g}") for beta in exact.tolist()]
    return {"trained_betas": betas, "num_train_timesteps": len(betas)}


def _rounding(tensor: Tensor) -> float:
    return ROUNDING.get(tensor.dtype, ROUNDING_FLOAT)


def _alpha_bar(name: str, tensor: Tensor, where: Path) -> Tensor:
    if tensor.ndim != 1 or not 2 <= len(tensor) <= MAX_STEPS or not tensor.is_floating_point():
        raise UserError(f"{where}: {name} has the shape {tuple(tensor.shape)}, expected a noise table")
    alpha_bar = ALPHA_BAR[name](tensor.double())
    falls = (alpha_bar.diff() <= _rounding(tensor)).all()
    if not (alpha_bar.isfinite().all() and alpha_bar[-1] >= 0 and 0 < alpha_bar[0] <= 1 and falls):
        raise UserError(
            f"{where}: {name} is no noise table, which falls from 1 to 0: write declared=ignore and the "
            "process= that it was trained with"
        )
    return alpha_bar


def _candidates(alpha_bar: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Our tables with the same number of steps, each with its fields."""
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
