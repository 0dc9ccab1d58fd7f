"""Stage of a tokenizer of pictures: codes that a system on tokens will learn (van den Oord et al. 2017)."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Int
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from ldm.checkpoints.bundle import Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.data.stream import PictureBatch
from ldm.models.picture_tokenizers import PictureTokenizer
from ldm.models.quantizers import Draw, Quantized, Statistics
from ldm.randomness import keyed
from ldm.randomness.uniforms import gumbel, uniforms
from ldm.stages.reconstruction import Reconstructed, ReconstructionStage, absolute_error
from ldm.stages.stage import Weights

COLLAPSED = "Such a training seldom recovers: start it again with a smaller optimizer.lr"
PixelError = Callable[[Tensor, Tensor], Tensor]  # (what the network renders, images) -> scalar


class Terms(NamedTuple):
    """Parts of the tokenizer's loss, means over the batch."""

    total: Tensor
    pixel: Tensor
    quantizer: Tensor  # weighted, as the quantizers return it, summed over their levels
    perceptual: Tensor


class TokenizerStage(ReconstructionStage):
    """Trains a tokenizer of pictures by its pixel error and the terms of its quantizers.

    Moving averages of a codebook are updated once per optimizer step, from the pictures of all ranks and
    accumulated batches; they are buffers, so that checkpoints have them and the EMA copies them.

    Args:
        error: of what the network renders against the pictures, mean over values.
        others: see `ReconstructionStage`.
    """

    def __init__(self, *, net: PictureTokenizer, error: PixelError = absolute_error, **others: Any) -> None:
        super().__init__(net=net, **others)
        self.error = error
        self._batches: list[list[Statistics]] = []  # of the current step: each batch's, by level
        # every rank validates on all pictures
        meters = [CodeUsage(num_codes=num_codes, sync_on_compute=False) for _, num_codes in net.levels]
        self.usage = nn.ModuleList(meters)

    def trained(self, images: Tensor, positions: Tensor) -> Reconstructed:
        """The reconstruction of a batch; its statistics wait for the optimizer step."""
        maps, quantized = self.net(images, Draw(self.global_step, partial(self._gumbel, positions)))
        self._batches.append(self._statistics(quantized, positions))
        return self._reconstructed(images, maps, quantized)

    def validated(self, images: Tensor) -> Reconstructed:
        """The reconstruction from the likeliest codes, which are counted."""
        maps, quantized = self.best(images)
        for usage, each in zip(self.usage, quantized, strict=True):
            usage.update(each.codes)
        return self._reconstructed(images, maps, quantized)

    def _reconstructed(self, images: Tensor, maps: Tensor, quantized: tuple[Quantized, ...]) -> Reconstructed:
        decoded, pixel = self.net.pictures(maps), self.error(maps, images)
        loss = torch.stack([each.loss for each in quantized]).sum()
        perceptual = self.perceived(decoded, images)
        total = pixel + loss + self.perceptual_weight * perceptual
        terms = Terms(total=total, pixel=pixel, quantizer=loss, perceptual=perceptual)
        return Reconstructed(decoded, images, terms)

    def _gumbel(self, positions: Tensor, like: Tensor) -> Tensor:
        return gumbel(uniforms(like.shape[1:], **self._key(positions, "gumbel"), device=like.device)).to(like)

    def _statistics(self, quantized: tuple[Quantized, ...], positions: Tensor) -> list[Statistics]:
        """The statistics of each level whose quantizer keeps moving averages."""
        found = []
        for level, each in enumerate(quantized):
            if each.inputs is not None:
                key = self._key(positions, f"restart {level}")
                scores = keyed.normal(each.codes.shape[1:], **key, device=each.codes.device)
                found.append(self.net.quantizers()[level].statistics(each, scores))
        return found

    def _key(self, positions: Tensor, stream: str) -> dict[str, Any]:
        return {"seed": self.seed, "positions": positions, "stream": stream}

    def on_train_batch_start(self, batch: PictureBatch, batch_idx: int) -> None:
        """Forgets the statistics of a step that was interrupted."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._batches = []

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Updates the codebooks, before the EMA copies them and a checkpoint has them."""
        batches, self._batches = self._batches, []  # the discriminator's step, too, comes here: with none
        keeping = [each for each in self.net.quantizers() if hasattr(each, "update")]
        for quantizer, parts in zip(keeping, zip(*batches, strict=True), strict=False):
            counts, sums, candidates, scores = map(torch.stack, zip(*parts, strict=True))
            quantizer.update(
                Statistics(
                    self._of_all_ranks(counts).sum(dim=0),
                    self._of_all_ranks(sums).sum(dim=0),
                    self._of_all_ranks(candidates).flatten(0, 1),
                    self._of_all_ranks(scores).flatten(),
                )
            )

    def on_validation_epoch_end(self) -> None:
        """Logs how many codes are in use, and their entropy in bits; by level where there are several."""
        for number, usage in enumerate(self.usage):
            of = f"_{number}" if len(self.usage) > 1 else ""
            values = usage.compute()
            self.log_dict({f"val/codes_{name}{of}": value for name, value in values.items()})
            if values["used"] == 1:
                level = f" of level {number}" if of else ""
                rank_zero_warn(
                    f"step {self.global_step}: all held-out pictures have one code{level}. {COLLAPSED}"
                )
            usage.reset()

    def write(self, path: Path, state: Weights, *, config: Mapping[str, Any], data: object) -> None:
        """The tokenizer, its weights by EMA and its codebook as it is."""
        write_bundle(
            path,
            parts={"image_tokenizer": Part(spec=config["image_tokenizer"], state=state)},
            settings={"size": self.net.size, "origin": origin(config)},
            # float32: rounded features would have other codes here and there, and codebooks are small
            dtype=torch.float32,
        )


class CodeUsage(Metric):
    """Codes in use and the entropy of their distribution, over all places of all pictures.

    Args:
        num_codes: size of the codebook.
        options: of `torchmetrics.Metric`.
    """

    full_state_update: ClassVar[bool] = False
    counts: Tensor

    def __init__(self, *, num_codes: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Int[Tensor, "*n"]) -> None:
        """Adds the codes of a batch."""
        # a comparison at a size, not bincount, whose result on a GPU waits for the largest code
        places = codes.flatten()
        self.counts.index_add_(0, places, torch.ones_like(places))

    def compute(self) -> dict[str, Tensor]:
        """`used`, how many codes occur, and `entropy` of their shares in bits: at most log2 of all codes."""
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(shares, shares).sum() / math.log(2)
        return {"used": (self.counts > 0).sum().double(), "entropy": entropy}
