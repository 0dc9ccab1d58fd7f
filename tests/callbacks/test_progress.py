"""Facts about the remaining time that the progress bar names."""

import pytest
from pytorch_lightning import Callback

from ldm.callbacks.pace import ProgressBar
from ldm.callbacks.remaining import Remaining


class Descriptions(Callback):
    """What stands before the bar after each step."""

    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, *_):
        self.found.append(trainer.progress_bar_callback.train_progress_bar.desc.strip(": "))


def test_the_bar_names_the_time_that_a_whole_series_still_takes(
    diffusion_stage, latents, make_trainer, clock
):
    seen, time = Descriptions(), clock(step=3.0, validation=30.0)
    callbacks = [ProgressBar("tiny"), time, Remaining(of="demo", after=4.0, every=2), seen]
    options = {"enable_progress_bar": True, "val_check_interval": 2, "limit_val_batches": 1}
    make_trainer(4, *callbacks, **options).fit(diffusion_stage(), datamodule=latents)
    # 2 of 4 + 16 steps done, 3 s each; then 4, among them a validation
    assert seen.found == [
        "tiny",
        "tiny, demo: 54 s left",
        "tiny, demo: 54 s left",
        "tiny, demo: 2 min 48 s left",
    ]


@pytest.mark.parametrize("after", [0.0, 2.5])
def test_without_a_bar_nothing_is_named(diffusion_stage, latents, make_trainer, after):
    trainer = make_trainer(2, Remaining(of="demo", after=after, every=1))
    trainer.fit(diffusion_stage(), datamodule=latents)
    assert trainer.global_step == 2
