"""Stage of CLIP: a text and an image encoder that learn to find each other's partner in the batch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import to_float
from ldm.data.stream import PictureBatch
from ldm.distributed.ranks import is_first
from ldm.metrics.retrieval import Retrieval
from ldm.models.clip import CLIP, ClipOutput, contrastive_loss
from ldm.randomness.seeds import check_seed
from ldm.stages.optim import Decay, OptimizerFactory, StepMean, check_optimizer, configure
from ldm.stages.stage import example_pictures
from ldm.tokenizers import Tokenizer

Augment = Callable[..., Tensor]  # (images, *, seed, positions) -> images


class ContrastiveStage(LightningModule):
    """Trains CLIP with its symmetric contrastive loss over the batches of all ranks together.

    Args:
        net: both encoders.
        tokenizer: of the text encoder's vocabulary size and context length.
        optimizer, decay: what makes the optimizer, and its learning-rate factor by step.
        augment: random change of the training pictures, keyed by position.
        seed: key of the augmentation.

    Raises:
        UserError: a tokenizer that is not the text encoder's.
    """

    def __init__(
        self,
        *,
        net: CLIP,
        tokenizer: Tokenizer,
        optimizer: OptimizerFactory,
        decay: Decay,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        expected = (net.text.vocab_size, net.text.context_length)
        given = (tokenizer.vocab_size, tokenizer.context_length)
        if given != expected:
            raise UserError(
                f"the tokenizer's vocabulary and context length {given} are not the text encoder's "
                f"{expected}: choose the tokenizer that the text encoder's yaml names"
            )
        self.net = net
        self.averaged: CLIP | None = None
        self.tokenizer = tokenizer
        check_optimizer(optimizer, decay)
        check_seed(seed, "model.stage.seed")
        self.optimizer, self.decay = optimizer, decay
        self.augment, self.seed = augment, seed
        self._step_mean = StepMean()
        self.retrieval = Retrieval()
        self.retrieval.sync_on_compute = False  # every rank validates on all pictures

    def configure_optimizers(self) -> Any:
        optimizer, schedule = configure(self.net, self.optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        self.net.clamp_logit_scale()  # before the step: a resumed run clamps what was saved, too
        pictures = batch["image"]
        if self.augment is not None:
            pictures = self.augment(pictures, seed=self.seed, positions=batch["position"])
        output = self._compare(self.net, pictures, batch["captions"])
        # each rank's pairs are the others' wrong answers too: the loss does not depend on the number of ranks
        images, texts = (
            self._from_all_ranks(output.image_features),
            self._from_all_ranks(output.text_features),
        )
        keys = self._from_all_ranks(batch["index"])
        loss = contrastive_loss(images, texts, output.scale, keys=keys)
        self.log("train/loss", self._step_mean(loss, self, batch_idx), prog_bar=True)
        self.log("train/logit_scale", output.scale)
        return loss

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        output = self._compare(self.averaged or self.net, batch["image"], batch["captions"])
        self.retrieval.update(output.image_features, output.text_features, batch["index"])
        loss = contrastive_loss(*output, keys=batch["index"])
        self.log("val/loss", loss, batch_size=len(batch["captions"]), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        recalls = {f"val/{name}": value for name, value in self.retrieval.compute().items()}
        self.log_dict(recalls, prog_bar=True, sync_dist=True)
        self.retrieval.reset()

    def example_batch(self, count: int, *, size: int) -> PictureBatch:
        """Random pictures with captions."""
        return example_pictures(count, size=size)

    def frozen(self) -> dict[str, nn.Module]:
        """None: both encoders are trained."""
        return {}

    def generator(self) -> None:
        """None: this stage generates no pictures."""
        return None

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: object) -> Path:
        """Both encoders, averaged if an average was kept, and the tokenizer; the first rank writes."""
        if not is_first():
            return path
        net = self.averaged or self.net
        return write_bundle(
            path,
            parts={
                "text_encoder": Part(spec=config["text_encoder"], state=net.text.state_dict()),
                "image_encoder": Part(spec=config["image_encoder"], state=net.image.state_dict()),
            },
            tokenizer=self.tokenizer,
            settings={"origin": origin(config)},
            dtype=torch.float16,
        )

    def _compare(self, net: CLIP, pictures: Tensor, texts: list[str]) -> ClipOutput:
        tokens = self.tokenizer.encode(texts)
        ends = (tokens == self.tokenizer.eot_id).int().argmax(dim=1)
        tokens = tokens[:, : int(ends.max()) + 1]  # what comes after a text's end cannot reach its feature
        return net(to_float(pictures), tokens.to(self.device))

    def _from_all_ranks(self, rows: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return rows
        return self.all_gather(rows, sync_grads=rows.is_floating_point()).flatten(0, 1)
