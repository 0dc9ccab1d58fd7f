"""What the autoencoder makes of held-out pictures while it trains."""

from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.callbacks.sheets import show_sheet
from ldm.codec import to_float, to_uint8


class Reconstructions(Callback):
    """At each validation, held-out pictures above their reconstructions: `<folder>/step=<k>.png`.

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
        images = [*originals, *decoded]
        show_sheet(trainer, images, name="reconstructions", folder=self.folder, columns=len(originals))
