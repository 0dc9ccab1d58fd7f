"""Exponential moving average of the trained network."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from ldm.distributed import local, whole_state
from ldm.sharding import Sharded


class EMA(Callback):
    """Keeps `stage.averaged`, a frozen copy of `stage.net` whose weights follow it slowly.

    The copy is never swapped with the network, so whatever is saved under the network's name is what was
    trained. The decay warms up as min(decay, (1 + k) / (10 + k)) after k updates. Of a network that is dealt
    out over the ranks each rank averages its share; the average is saved whole.

    Args:
        decay: of the average, in [0, 1).
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"{decay=} must lie in [0, 1)")
        self.decay = decay
        self.updates = 0
        self._loaded: Mapping[str, Any] | None = None
        self._copy: nn.Module | None = None
        self._last_step = 0
        self._stage: LightningModule | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, Sharded):
            self._copy = deepcopy(pl_module.net)  # while it is whole: shards can't be copied

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, Sharded) and self._copy is not None:
            averaged, self._copy = trainer.strategy.deal_out(self._copy), None
        else:
            averaged = deepcopy(pl_module.net)
        # past nn.Module's own __setattr__, which would make it a submodule, saved and switched with the stage
        object.__setattr__(pl_module, "averaged", averaged.eval().requires_grad_(False))
        self._stage = pl_module
        self._restore()

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
        torch._foreach_lerp_(shards(ours), shards(theirs), 1 - decay)
        for mine, yours in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(yours)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        assert self._stage is not None
        return {"updates": self.updates, "net": whole_state(self._stage.averaged)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates, self._loaded = state_dict["updates"], state_dict["net"]
        if self._stage is not None:  # states of shards are read once these are there
            self._restore()

    def _restore(self) -> None:
        """Puts what was loaded into the average, each rank its share."""
        assert self._stage is not None
        if self._loaded is None:
            return
        options = StateDictOptions(full_state_dict=True)
        set_model_state_dict(self._stage.averaged, dict(self._loaded), options=options)
        self._loaded = None


def shards(module: nn.Module) -> list[Tensor]:
    """What this rank holds of a module's parameters."""
    return [local(parameter) for parameter in module.parameters()]
