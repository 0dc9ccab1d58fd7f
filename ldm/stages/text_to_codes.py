"""The base class of stages that train codes conditioned on text states: VQ-Diffusion's and VQ-VAE-2's."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.codec import Codec, PictureCodes
from ldm.data.codes import CodeBatch
from ldm.distributed.ranks import is_first, whole_state
from ldm.generators.code_bundle import write_parts
from ldm.generators.text_to_codes import Texts, TextToCodes
from ldm.stages.stage import ENDLESS, ConditionedStage
from ldm.tokenizers import Tokenizer


class TextToCodesStage(ConditionedStage):
    """Trains a network on cached codes and text states.

    Args:
        net: the network.
        codes: the frozen tokenizer of pictures.
        codec: frozen; its text encoder reads the captions.
        sampling: options of the generator while training, and by default from the bundle.
        others: see `ConditionedStage`.

    Raises UserError for text states of another width than the network's, options out of range, or parts that
    do not go together.
    """

    opener: str  # the callable that opens a bundle's generator

    def __init__(
        self, *, net: nn.Module, codes: PictureCodes, codec: Codec, sampling: Mapping[str, Any], **others: Any
    ) -> None:
        super().__init__(net=net, **others)
        self.codes, self.codec = codes, codec  # under the names at which the data module looks for them
        self.sampling, self.texts = dict(sampling), Texts(codec.text_encoder, codec.tokenizer)

    @abstractmethod
    def generator(self) -> TextToCodes:
        """The EMA of the network as it would be sampled now."""

    def on_fit_start(self) -> None:
        """Moves the frozen networks, which Lightning does not know of."""
        self.codes.to(self.device)
        self.codec.to(self.device)

    def _log_nats(self, nats: Tensor, pictures: Tensor) -> None:
        """Logs a validation's mean over pictures of their nats per code."""
        self.log("val/loss", nats.mean(), batch_size=len(nats), sync_dist=True, prog_bar=True)
        self._log_fixed(nats, pictures)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the captions."""
        return self.codec.tokenizer

    def example_batch(self, count: int, *, size: int) -> CodeBatch:
        """Random codes and text states: the frozen networks are not used, as in a training on stored ones."""
        text, numbers = self.codec.text_encoder, torch.arange(count)
        levels = [torch.randint(num_codes, (count, grid**2)) for grid, num_codes in self.codes.net.levels]
        return CodeBatch(
            codes=torch.cat(levels, dim=1),
            captions=[ENDLESS] * count,
            context=torch.randn(count, text.context_length, text.width),
            position=numbers,
            index=numbers,
        )

    def frozen(self) -> dict[str, nn.Module]:
        """The tokenizer of pictures and the text encoder."""
        return {"image tokenizer": self.codes.net, "text encoder": self.codec.text_encoder}

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: object) -> Path:
        """The EMA of the network, the frozen parts unchanged, and how to sample; see `Stage`."""
        state = whole_state(self.best)  # on all ranks: it gathers shards
        if not is_first():
            return path
        return write_parts(
            path,
            Part(spec=config["backbone"], state=state),
            config=config,
            codes=self.codes,
            settings={"generator": {"_target_": self.opener, **self.sampling}, **self.settings(config)},
        )

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Further entries of the bundle's config."""
        return {}


def check_width(option: str, wanted: int | None, codec: Codec) -> None:
    """Refuses a network for text states of another width than the codec's."""
    if wanted != codec.text_encoder.width:
        raise UserError(
            f"{option}={wanted}, but codec.text_encoder makes text states of {codec.text_encoder.width}:"
            " set it to that, or take another codec.text_encoder"
        )
