"""Averages from which those of any other length are made after the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from ldm import UserError
from ldm.callbacks.weight_copies import Follower, Following
from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of
from ldm.io.writing import sweep


class PowerAverages(Following):
    """Keeps averages of `stage.net` whose memory grows with the steps, and writes them out now and then.

    Each weighs step s as s**gamma (Karras et al. 2024, eq. 1); `checkpoints/power_average.py` sums what was
    written up to an average of any length between them and somewhat beyond. Two lengths are enough; each
    costs memory for the network once more. What is written depends on the trained weights alone, so a resumed
    run writes the same bytes.

    Args:
        lengths: of the averages, each the spread of the steps that count as a share of the training; none:
            the callback does nothing.
        every: steps between two writings; the last step is written too.
        folder: where they go.
    """

    def __init__(self, *, lengths: Sequence[float], every: int, folder: str) -> None:
        if every < 1:
            raise UserError(f"callbacks.averages.{every=} must be at least 1 step")
        super().__init__()
        self.every, self.averages = every, Averages(Path(folder))
        self.exponents = {length: exponent_of(length) for length in lengths}
        self.followers = [Follower() for _ in lengths]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if trainer.is_global_zero:
            sweep(self.averages.folder, below=self.averages.folder.parent)

    def move(self, trainer: Trainer) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        for (length, exponent), follower in zip(self.exponents.items(), self.followers, strict=True):
            follower.follow(1 - decay(step, exponent))
            if due:
                self._write(trainer, Profile(step, length), follower)

    def _write(self, trainer: Trainer, profile: Profile, follower: Follower) -> None:
        """All ranks gather the parameters, the first one writes them."""
        parameters = follower.parameters()
        if trainer.is_global_zero:
            self.averages.write(profile, parameters)

    @property
    def _by_length(self) -> dict[str, Follower]:
        return {f"{length:g}": each for length, each in zip(self.exponents, self.followers, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        return {length: follower.state() for length, follower in self._by_length.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._by_length.keys() != state_dict.keys():
            raise UserError(
                f"callbacks.averages.lengths={sorted(self._by_length)} are not those of the state, "
                f"{sorted(state_dict)}: averages can't begin in the middle of a training"
            )
        for length, follower in self._by_length.items():
            follower.load(state_dict[length])
