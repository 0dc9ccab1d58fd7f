"""The progress bar: one line for the whole training, with its remaining time."""

from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Lightning's bar under the experiment's name; a training is one pass over one endless stream.

    Args:
        name: what stands before the bar.
    """

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5)
        self.experiment = name

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        bar, done = self.train_progress_bar, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar.set_description(self.experiment)
        bar.reset(total=self.total_train_batches)
        bar.initial = bar.n = bar.last_print_n = done  # a resumed run's rate counts its own steps only

    def on_train_epoch_start(self, *_: Any) -> None:
        """Lightning's bar starts here, which a run resumed within its one epoch never passes."""

    def init_validation_tqdm(self) -> Tqdm:
        bar = super().init_validation_tqdm()
        bar.disable = True  # a few batches; the numbers appear behind the training bar
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}
