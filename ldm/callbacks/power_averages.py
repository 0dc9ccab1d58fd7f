"""Averages from which those of any other EMA length are made after the training (post-hoc EMA)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from ldm import UserError
from ldm.callbacks.ema import Follower, Following
from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of
from ldm.io.writing import sweep


class PowerAverages(Following):
    """Keeps averages of `stage.net` that weigh step s as s**gamma, and writes them now and then.

    Karras et al. 2024, eq. 1; `checkpoints/power_average.py` combines what was written into an average of any
    length between these and somewhat beyond. Two lengths are enough; each costs memory for the network once
    more. A resumed run writes the same bytes.

    Args:
        lengths: standard deviation of each average's profile, as a share of the training; none switches the
            callback off.
        every: steps between two writings; the last step is written, too.
        folder: where they go.
    """

    def __init__(self, *, lengths: Sequence[float], every: int, folder: str) -> None:
        if every < 1:
            raise UserError(f"callbacks.averages.{every=} must be at least 1 step")
        super().__init__()
        self.every, self.averages = every, Averages(Path(folder))
        self.by_length = {length: Follower() for length in lengths}
        self.exponents = {length: exponent_of(length) for length in lengths}
        self.followers = [*self.by_length.values()]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if trainer.is_global_zero:
            sweep(self.averages.folder, below=self.averages.folder.parent)

    def move(self, trainer: Trainer) -> None:
        step = trainer.global_step
        for length, follower in self.by_length.items():
            follower.follow(1 - decay(step, self.exponents[length]))
            if step % self.every == 0 or step == trainer.max_steps:
                parameters = follower.parameters()  # of all ranks
                if trainer.is_global_zero:
                    self.averages.write(Profile(step, length), parameters)

    def state_dict(self) -> dict[str, Any]:
        return {f"{length:g}": follower.state() for length, follower in self.by_length.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        own = {f"{length:g}": follower for length, follower in self.by_length.items()}
        if own.keys() != state_dict.keys():
            raise UserError(
                f"callbacks.averages.lengths={sorted(own)} are not those of the checkpoint, "
                f"{sorted(state_dict)}: averages can't begin in the middle of a training"
            )
        for length, follower in own.items():
            follower.load(state_dict[length])
