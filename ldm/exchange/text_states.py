"""Which state of Stable Diffusion's text encoder a denoiser reads: the last layer's, or the one before."""

from collections.abc import Mapping
from typing import Any

from ldm.exchange.transformers import COUNTERS, text_prefix, text_rules
from ldm.exchange.weights import Fit, Weights

STATES = ("last", "penultimate")


def text_fit(spec: Mapping[str, Any], weights: Weights, *, state: str, prefix: str = "") -> Fit:
    """A text encoder in transformers' names and the file that holds it.

    The penultimate state is that of a network without its last layer: the final norm follows either
    (Stable Diffusion 2.x is trained so).

    Args:
        state: last or penultimate.
        prefix: of the encoder's tensors among others in the file.

    Raises:
        ValueError: another state, or a network that has no layer to leave out.
    """
    if state not in STATES:
        raise ValueError(f"text_state={state} is unknown: write {' or '.join(STATES)}")
    layers = spec["num_layers"]
    if state == "penultimate" and layers < 2:
        raise ValueError("text_state=penultimate wants a text encoder of two layers or more: write last")
    names = text_prefix(name.removeprefix(prefix) for name in weights.outline)
    skipped = [f"{names}encoder.layers.{layers - 1}.*"] if state == "penultimate" else []
    return Fit(
        spec={**spec, "num_layers": layers - len(skipped)},
        weights=weights,
        rules=text_rules(prefix=names, projection=spec.get("embed_dim") is not None),
        prefix=prefix,
        drop=[*COUNTERS, *skipped],
    )
