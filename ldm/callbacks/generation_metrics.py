"""Metrics of generated pictures, and of reconstructions, while a network trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from ldm import UserError
from ldm.codec import to_float, to_uint8
from ldm.evaluation.feature_pass import FeaturePass, Observers, Ranks, generate_with, parts_of
from ldm.evaluation.protocol import CaptionSet
from ldm.evaluation.published import PUBLISHED, read_published, reference_lines
from ldm.evaluation.reference_set import FeatureCache, ReferenceSet
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.picture_metric import PictureMetric, score
from ldm.metrics.reconstruction import Reconstruction

TIMEOUT = 60.0  # seconds that a rank waits for the others
BATCH = 32  # pictures that are reconstructed at once
LABEL = "_few"  # ends the name of a number that has too few pictures to be compared with others'


class GenerationMetrics(Callback):
    """At validations, generates pictures of some captions with the EMA weights and logs `val/<result>`.

    Each rank generates its share, and all log the same numbers, so that early stopping (with strict=False,
    as there is no number before the first measurement) and checkpoints can monitor them. Captions and seeds
    are the same each time. The reference set is measured once. A resumed training measures at the same steps
    as one that was never stopped. If a rank fails or runs out of memory, all print a warning and the training
    continues.

    Args:
        extractors: feature networks by name.
        metrics: metrics of these features, by name.
        split: whose captions are used.
        captions: how many.
        samples: pictures per caption.
        few: those metrics that may have fewer pictures than they want (2,048 for a Frechet distance); they
            are logged as `val/<result>_few`, without the literature's numbers.
        batch_size: pictures generated at once; halved after running out of memory.
        every: steps between two measurements, taken at the first validation from there on; 1 is each.
        cache: folder for the features of the reference set; null keeps none.
        published: yaml with the literature's numbers, which are logged beside ours as constant lines
            `literature/<result>/<system>`; null takes the rows that come with the code.

    Raises UserError for an option out of range, or fewer captions than a metric wants that isn't in `few`.
    """

    def __init__(  # ten parameters: each is a key that a yaml sets
        self,
        *,
        extractors: Mapping[str, FeatureExtractor],
        metrics: Mapping[str, PictureMetric],
        split: str = "train",
        captions: int = 64,
        samples: int = 1,
        few: Sequence[str] = (),
        batch_size: int = 32,
        every: int = 1,
        cache: str | None = None,
        published: str | None = None,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise UserError(f"{every=} and {batch_size=} must be at least 1")
        self.observers = Observers(pictures=extractors)
        self.metrics = dict(metrics)
        self.captions = CaptionSet(
            name="training", split=split, captions=captions, samples=samples, metrics=tuple(metrics), few=few
        )
        self.captions.too_few(metrics, generated=captions * samples, real=None)  # before the training starts
        self.batch_size, self.every = batch_size, every
        self.cache = cache
        self.published = read_published(PUBLISHED if published is None else Path(published))
        self.ranks = Ranks()
        self.reference: ReferenceSet | None = None
        self._last = -every  # step of the latest measurement

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Moves the feature networks to the training's device."""
        self.ranks = Ranks.joined(timeout=TIMEOUT)
        for network in self.observers.pictures.values():
            if isinstance(network, nn.Module):
                network.to(trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        """The step of the latest measurement."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._last = state_dict["last"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures and logs, if a measurement is due; a failure is a warning."""
        if trainer.sanity_checking or 0 < trainer.global_step - self._last < self.every:
            return
        self._last = trainer.global_step
        try:
            numbers = self.measure(trainer, pl_module)
        except Exception as error:  # whatever it is, a training of days is worth more than its metrics
            then = "the training continues"
            if isinstance(error, torch.OutOfMemoryError):
                self.batch_size = max(1, self.batch_size // 2)
                torch.cuda.empty_cache()
                then = f"the next time generates {self.batch_size} at once"
            step, cause = trainer.global_step, f"{type(error).__name__}: {error}"
            return rank_zero_warn(f"samples were not measured at step {step} ({cause}); {then}")
        for name, value in numbers.items():
            pl_module.log(f"val/{name}", value)  # equal on all ranks, so nothing is reduced
            for system, line in reference_lines(self.published, name).items():
                pl_module.log(f"literature/{name}/{system}", line)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The numbers by the names under which they are logged, the same on every rank.

        Raises UserError where the reference set is smaller than a metric wants that isn't in `few`.
        """
        reference = self._reference_set(trainer)
        captions = reference.captions(self.captions, seed=0)
        generated = len(captions) * self.captions.samples
        few = self.captions.too_few(self.metrics, generated=generated, real=reference.count)
        options = {"batch_size": self.batch_size, "ranks": self.ranks}
        look = FeaturePass(observers=self.observers, folder=reference.folder, **options)
        requests = self.captions.requests(captions, seed_base=0)
        seen, _ = look(generate_with(pl_module.generator()), requests, wanted=self.observers.names)
        scores = score(self.metrics, real=reference.observed(), generated=parts_of(seen))
        return {
            f"{name}{LABEL}" if key in few else name: value
            for key, numbers in scores.items()
            for name, value in numbers.items()
        }

    def _reference_set(self, trainer: Trainer) -> ReferenceSet:
        """The real pictures; their features are kept, since they never change."""
        if self.reference is None:
            pictures = trainer.datamodule.pictures
            splits = {each.split: each for each in (pictures.train, pictures.val)}
            cache = FeatureCache.at(self.cache, root=str(pictures.train.index.root))
            options = {"cache": cache, "ranks": self.ranks, "progress": False}
            self.reference = ReferenceSet(splits, observers=self.observers, **options)
            self.reference.tell_splits(self.metrics.values())
        return self.reference


class RoundTrip(Callback):
    """Logs `val/rfd_<features>`, the Frechet distance of held-out pictures to reconstructions by the EMA.

    The features are the extractor's first ones. Of fewer pictures than such a distance wants it is logged as
    `val/rfd_<features>_few`. Every rank measures all pictures: no number depends on how many ranks there are.
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
