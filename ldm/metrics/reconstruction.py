"""How much of a picture survives an autoencoder, on 8-bit pictures, as a user would see them."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure

from ldm import UserError
from ldm.metrics.features import FeatureExtractor, PictureDistance
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.picture_metric import Observed

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

    Raises UserError: pictures smaller than the window.
    """
    if min(images.shape[-2:]) < MIN_SIDE:
        raise UserError(f"SSIM needs pictures of at least {MIN_SIDE} px, got {tuple(images.shape[-2:])}")
    parts = zip(images.float().split(AT_ONCE), originals.float().split(AT_ONCE), strict=True)
    settings = {"data_range": PEAK, "reduction": "none"}
    # variances are small differences of large means: in bfloat16 a validation's autocast lowers the number
    with torch.autocast(images.device.type, enabled=False):
        values = [structural_similarity_index_measure(*pair, **settings).reshape(-1) for pair in parts]
    return torch.cat(values)


class Reconstruction(Metric):
    """Means over pictures of PSNR (dB), SSIM and perceptual distances between reconstructions and originals.

    With an extractor also the Frechet distance between both sets, `rfid` for the Inception of 2015 and
    `rfd_<features>` for others: what an autoencoder alone costs a generator.

    Args:
        distances: of pairs of pictures in [-1, 1], by the name of their result, say `lpips`.
        extractor: network whose first kind of features the sets are compared in.

    Attributes:
        readings: how to read each number, by its name.
        directions: whether a higher number is better, by its name.
    """

    full_state_update: ClassVar[bool] = False

    def __init__(
        self,
        *,
        distances: Mapping[str, PictureDistance] | None = None,
        extractor: FeatureExtractor | None = None,
    ) -> None:
        super().__init__()
        self.distances, self.extractor = dict(distances or {}), extractor
        trip = "distance of the round trip to the same pictures"
        self.readings = {
            "psnr": "dB, autoencoder's round trip of held-out pictures, higher is better",
            "ssim": "structural similarity of the same, 1 is equal",
            **dict.fromkeys(self.distances, f"perceptual {trip} in the maps of a network, lower is better"),
        }
        for name in (*self.readings, "count"):
            self.add_state(f"sum_{name}", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        if extractor is not None:
            features, dims = next(iter(extractor.dims.items()))
            self.frechet = FrechetDistance(features=features, dims=dims)
            self.readings[f"r{self.frechet.name}"] = f"Frechet {trip} in these features, lower is better"
        self.directions = {name: name in ("psnr", "ssim") for name in self.readings}

    def update(self, images: UInt8[Tensor, "b c h w"], originals: UInt8[Tensor, "b c h w"]) -> None:
        """Adds a batch of reconstructions with their originals."""
        pair = images / 127.5 - 1, originals / 127.5 - 1
        found = {"psnr": psnr(images, originals), "ssim": ssim(images, originals)}
        found |= {name: distance(*pair) for name, distance in self.distances.items()}
        found["count"] = torch.ones(len(images))
        for name, values in found.items():
            total = getattr(self, f"sum_{name}")
            setattr(self, f"sum_{name}", total + values.detach().double().sum().to(total.device))
        if self.extractor is not None:
            rows = torch.arange(len(images))
            for pictures, real in ((originals, True), (images, False)):
                features = {name: values.cpu() for name, values in self.extractor(pictures).items()}
                self.frechet.update(Observed(features, rows=rows, captions=rows), real=real)

    def compute(self) -> dict[str, Tensor]:
        """All means, and the Frechet distance if there is an extractor."""
        if self.sum_count == 0:
            raise UserError("PSNR and SSIM need at least one picture")
        names = ("psnr", "ssim", *self.distances)
        numbers = {name: getattr(self, f"sum_{name}") / self.sum_count for name in names}
        if self.extractor is not None:
            numbers |= {f"r{name}": value for name, value in self.frechet.compute().items()}
        return numbers

    def reset(self) -> None:
        """Forgets all pictures."""
        super().reset()
        if self.extractor is not None:
            self.frechet.reset()
