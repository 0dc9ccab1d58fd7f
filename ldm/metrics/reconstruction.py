"""How much of a picture survives an autoencoder, on 8-bit pictures, as a user would see them."""

from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

PEAK = 255.0
AT_ONCE = 16  # 64 pictures of 64 px in float64 took a gigabyte
MIN_SIDE = 11  # of SSIM's Gaussian window, Wang et al. 2004


def psnr(images: UInt8[Tensor, "b c h w"], originals: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio of each picture in dB, float64.

    A picture without any difference counts as one 8-bit step wrong in one value, so that means are finite.
    """
    errors = (images.double() - originals.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(PEAK**2 / errors.clamp(min=1 / originals[0].numel()))


def ssim(images: UInt8[Tensor, "b c h w"], originals: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Structural similarity of each picture (Wang et al. 2004: Gaussian window of 11, sigma 1.5).

    Raises:
        ValueError: pictures smaller than the window.
    """
    if min(images.shape[-2:]) < MIN_SIDE:
        raise ValueError(f"SSIM needs pictures of at least {MIN_SIDE} px, got {tuple(images.shape[-2:])}")
    parts = zip(images.float().split(AT_ONCE), originals.float().split(AT_ONCE), strict=True)
    return torch.cat([_ssim(*pair) for pair in parts])


def _ssim(images: Float[Tensor, "b c h w"], originals: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    scores = structural_similarity_index_measure(images, originals, data_range=PEAK, reduction="none")
    return scores.reshape(len(images))


class Reconstruction(Metric):
    """Mean over pictures of PSNR (dB) and SSIM between reconstructions and originals."""

    full_state_update: ClassVar[bool] = False
    is_differentiable: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("psnr_total", "ssim_total", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, images: UInt8[Tensor, "b c h w"], originals: UInt8[Tensor, "b c h w"]) -> None:
        self.psnr_total = self.psnr_total + psnr(images, originals).sum()
        self.ssim_total = self.ssim_total + ssim(images, originals).double().sum()
        self.count = self.count + len(images)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise ValueError("PSNR and SSIM need at least one picture")
        return {"psnr": self.psnr_total / self.count, "ssim": self.ssim_total / self.count}
