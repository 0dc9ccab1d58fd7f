"""What a training stage offers beside a LightningModule's hooks: for `ldm.train`, dry runs and callbacks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ldm.data.stream import PictureBatch
from ldm.generators.generator import Generator
from ldm.tokenizers import Tokenizer

ENDLESS = "a " * 1000  # longer than any context: the most that a caption can take


class Stage(Protocol):
    """A LightningModule that `ldm.train` can train.

    Attributes:
        net: the network that is trained; averages follow it, and its parameters are counted.
        averaged: its average, set by `callbacks.ema`; None until then.
        tokenizer: what reads the captions, so that those that are cut are reported; None if none are read.
    """

    net: nn.Module
    averaged: nn.Module | None

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    def example_batch(self, count: int, *, size: int) -> Mapping[str, Any]:
        """A batch of random data in the shapes of the training's, on pictures of `size` pixels a side."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """The networks that the stage uses and doesn't train, by name."""
        ...

    def generator(self) -> Generator | None:
        """The system as it would generate pictures now; None of a stage that generates none."""
        ...

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: Any) -> Path:
        """Writes the bundle of the training.

        Every rank must ask for it, for each may hold a share of the network; the first one writes.
        """
        ...


def example_pictures(count: int, *, size: int) -> PictureBatch:
    """Random pictures with captions as long as can be."""
    numbers = torch.arange(count)
    image = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    return PictureBatch(image=image, captions=[ENDLESS] * count, position=numbers, index=numbers)
