"""Pictures that CLIP finds for prompts while it trains: fixed prompts, one sheet per validation."""

from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.callbacks.sheets import show_sheet
from ldm.codec import to_float

BATCH = 64  # pictures encoded at once


class RetrievedPictures(Callback):
    """At each validation a sheet, one row per prompt, the nearest picture first: `<folder>/step=<k>.png`.

    Args:
        prompts: one row each.
        count: pictures in a row.
        gallery: how many pictures of the training set are searched, the first ones.
        folder: where the sheets go.
    """

    def __init__(self, *, prompts: list[str], count: int, gallery: int, folder: str) -> None:
        self.prompts, self.count, self.gallery, self.folder = prompts, count, gallery, Path(folder)

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Searches with the averaged weights where there are any; the first rank alone."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        pictures = trainer.datamodule.train
        numbers = range(min(self.gallery, len(pictures)))
        net, device = pl_module.averaged or pl_module.net, pl_module.device
        batches = pictures.batches(BATCH, numbers=numbers)
        features = torch.cat([net.encode_images(to_float(batch.to(device))) for batch in batches])
        queries = net.encode_texts(pl_module.tokenizer.encode(self.prompts).to(device))
        columns = min(self.count, len(numbers))
        nearest = (queries @ features.T).topk(columns).indices.flatten().tolist()
        images = [pictures.image(number) for number in nearest]
        show_sheet(trainer, images, name="retrieved", folder=self.folder, columns=columns)
