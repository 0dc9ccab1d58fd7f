"""What the autoencoder makes of held-out pictures while it trains."""

from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.checkpoints.pictures import save_sheet
from ldm.codec import to_float, to_uint8
from ldm.loggers.background import background_loggers


class Reconstructions(Callback):
    """At each validation, held-out pictures above their reconstructions: `<folder>/step=<k>.png`.

    Loggers that work aside get the sheet too.

    Args:
        count: pictures on the sheet.
        folder: where the sheets go.
    """

    def __init__(self, *, count: int, folder: str) -> None:
        self.count, self.folder = count, Path(folder)

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        pictures = trainer.datamodule.val
        originals = torch.stack([pictures.image(i) for i in range(min(self.count, len(pictures)))])
        net = pl_module.averaged or pl_module.net
        posterior = net.posterior(to_float(originals.to(pl_module.device)))
        decoded = to_uint8(net.decode(posterior.mean)).cpu()
        path = self.folder / f"step={trainer.global_step:06d}.png"
        save_sheet([*originals, *decoded], path, columns=len(originals), below=self.folder.parent)
        for logger in background_loggers(trainer.loggers):
            logger.log_image("reconstructions", path, step=trainer.global_step)
