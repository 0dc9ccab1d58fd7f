"""How good the drawings are, measured while the network trains."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_warn
from torch import nn

from ldm import UserError
from ldm.evaluation.captions import CaptionSet, requests_for
from ldm.evaluation.feature_cache import FeatureCache
from ldm.evaluation.feature_pass import FeaturePass, Observers, drawn_by, parts_of
from ldm.evaluation.pictures import Split
from ldm.evaluation.published import PUBLISHED, read_published, reference_lines
from ldm.evaluation.ranks import Ranks
from ldm.evaluation.reference_set import ReferenceSet
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.picture_metric import PictureMetric, score

TIMEOUT = 60.0  # seconds that a process waits for the others
LABEL = "_few"  # ends the name of a number that is of too few pictures to be set beside others'


class GenerationMetrics(Callback):
    """At validations, draws pictures of some captions with the averaged weights and logs `val/<result>`.

    All processes draw and look, each at its share, and all log the same numbers, so that early stopping and
    checkpoints can monitor them, early stopping with strict=False: before the first measurement there is
    nothing. Captions and seeds are the same each time. Real pictures are looked at once.

    A failure of one process, or want of memory, ends in a warning on all of them, and the training goes on; a
    process that has gone is waited for no longer than a minute. A resumed training measures at the steps at
    which it would have measured.

    Args:
        extractors: the feature networks that look at pictures, by name; they go to the training's device.
        metrics: measures that read their features, by name.
        split: whose captions are drawn.
        captions: how many.
        samples: pictures a caption.
        few: the metrics among those that want 2,048 pictures which may be taken of fewer: they are logged as
            `val/<result>_few`, without the literature's lines.
        batch_size: pictures drawn at once; halved after running out of memory.
        every: steps between two measurements: they are taken at the first validation from there on. 1 takes
            them at each.
        cache: folder in which features of real pictures are kept; null keeps none.
        published: yaml with the literature's rows; their numbers are logged beside ours each time, as
            `literature/<result>/<system>`, which makes straight lines. Null takes the rows that come with
            the code.

    Raises:
        UserError: an option out of range, or fewer captions than a metric wants that isn't in `few`.
    """

    def __init__(
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
        self.captions.too_few(metrics, generated=captions * samples, real=None)  # refused before the training
        self.batch_size, self.every = batch_size, every
        self.cache = cache
        self.published = read_published(PUBLISHED if published is None else Path(published))
        self.ranks = Ranks()
        self.gallery: ReferenceSet | None = None
        self._last = -every  # step of the latest measurement

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.ranks = Ranks.joined(timeout=TIMEOUT)
        for network in self.observers.pictures.values():
            if isinstance(network, nn.Module):
                network.to(trainer.strategy.root_device)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last = state_dict["last"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or 0 < trainer.global_step - self._last < self.every:
            return
        self._last = trainer.global_step
        try:
            numbers = self.measure(trainer, pl_module)
        except torch.OutOfMemoryError as error:
            self.batch_size = max(1, self.batch_size // 2)
            torch.cuda.empty_cache()
            return self._warn(trainer, error, f"the next time draws {self.batch_size} at once")
        except Exception as error:  # whatever it is, a training of days is worth more than its measures
            return self._warn(trainer, error, "the training goes on")
        for name, value in numbers.items():
            pl_module.log(f"val/{name}", value)  # equal in all processes, so nothing is exchanged
            for system, line in reference_lines(self.published, name).items():
                pl_module.log(f"literature/{name}/{system}", line)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """The numbers by the names under which they are logged, the same in every process.

        Raises:
            UserError: fewer real pictures than a metric wants that isn't in `few`.
        """
        gallery = self._gallery(trainer)
        captions = gallery.captions(self.captions, seed=0)
        drawn = len(captions) * self.captions.samples
        few = self.captions.too_few(self.metrics, generated=drawn, real=gallery.count)
        look = FeaturePass(
            observers=self.observers,
            batch_size=self.batch_size,
            ranks=self.ranks,
            folder=gallery.folder,
            progress=False,
        )
        requests = requests_for(captions, samples=self.captions.samples, seed_base=0)
        seen = look(drawn_by(pl_module.generator()), requests, wanted=self.observers.names)
        scores = score(self.metrics, real=gallery.observed(), generated=parts_of(seen.observed))
        return {
            f"{name}{LABEL}" if key in few else name: value
            for key, numbers in scores.items()
            for name, value in numbers.items()
        }

    def _gallery(self, trainer: Trainer) -> ReferenceSet:
        if self.gallery is None:
            pictures = trainer.datamodule.pictures
            splits = {each.split: Split(each) for each in (pictures.train, pictures.val)}
            cache = FeatureCache.at(self.cache, root=str(pictures.train.index.root))
            self.gallery = ReferenceSet(
                splits, observers=self.observers, cache=cache, ranks=self.ranks, progress=False
            )
            self.gallery.tell_splits(self.metrics.values())
        return self.gallery

    def _warn(self, trainer: Trainer, error: Exception, then: str) -> None:
        cause = f"{type(error).__name__}: {error}"
        rank_zero_warn(f"drawings were not measured at step {trainer.global_step} ({cause}); {then}")
