"""How good the drawings are, measured while the network trains."""

from collections.abc import Iterator, Mapping

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.evaluation.gallery import Gallery, Observers
from ldm.evaluation.generation import generate, requests_for
from ldm.evaluation.measure import score
from ldm.evaluation.protocol import CaptionSet
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.picture_metric import Observed, PictureMetric


class GenerationMetrics(Callback):
    """At each validation, draws one picture for each of some captions and logs measures as `val/<name>`.

    The captions and seeds are the same each time. Real pictures are looked at once, at the first validation.

    Args:
        extractor: the feature network that looks at pictures.
        metrics: measures that read its features, by name.
        split: whose captions are drawn.
        captions: how many.
        batch_size: pictures drawn at once.
    """

    def __init__(
        self,
        *,
        extractor: FeatureExtractor,
        metrics: Mapping[str, PictureMetric],
        split: str = "train",
        captions: int = 64,
        batch_size: int = 32,
    ) -> None:
        self.observers = Observers(pictures={extractor.identity.name: extractor}, texts={})
        self.metrics = dict(metrics)
        self.captions = CaptionSet(name="training", split=split, captions=captions, metrics=tuple(metrics))
        self.batch_size = batch_size
        self.gallery: Gallery | None = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self.gallery is None:
            pictures = trainer.datamodule.pictures
            splits = {pictures.train.split: pictures.train, pictures.val.split: pictures.val}
            self.gallery = Gallery(splits, observers=self.observers, progress=False)
        generated = self._generated(pl_module, self.gallery)
        for name, value in score(self.metrics, real=self.gallery.observed(), generated=generated).items():
            pl_module.log(f"val/{name}", value, sync_dist=True)

    def _generated(self, pl_module: LightningModule, gallery: Gallery) -> Iterator[Observed]:
        requests = requests_for(gallery.captions(self.captions, seed=0), samples=1, seed_base=0)
        batches = generate(
            pl_module.pipeline(), requests, batch_size=self.batch_size, title="measuring", progress=False
        )
        for batch, images in batches:
            yield Observed(
                features=self.observers.look(images),
                rows=torch.tensor([request.row for request in batch]),
                captions=torch.tensor([request.caption for request in batch]),
            )
