"""Exponential moving average of the trained network."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer

from ldm import UserError
from ldm.callbacks.weight_copies import Follower, Following


class EMA(Following):
    """Keeps `stage.averaged`, a frozen copy of `stage.net` whose weights follow it slowly.

    The copy is never swapped with the network, so whatever is saved under the network's name is what was
    trained. The decay warms up as min(decay, (1 + k) / (10 + k)) after k updates. Of a network that is dealt
    out over the ranks each rank averages its share; the average is saved whole.

    Args:
        decay: of the average, in [0, 1).
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"{decay=} must lie in [0, 1)")
        super().__init__()
        self.decay = decay
        self.updates = 0
        self.followers = (Follower(),)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # past nn.Module's own __setattr__, which would make it a submodule, saved and switched with the stage
        object.__setattr__(pl_module, "averaged", self.followers[0].net)

    def move(self, trainer: Trainer) -> None:
        self.followers[0].follow(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "net": self.followers[0].state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.followers[0].load(state_dict["net"])
