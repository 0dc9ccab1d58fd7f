"""Which state of Stable Diffusion's text encoder a denoiser reads: the last layer's, or the one before."""

import re
from collections.abc import Mapping
from typing import Any

from ldm import UserError
from ldm.exchange.dialects.clip import COUNTERS, openclip_text_rules, text_prefix, text_rules
from ldm.exchange.weights import Fit, Weights

STATES = ("last", "penultimate")
OPENCLIP_BESIDE = ("text_projection", "logit_scale", "attn_mask")


def text_fit(
    spec: Mapping[str, Any], weights: Weights, *, state: str | None, prefix: str = "", openclip: bool = False
) -> Fit:
    """A text encoder and the file that holds it, in transformers' names or in open_clip's.

    The penultimate state is that of a network without its last layer: the final norm follows either
    (Stable Diffusion 2.x is trained so).

    Args:
        state: last or penultimate; None is what the names mean: open_clip's are of Stable Diffusion 2.x.
        prefix: of the encoder's tensors among others in the file.
        openclip: whether the names are open_clip's.

    Raises:
        UserError: another state, or a network that has no layer to leave out.
    """
    state = state or ("penultimate" if openclip else "last")
    if state not in STATES:
        raise UserError(f"text_state={state} is unknown: write {' or '.join(STATES)}")
    layers = spec["num_layers"]
    if state == "penultimate" and layers < 2:
        raise UserError("text_state=penultimate wants a text encoder of two layers or more: write last")
    own = [name.removeprefix(prefix) for name in weights.outline if name.startswith(prefix)]
    names = text_prefix(own)
    blocks = "transformer.resblocks" if openclip else f"{names}encoder.layers"
    kept = layers - (state == "penultimate")
    cut = openclip and _count(own, blocks) == kept  # some files of Stable Diffusion 2.x lack the unread layer
    skipped = [f"{blocks}.{kept}.*"] if kept < layers and not cut else []
    projection = spec.get("embed_dim") is not None
    return Fit(
        spec={**spec, "num_layers": kept},
        weights=weights,
        rules=openclip_text_rules() if openclip else text_rules(prefix=names, projection=projection),
        prefix=prefix,
        drop=[*(OPENCLIP_BESIDE if openclip else COUNTERS), *skipped],
    )


def _count(names: list[str], blocks: str) -> int:
    """The layers that a file has."""
    numbers = [re.match(rf"{re.escape(blocks)}\.(\d+)\.", name) for name in names]
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)
