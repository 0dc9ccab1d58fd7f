"""Averages from which those of any other length are made after the training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.callbacks.following import Follower
from ldm.checkpoints.durable import sweep
from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of


class PowerAverages(Callback):
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
            raise ValueError(f"callbacks.averages.{every=} must be at least 1 step")
        self.exponents = {length: exponent_of(length) for length in lengths}
        self.every, self.averages = every, Averages(Path(folder))
        self._followers = {length: Follower() for length in lengths}
        self._last_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for follower in self._followers.values():
            follower.prepare(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for follower in self._followers.values():
            follower.begin(trainer, pl_module)
        if trainer.is_global_zero:
            sweep(self.averages.folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # known only now: a resumed run restores it after on_fit_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:  # an accumulating batch
            return
        self._last_step = step
        for length, follower in self._followers.items():
            follower.follow(1 - decay(step, self.exponents[length]))
            if step % self.every == 0 or step == trainer.max_steps:
                parameters = follower.parameters()
                if trainer.is_global_zero:
                    self.averages.write(Profile(step, length), parameters)

    def state_dict(self) -> dict[str, Any]:
        return {f"{length:g}": follower.state() for length, follower in self._followers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        lengths = {f"{length:g}" for length in self._followers}
        if lengths != state_dict.keys():
            raise ValueError(
                f"callbacks.averages.lengths={sorted(lengths)} are not those of the state, "
                f"{sorted(state_dict)}: averages can't begin in the middle of a training"
            )
        for length, follower in self._followers.items():
            follower.load(state_dict[f"{length:g}"])
