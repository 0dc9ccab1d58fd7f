"""The update that every sampler shares: from x_t and an estimate of x0 to x_s."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError
from ldm.diffusion import Noise, Schedule

State = Float[Tensor, "b *shape"]
Time = Float[Tensor, ""]
Times = Float[Tensor, " steps_and_end"]


def step(x: State, x0: State, t: Time, s: Time, schedule: Schedule) -> State:
    """x at time s if x0 is right: the noise of x_t is kept and rescaled (Song et al. 2021, Eq. 12)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t


def log_signal_ratio(schedule: Schedule, t: Time) -> Time:
    """lambda = log(alpha / sigma): -inf at a zero-SNR end, +inf at t = 0."""
    alpha, sigma = schedule(t)
    return alpha.log() - sigma.log()


def mean_over_step(outputs: Sequence[State], places: Sequence[Time], width: Time) -> State:
    """The x0 that takes `step` exactly over a step in which x0 is a polynomial of lambda.

    The exact solution is `step` with the mean of x0 under the weight e^lambda (Lu et al. 2022, Eq. 9). The
    polynomial goes through `outputs`, which lie at `places`: lambda counted from the start of the step, in
    units of its finite `width`. As many of both, all places different.
    """
    integrals = [-torch.expm1(-width)]  # of e^lambda * place^k over the step, by parts
    for power in range(1, len(outputs)):
        integrals.append(1 - power / width * integrals[-1])
    powers = torch.arange(len(outputs), dtype=width.dtype)[:, None]
    weights = torch.linalg.solve(torch.stack(list(places)) ** powers, torch.stack(integrals) / integrals[0])
    return combined(weights, outputs)


def combined(weights: Iterable[Time | float], outputs: Sequence[State]) -> State:
    """The sum of the outputs, each times its weight; as many of both, one at least."""
    total = torch.zeros_like(outputs[0])
    for weight, output in zip(weights, outputs, strict=True):
        total = total + weight * output
    return total


def check_eta(eta: float) -> None:
    """Raises UserError for a share of fresh noise outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise UserError(f"{eta=} is outside [0, 1]: 0 adds no noise, 1 all that the reverse diffusion has")


def given(noise: Noise | None, sampler: str) -> Noise:
    """The noise, where a sampler can't do without.

    Raises UserError if there is none.
    """
    if noise is None:
        raise UserError(f"{sampler} puts fresh noise in at each step: pass noise=")
    return noise
