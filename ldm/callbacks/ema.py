"""Exponential moving average of the trained network."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer


class EMA(Callback):
    """Keeps `stage.averaged`, a frozen copy of `stage.net` whose weights follow it slowly.

    The copy is never swapped with the network, so whatever is saved under the network's name is what was
    trained. The decay warms up as min(decay, (1 + k) / (10 + k)) after k updates.

    Args:
        decay: of the average, in [0, 1).
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"{decay=} must lie in [0, 1)")
        self.decay = decay
        self.updates = 0
        self._loaded: Mapping[str, Any] | None = None
        self._last_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        averaged = deepcopy(pl_module.net).eval().requires_grad_(False)
        if self._loaded is not None:
            averaged.load_state_dict(self._loaded)
            self._loaded = None
        # past nn.Module's own __setattr__, which would make it a submodule, saved and switched with the stage
        object.__setattr__(pl_module, "averaged", averaged)
        self._stage = pl_module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # known only now: a resumed run restores it after on_fit_start

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # an accumulating batch
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = pl_module.averaged, pl_module.net
        torch._foreach_lerp_(list(ours.parameters()), list(theirs.parameters()), 1 - decay)
        for mine, yours in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(yours)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "net": self._stage.averaged.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._loaded = state_dict["updates"], state_dict["net"]
