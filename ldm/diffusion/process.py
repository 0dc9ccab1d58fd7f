"""Process: a schedule, a prediction and the network's time, joined into a training loss and a denoiser.

Training timesteps are inverse CDFs of uniform numbers in [0, 1), which the caller supplies.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError, send
from ldm.diffusion import Denoiser, PerTimestep, Schedule, State, Time
from ldm.diffusion.grids import shifted
from ldm.diffusion.predictions import Prediction, unweighted

# what an output means depends on these fields, not on the timesteps and weights it was trained with
READ_BY_DENOISER = ("schedule", "prediction", "network_time")

Network = Callable[..., Tensor]
"""net(x: b c h w, t: b in network time, context) -> b c h w."""


def table_index(t: PerTimestep, *, num_steps: int = 1000) -> PerTimestep:
    """Network time of a DDPM table: 0 to num_steps - 1 at its entries, -1 at t = 0."""
    return num_steps * t - 1


def scaled(t: PerTimestep, *, scale: float = 1000.0) -> PerTimestep:
    """Network time from 0 to scale, the range that sinusoidal embeddings are made for."""
    return scale * t


def whole(t: PerTimestep, *, num_steps: int = 1000) -> PerTimestep:
    """Network time of a flow in whole numbers from 0 to num_steps, rounded down as diffusers does."""
    return (num_steps * t).floor()


def uniform_timesteps(uniform: Float[Tensor, " b"], *, shift: float = 1.0) -> Float[Tensor, " b"]:
    """Uniform in t, then moved towards noise by `shift` (see `grids.shifted`)."""
    return shifted(uniform, shift)


def table_timesteps(uniform: Float[Tensor, " b"], *, num_steps: int = 1000) -> Float[Tensor, " b"]:
    """Uniform over the `num_steps` entries of a DDPM table, as Stable Diffusion was trained."""
    # + 1: entry i sits at t = (i + 1) / num_steps; the clamp keeps a fixed number of exactly 1 in the table
    return ((uniform * num_steps).floor() + 1).clamp(max=num_steps) / num_steps


def logit_normal_timesteps(
    uniform: Float[Tensor, " b"], *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " b"]:
    """sigmoid of a normal with this mean and std: middle timesteps more often (Esser et al. 2024, Eq. 19)."""
    # ndtri, the inverse CDF, and no randn: a batch's numbers are spread evenly, and stay so
    return shifted(torch.sigmoid(mean + std * torch.special.ndtri(uniform)), shift)


@dataclass(frozen=True, kw_only=True)
class Noised:
    """Samples at their training timesteps, and what the network is to output for them, in float32."""

    x: Float[Tensor, "b c h w"]
    time: Float[Tensor, " b"]  # network time
    target: Float[Tensor, "b c h w"]
    weight: Float[Tensor, "b 1 1 1"]  # of the squared error

    def error(self, output: Float[Tensor, "b c h w"]) -> Float[Tensor, " b"]:
        """Weighted squared error of each sample's output, mean over its elements, in float32."""
        # the error is that of the output, not of x0, which eps divides by an alpha that may be almost 0
        return (self.weight * (output.float() - self.target) ** 2).mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Process:
    """How pictures are noised and what the network predicts; it has no randomness of its own.

    schedule      t -> (alpha, sigma)
    prediction    what the network outputs
    network_time  t -> the number that the network receives as its timestep
    times         uniform numbers in [0, 1) -> training timesteps
    weight        (prediction, alpha, sigma) -> weight of the squared error of the output

    Raises UserError where the prediction cannot be undone at t = 1.
    """

    schedule: Schedule
    prediction: Prediction
    network_time: Callable[[Tensor], Tensor] = scaled
    times: Callable[[Tensor], Tensor] = uniform_timesteps
    weight: Callable[[Prediction, Tensor, Tensor], Tensor] = unweighted

    def __post_init__(self) -> None:
        # t = 1 stands for all timesteps: alpha, the only divisor that can vanish, is smallest there
        alpha, sigma = self.schedule(torch.ones((), dtype=torch.float64))
        if not self.prediction.gain(alpha, sigma).isfinite():
            raise UserError(
                f"{type(self.prediction).__name__} prediction cannot be used with a schedule that ends at "
                f"alpha = {alpha.item():g}, where eps does not determine the picture: take V, X0 or Flow"
            )

    def loss(
        self, net: Network, x0: Float[Tensor, "b c h w"], context: object, *, noise: Tensor, uniform: Tensor
    ) -> Float[Tensor, " b"]:
        """Weighted squared error of each sample at its timestep, see `noised` and `Noised.error`."""
        noised = self.noised(x0, noise=noise, uniform=uniform)
        return noised.error(net(noised.x, noised.time, context))

    def noised(
        self, x0: Float[Tensor, "b c h w"], *, noise: Float[Tensor, "b c h w"], uniform: Float[Tensor, " b"]
    ) -> Noised:
        """The samples at their timesteps.

        `uniform` holds numbers in [0, 1) that `times` maps to timesteps: pass fixed ones to measure the loss
        at fixed timesteps. They stay on the CPU: a device computes in float64 slowly or not at all.
        """
        x0, noise = x0.float(), noise.float()  # targets and errors in float32, also under autocast
        t = self.times(uniform.double())  # float64, so that table entries reach the network as whole numbers
        numbers = torch.stack([self.network_time(t), *self.schedule(t)]).float()
        network_time, alpha, sigma = send(numbers, x0.device)  # one copy
        alpha, sigma = per_sample(alpha, x0), per_sample(sigma, x0)
        return Noised(
            x=alpha * x0 + sigma * noise,
            time=network_time,
            target=self.prediction.target(x0, noise, alpha, sigma),
            weight=self.weight(self.prediction, alpha, sigma),
        )

    def at_given_timesteps(self) -> "Process":
        """The same process with timesteps that are given, as `uniform` of its `loss`, and not weighted.

        Its loss compares trainings that choose or weight timesteps differently.
        """
        return replace(self, times=lambda given: given, weight=unweighted)

    def denoiser(self, net: Network, context: object) -> Denoiser:
        """The estimate of x0 from the network's prediction.

        The network sees float32 (under autocast, its dtype), whatever the dtype of x; x0 comes back in
        the dtype of x. A network with `project_context` projects the context here, once for all steps.
        Arguments by name, such as `early=1.4` of a DiT, are passed on to the network.
        """
        # not required: any callable of (x, t, context) is a network
        if (project := getattr(net, "project_context", None)) is not None:
            context = project(context)

        def denoise(x: State, t: Time, **asked: object) -> State:
            """x0 as the network estimates it, at one timestep for the whole batch."""
            alpha, sigma = self.schedule(t)
            # a sampler's x is float64, for which a network would take twice the time and memory
            network_time = self.network_time(t).to(x.device, torch.float32).expand(len(x))
            output = net(x.float(), network_time, context, **asked)
            return self.prediction.x0(output.to(x.dtype), x, alpha, sigma)

        return denoise


def per_sample(values: Float[Tensor, " b"], like: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *ones"]:
    """(b,) -> (b, 1, 1, 1): one number a sample, ready to multiply `like`."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))
