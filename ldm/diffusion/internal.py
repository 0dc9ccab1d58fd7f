"""Internal guidance: a transformer is guided away from its own early head, in one pass."""

from functools import partial
from typing import Any, cast

from ldm.diffusion import Denoiser, Guidance, Pair
from ldm.diffusion.guidance import check_scale, conditional


def internal(cond: Denoiser, pair: Pair, *, scale: float, within: Guidance = conditional) -> Denoiser:
    """E + scale (P - E) of the early head's x0, E, and the last one's, P (arXiv 2512.24176).

    It is autoguidance with a weak network that costs no second pass: the network mixes its own predictions,
    which at a given (x, t) is mixing x0. Errors that both heads make, the early one more, are reduced.

    Args:
        scale: 1 is none.
        within: a guidance that is applied to what is mixed, such as `cfg`, whose pair is then mixed, too.

    Raises UserError for a scale that is no finite number.
    """
    check_scale(scale)
    if scale == 1:
        return within(cond, pair)
    mixed = {"early": scale}
    return within(partial(cast(Any, cond), **mixed), partial(cast(Any, pair), **mixed))
