"""What an autoencoder or a tokenizer of pictures costs a generator, measured while it trains."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from ldm.codec import to_float, to_uint8
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.reconstruction import Reconstruction

BATCH = 32  # pictures at once
LABEL = "_few"  # ends the name of a distance of too few pictures to be compared with others'


class RoundTrip(Callback):
    """Logs `val/rfd_<features>`, the Frechet distance of held-out pictures to reconstructions by the EMA.

    Of fewer pictures than such a distance wants it is logged as `val/rfd_<features>_few`. Every rank measures
    all pictures, so that no number depends on how many there are.

    Args:
        extractor: network whose first kind of features the sets are compared in.
    """

    def __init__(self, *, extractor: FeatureExtractor) -> None:
        self.extractor = extractor

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs."""
        if trainer.sanity_checking:
            return
        net, device = pl_module.averaged or pl_module.net, pl_module.device
        if isinstance(self.extractor, nn.Module):
            self.extractor.to(device)
        judge = Reconstruction(extractor=self.extractor).to(device)
        judge.distributed_available_fn = lambda: False
        pictures = trainer.datamodule.val
        for batch in pictures.batches(BATCH, numbers=range(len(pictures))):
            originals = batch.to(device)
            judge.update(to_uint8(net.reconstruct(to_float(originals))), originals)
        few = LABEL if len(pictures) < FrechetDistance.minimum_images else ""
        for name, value in judge.compute().items():
            if name.startswith("rf"):
                pl_module.log(f"val/{name}{few}", float(value))
