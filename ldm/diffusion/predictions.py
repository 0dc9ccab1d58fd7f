"""What a network predicts, how x0 is read from it, and the loss weights that follow.

Each prediction is a linear map of (x0, eps) with coefficients from (alpha, sigma), and inverts it for any
path, variance-preserving or straight. alpha and sigma come shaped to broadcast with the tensors.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError

# In training alpha and sigma hold a number per sample, (b, 1, 1, 1); a sampler passes one for all, 0-d.
Latents = Float[Tensor, "*shape"]
Coefficient = Float[Tensor, "..."]


@runtime_checkable
class Prediction(Protocol):
    """The quantity that a network is trained to output."""

    def target(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should output at x_t = alpha * x0 + sigma * eps."""
        ...

    def x0(self, output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean signal that an output at x implies."""
        ...

    def gain(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """|d x0 / d output|: how much an error of the output counts in x0."""
        ...


@dataclass(frozen=True)
class Eps:
    """The noise itself (Ho et al. 2020, Eq. 14); it does not determine x0 where alpha = 0."""

    def target(self, x0: Latents, eps: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """eps."""
        return eps

    def x0(self, output: Latents, x: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """(x - sigma * eps) / alpha (Ho et al. 2020, Eq. 4, solved for x0)."""
        return (x - sigma * output) / alpha

    def gain(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """sigma / alpha, which is infinite at alpha = 0: `Process` refuses the two together."""
        return sigma / alpha


@dataclass(frozen=True)
class X0:
    """The clean signal itself, x0."""

    def target(self, x0: Latents, eps: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """x0."""
        return x0

    def x0(self, output: Latents, x: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """The output."""
        return output

    def gain(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """1 at every timestep."""
        return torch.ones_like(alpha)


@dataclass(frozen=True)
class V:
    """v = alpha * eps - sigma * x0 (Salimans & Ho 2022, App. D), inverted for any alpha^2 + sigma^2."""

    def target(self, x0: Latents, eps: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """alpha * eps - sigma * x0."""
        return alpha * eps - sigma * x0

    def x0(self, output: Latents, x: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """(alpha * x - sigma * v) / (alpha^2 + sigma^2)."""
        # the divisor is 1 on a variance-preserving path, which the paper assumes
        return (alpha * x - sigma * output) / (alpha**2 + sigma**2)

    def gain(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """sigma on a variance-preserving path: finite everywhere, so v works with zero terminal SNR."""
        return sigma / (alpha**2 + sigma**2)


@dataclass(frozen=True)
class Flow:
    """The velocity eps - x0 of the straight path (Lipman et al. 2022, Eq. 23 with our direction of time).

    x = (alpha + sigma) * x0 + sigma * output holds on every path; on the straight one alpha + sigma = 1.
    """

    def target(self, x0: Latents, eps: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """eps - x0."""
        return eps - x0

    def x0(self, output: Latents, x: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """x - sigma * velocity on the straight path."""
        return (x - sigma * output) / (alpha + sigma)

    def gain(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """sigma on the straight path."""
        return sigma / (alpha + sigma)


@dataclass(frozen=True)
class Edm:
    """EDM's preconditioned output F, x0 = c_skip * x + c_out * F (Karras et al. 2022, Eq. 7 and Table 1).

    sigma_data is the data's standard deviation; at 1, which scaled latents have, F is -v on a
    variance-preserving path. F has unit variance at every timestep, so the loss needs no weight. c_in is part
    of the path: see `schedules.edm`.

    Raises UserError for a sigma_data that is not above 0.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise UserError(f"sigma_data={self.sigma_data} is a standard deviation: it must be above 0")

    def target(self, x0: Latents, eps: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """The F at which c_skip * x + c_out * F is x0 (Karras et al. 2022, Eq. 8)."""
        spread = self._spread(alpha, sigma)
        # x written out in x0 and eps: x0 - c_skip * x cancels at small sigma, and c_out is small there
        return sigma / (self.sigma_data * spread) * x0 - alpha * self.sigma_data / spread * eps

    def x0(self, output: Latents, x: Latents, alpha: Coefficient, sigma: Coefficient) -> Latents:
        """c_skip * x + c_out * F, with the table's constants rescaled to x_t = alpha * x0 + sigma * eps."""
        skip = alpha * (self.sigma_data / self._spread(alpha, sigma)) ** 2
        return skip * x + self.gain(alpha, sigma) * output

    def gain(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """c_out: 0 where x is clean already, sigma_data where it is noise alone."""
        return sigma * self.sigma_data / self._spread(alpha, sigma)

    def _spread(self, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
        """Standard deviation of x_t."""
        return ((alpha * self.sigma_data) ** 2 + sigma**2).sqrt()


def unweighted(prediction: Prediction, alpha: Coefficient, sigma: Coefficient) -> Coefficient:
    """Weight 1 on the squared error of the output at every timestep."""
    return torch.ones_like(alpha)


def min_snr(
    prediction: Prediction, alpha: Coefficient, sigma: Coefficient, *, gamma: float = 5.0
) -> Coefficient:
    """min(SNR, gamma) on the squared error of x0, moved to the network's output (Hang et al. 2023, Sec. 3.4).

    An output error counts gain-fold in x0, so the weight is min(SNR, gamma) * gain^2: min(SNR, gamma) / SNR
    for eps, min(SNR, gamma) for x0, min(SNR, gamma) / (SNR + 1) for v on a variance-preserving path, and
    min(SNR, gamma) * sigma^2 for the flow on the straight path. It is 0 at a zero-SNR end except for eps.
    """
    snr = (alpha / sigma) ** 2  # inf at t = 0; capped before it meets a gain of 0, since inf * 0 is NaN
    return snr.clamp(max=gamma) * prediction.gain(alpha, sigma) ** 2
