"""Guidance: a denoiser from a conditional and a worse one; the config binds the options.

A guidance receives two callables: `cond(x, t)`, the conditional x0 alone, and `pair(x, t)`, the
conditional and the unconditional x0 together, for which the network is called once with twice the rows.

Mixing x0 is the same as mixing eps, v or velocities: at a given (x, t) each is a linear function of x0.
"""

import math

import torch
from jaxtyping import Bool
from torch import Tensor

from ldm import UserError
from ldm.diffusion import Denoiser, Guidance, Pair, State, Time


def batched(both: Denoiser) -> Pair:
    """The pair from one denoiser, whose first rows are cond and whose other rows are uncond.

    One call of twice the rows reads the network's weights once.
    """

    def pair(x: State, t: Time, **asked: float) -> tuple[State, State]:
        """The conditional and the unconditional x0 of the same x; for `asked` see `Process.denoiser`."""
        cond, uncond = both(torch.cat([x, x]), t, **asked).chunk(2)  # in the order of their contexts
        return cond, uncond

    return pair


def apart(cond: Denoiser, uncond: Denoiser) -> Pair:
    """The pair from two networks, which can't share a call."""
    return lambda x, t, **asked: (cond(x, t, **asked), uncond(x, t))


def conditional(cond: Denoiser, pair: Pair) -> Denoiser:
    """No guidance: the conditional denoiser alone."""
    return cond


def check_scale(scale: float) -> None:
    """Raises UserError for a guidance scale that is no finite number."""
    if not math.isfinite(scale):
        raise UserError(f"guidance {scale=} must be a finite number")


def cfg(cond: Denoiser, pair: Pair, *, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, Eq. 6, scale = 1 + w); at scale 1 only cond is called."""
    check_scale(scale)  # else NaN is noticed only when pictures are decoded
    if scale == 1:
        return cond  # not only equal: half the network's work

    def denoise(x: State, t: Time) -> State:
        """x0 extrapolated from the unconditional one through the conditional one."""
        unguided, unconditional = pair(x, t)
        # lerp extrapolates beyond weight 1: unconditional + scale * (unguided - unconditional)
        return torch.lerp(unconditional, unguided, scale)

    return denoise


def cfg_rescale(cond: Denoiser, pair: Pair, *, scale: float, phi: float = 0.7) -> Denoiser:
    """cfg with each picture's contrast brought back to the conditional one's (Lin et al. 2023, Eq. 15-16).

    phi is the share of the correction, 0 to 1. The standard deviation is taken of x0, over one picture.
    """
    check_scale(scale)
    if scale == 1:
        return cond

    def denoise(x: State, t: Time) -> State:
        """The guided x0 with its contrast corrected by the share phi."""
        unguided, unconditional = pair(x, t)
        guided = torch.lerp(unconditional, unguided, scale)
        axes = tuple(range(1, x.ndim))  # all of a picture: contrast is no matter of one channel
        restored = unguided.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return guided * (1 - phi + phi * restored)

    return denoise


def autoguidance(strong: Denoiser, pair: Pair, *, scale: float) -> Denoiser:
    """Away from a bad version of the network (Karras et al. 2024, Eq. 3); at scale 1 only strong is called.

    It is cfg with a weak network, which reads the prompt too, in the place of the unconditional one: errors
    that both make, the weak one more, are reduced, and the diversity that cfg loses stays.
    """
    return cfg(strong, pair, scale=scale)


def interval(cond: Denoiser, pair: Pair, *, within: Guidance, low: float, high: float) -> Denoiser:
    """The guidance `within` at low < t <= high, and cond alone elsewhere (Kynkäänniemi et al. 2024).

    Outside the interval cond alone is called, which halves the cost there.

    Raises UserError for an empty interval.
    """
    if not low < high:
        raise UserError(f"guidance interval from {low} to {high} is empty: low must be below high")
    guided = within(cond, pair)  # once: a guidance with momentum keeps its average between calls

    def denoise(x: State, t: Time) -> State:
        """The guided x0 inside the interval, the conditional one outside."""
        return guided(x, t) if low < t <= high else cond(x, t)

    return denoise


def apg(
    cond: Denoiser,
    pair: Pair,
    *,
    scale: float,
    parallel: float = 0.0,
    momentum: float = -0.5,
    threshold: float | None = None,
) -> Denoiser:
    """Adaptive projected guidance: cfg without its over-saturation (Sadat et al. 2024, Alg. 1).

    The change cond - uncond is averaged over the calls, cut in length, and loses what points along cond,
    which mostly raises contrast. Without all three it is cfg. The average makes the denoiser stateful: make
    a new one for each sampling.

    Args:
        parallel: eta, the share kept of what points along cond.
        momentum: beta, the weight of the changes before; below 0 it pushes away from them.
        threshold: r, the largest norm of the change of one picture; None: any.

    Raises UserError for a threshold that is not above 0.
    """
    if threshold is not None and not threshold > 0:
        raise UserError(f"{threshold=} of guidance must be above 0; None cuts nothing")
    check_scale(scale)
    if scale == 1:
        return cond
    average: State | None = None

    def denoise(x: State, t: Time) -> State:
        """The conditional x0 plus the projected change; updates the average."""
        nonlocal average
        unguided, unconditional = pair(x, t)
        change = unguided - unconditional
        average = change if average is None else change + momentum * average
        axes = tuple(range(1, x.ndim))  # norms and products of one picture, whatever its batch
        update = average
        if threshold is not None:
            length = torch.linalg.vector_norm(average, dim=axes, keepdim=True)
            update = average * (threshold / length).clamp(max=1)  # shorter changes stay as they are
        # the clamp: an x0 of zeros has no direction
        direction = unguided / torch.linalg.vector_norm(unguided, dim=axes, keepdim=True).clamp(min=1e-12)
        along = (update * direction).sum(dim=axes, keepdim=True) * direction
        # scale - 1: with nothing cut or projected this is cfg, which counts from the unconditional x0
        return unguided + (scale - 1) * (update - (1 - parallel) * along)

    return denoise


def keeping(denoise: Denoiser, known: State, redrawn: Bool[Tensor, "b *shape"]) -> Denoiser:
    """A denoiser whose x0 is `known` outside of `redrawn`: blended latent diffusion (Avrahami et al. 2023).

    Outside, the paper replaces x after each step by the known latent, noised to the step's timestep. A
    sampler that starts from `noised(known, ...)` and receives the true x0 gets the same result: its updates
    are linear in x and in the x0 so far, so x stays alpha * known + sigma * noise, with the picture's own
    noise or what the sampler adds. So no sampler needs to know of masks, and multistep samplers never meet
    the jump that a replaced x would put into their history.
    """

    def blended(x: State, t: Time) -> State:
        """The denoiser's x0 where it is redrawn, the known one elsewhere."""
        return torch.where(redrawn, denoise(x, t), known)

    return blended
