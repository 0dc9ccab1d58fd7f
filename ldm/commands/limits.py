"""Ranges of the options that are typed most, so that a slip is refused before torch is imported.

What an option is for checks its range as well, wherever the value comes from: this table only refuses it some
seconds earlier. Its keys stand in full, as one name has other limits in another place.
"""

import math
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf

from ldm import UserError
from ldm.randomness.seeds import SEED, is_seed

Limit = tuple[Callable[[Any], bool], str]  # a rule, and what it asks for

FINITE: Limit = (math.isfinite, "must be a finite number")
COUNT: Limit = (lambda x: x >= 1, "must be at least 1")
SHARE: Limit = (lambda x: 0 <= x <= 1, "must lie in [0, 1]")
PIXELS: Limit = (lambda x: x >= 8, "must be at least 8 pixels")
PATIENCE: Limit = (lambda x: 1 <= x < math.inf, "must be a finite number of seconds, at least 1")
STEPS: Limit = (
    lambda x: isinstance(x, int) and 1 <= x <= 10**7,
    "must lie between 1 and 10000000 and be a whole number",
)

LIMITS: dict[str, Limit] = {
    "optimizer.lr": (lambda x: 0 < x < math.inf, "must be a finite number above 0"),
    "callbacks.ema.decay": (lambda x: 0 <= x < 1, "must lie in [0, 1)"),
    "model.stage.caption_drop": SHARE,
    "model.stage.decay.warmup": (lambda x: x >= 0, "must be at least 0"),
    "data.num_workers": (lambda x: x >= 0, "must be at least 0"),
    **dict.fromkeys(("steps", "sampler.steps", "trainer.max_steps"), STEPS),
    **dict.fromkeys(("batch_size", "data.batch_size", "num_pictures"), COUNT),
    **dict.fromkeys(("scale", "guidance.scale"), FINITE),
    **dict.fromkeys(("size", "data.size", "model.stage.size", "protocol.size"), PIXELS),
    **dict.fromkeys(("patience", "logger.patience"), PATIENCE),
    **dict.fromkeys(
        ("seed", "data.seed", "model.stage.seed", "protocol.seed_base", "protocol.caption_seed"),
        (is_seed, SEED),
    ),
}


def check_limit(key: str, value: Any) -> None:
    """Refuses a value outside the limit of its key; null, nodes and interpolations pass.

    Raises:
        UserError: the key, the value and the limit.
    """
    rule, sentence = LIMITS.get(key, (None, ""))
    if rule is None or value is None or OmegaConf.is_config(value):
        return
    if isinstance(value, str) and "${" in value:
        return
    if not isinstance(value, int | float) or not rule(value):
        raise UserError(f"{key}={value} {sentence}")
