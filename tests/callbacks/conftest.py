"""A clock that a training alone moves."""

from collections.abc import Callable

import pytest
from pytorch_lightning import Callback

from ldm.callbacks import pace, remaining


class Clock(Callback):
    """A time that only batches and validations take, in seconds each."""

    def __init__(self, step: float, validation: float) -> None:
        self.now, self.step, self.validation = 0.0, step, validation

    def monotonic(self):
        return self.now

    def on_train_batch_start(self, *_):
        self.now += self.step

    def on_validation_epoch_start(self, *_):
        self.now += self.validation / 2

    def on_validation_end(self, *_):  # as sampling does, after the callbacks before this one
        self.now += self.validation / 2


@pytest.fixture
def clock(monkeypatch) -> Callable[..., Clock]:
    """`clock(step=.., validation=..)`: the clock of the callbacks; it must be among the callbacks."""

    def start(*, step: float, validation: float) -> Clock:
        made = Clock(step, validation)
        for module in (pace, remaining):
            monkeypatch.setattr(module, "time", made)
        return made

    return start
