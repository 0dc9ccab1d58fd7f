"""The stage of VQ-VAE-2's priors (Razavi et al. 2019): coarse codes from text, fine codes from these."""

import math
from typing import Any

import torch
from torch import Tensor

from ldm.codec import Codec, PictureCodes
from ldm.data.codes import CodeBatch
from ldm.generators.text_to_codes import TextToCodes, TwoLevel, check_levels
from ldm.models.two_level import TwoLevelPriors
from ldm.stages.text_to_codes import TextToCodesStage, check_width


class TwoLevelStage(TextToCodesStage):
    """Trains both priors together; neither's gradient reaches the other.

    Args:
        net, codes, codec, others: see `TextToCodesStage`; a dropped caption is the empty one.

    Raises UserError as `TextToCodesStage` does.
    """

    opener = "ldm.generators.text_to_codes.open_two_level"

    def __init__(self, *, net: TwoLevelPriors, codes: PictureCodes, codec: Codec, **others: Any) -> None:
        super().__init__(net=net, codes=codes, codec=codec, **others)
        check_levels(net, codes)
        check_width("backbone.top.context_dim", net.top.context_dim, codec)
        self._null: Tensor | None = None  # text states of the empty prompt, on the device
        self.generator()  # refuses wrong options of sampling before the training

    def on_fit_start(self) -> None:
        """Moves the frozen networks, and encodes the empty prompt."""
        super().on_fit_start()
        self._null = self.texts.states([""])

    def loss(self, batch: CodeBatch) -> Tensor:
        """The mean over all codes of both levels of a batch."""
        assert self._null is not None
        context = torch.where(self._dropped(batch["position"]), self._null, batch["context"])
        return torch.cat(self.nats(self.net, context, batch["codes"]), dim=1).mean()

    def nats(self, net: Any, context: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The exact negative log-likelihood of every code, top and bottom."""
        top, bottom = codes.split([level.grid**2 for level in self.codes.net.levels], dim=1)
        return net.nats(context, top, bottom)

    def validation_step(self, batch: CodeBatch, batch_idx: int) -> None:
        """Exact likelihoods of the EMA: nats per code, and bits per code of each level."""
        levels = self.nats(self.best, batch["context"], batch["codes"])
        self._log_nats(torch.cat(levels, dim=1).mean(dim=1), batch["index"])
        for name, nats in zip(("top", "bottom"), levels, strict=True):
            bits = nats.mean() / math.log(2)
            self.log(f"val/bits_{name}", bits, batch_size=len(nats), sync_dist=True, prog_bar=True)

    def generator(self) -> TextToCodes:
        """The EMA of the network as it would be sampled now."""
        return TwoLevel.made({"net": self.best, "codes": self.codes, "texts": self.texts}, self.sampling)
