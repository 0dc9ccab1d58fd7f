"""One sheet of pictures per validation: written, sent to the loggers, and its path printed."""

from collections.abc import Sequence
from pathlib import Path

from pytorch_lightning import Trainer
from torch import Tensor
from tqdm import tqdm

from ldm.io.pictures import save_sheet
from ldm.loggers.background import background_loggers


def show_sheet(trainer: Trainer, images: Sequence[Tensor], *, name: str, folder: Path, columns: int) -> None:
    """Writes `<folder>/step=<k>.png` with all pictures, row by row; for the first rank alone."""
    path = folder / f"step={trainer.global_step:06d}.png"
    save_sheet(images, path, columns=columns, below=folder.parent)
    for logger in background_loggers(trainer.loggers):
        logger.log_image(name, path, step=trainer.global_step)
    tqdm.write(f"{name}: {path}")  # above the progress bar, which a plain print would tear
