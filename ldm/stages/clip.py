"""Stage of CLIP: a text and an image encoder that learn to match pairs (Radford et al. 2021)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError, send
from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import to_float
from ldm.data.stream import PictureBatch
from ldm.metrics.retrieval import Retrieval
from ldm.models.clip import CLIP, ClipOutput, contrastive_loss
from ldm.stages.stage import PictureStage, Weights
from ldm.tokenizers import Tokenizer


class ContrastiveStage(PictureStage):
    """Trains CLIP with its symmetric contrastive loss over the batches of all ranks together.

    Args:
        net: both encoders.
        tokenizer: of the text encoder's vocabulary size and context length.
        others: see `PictureStage`.

    Raises UserError for a tokenizer that is not the text encoder's.
    """

    def __init__(self, *, net: CLIP, tokenizer: Tokenizer, **others: Any) -> None:
        super().__init__(net=net, **others)
        expected = (net.text.vocab_size, net.text.context_length)
        if (given := (tokenizer.vocab_size, tokenizer.context_length)) != expected:
            raise UserError(
                f"the tokenizer's vocabulary and context length {given} are not the text encoder's "
                f"{expected}: choose the tokenizer that the text encoder's yaml names"
            )
        self.tokenizer = tokenizer
        # recall over the whole held-out set, not over a batch, whose size would decide it
        self.retrieval = Retrieval()
        self.retrieval.sync_on_compute = False  # every rank validates on all pictures

    def loss(self, batch: PictureBatch) -> Tensor:
        """The loss over the batches of all ranks."""
        self.net.clamp_logit_scale()  # before the step: a resumed run clamps what was saved, too
        output = self._compare(self.net, self._augmented(batch), batch["captions"])
        # each rank's pairs are negatives of the others': the loss does not depend on the number of ranks
        images, texts = map(self._of_all_ranks, (output.image_features, output.text_features))
        # a picture may come twice, with two of its captions: these are no negatives of each other
        keys = self._of_all_ranks(batch["index"])
        self.log("train/logit_scale", output.scale)
        return contrastive_loss(images, texts, output.scale, keys=keys)

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        """Loss of a batch, and its features for recall over all batches."""
        output = self._compare(self.best, batch["image"], batch["captions"])
        self.retrieval.update(output.image_features, output.text_features, batch["index"])
        loss = contrastive_loss(*output, keys=batch["index"])
        self.log("val/loss", loss, batch_size=len(batch["captions"]), sync_dist=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Logs recall at k over the whole validation set."""
        recalls = {f"val/{name}": value for name, value in self.retrieval.compute().items()}
        self.log_dict(recalls, prog_bar=True, sync_dist=True)
        self.retrieval.reset()

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: object) -> None:
        """Both encoders, as an EMA if one is kept, and the tokenizer."""
        net = self.best
        write_bundle(
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
        return net(to_float(pictures), send(tokens, self.device))
