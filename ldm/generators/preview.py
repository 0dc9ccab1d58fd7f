"""Cheap previews of latents: a linear map to pixels, fitted to an autoencoder by least squares."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.codec import Codec, to_float, to_uint8
from ldm.generators.generator import Generator
from ldm.generators.latent_diffusion import TextToImage

PICTURES, SHAPES = 64, 6  # pictures that the map is fitted to, and shapes in each of them
SIDE = 8  # latents of a side of these pictures
REACH = 3  # a latent's pixels depend on so many latents in each direction, with itself in the middle
RIDGE = 1e-3  # added to the diagonal of the normal equations, where scaled latents have a variance of about 1


@dataclass(frozen=True, kw_only=True)
class LinearPreview:
    """Scaled latents to pictures: the pixels of a latent are an affine function of it and its neighbours.

    One convolution, where a decoder has dozens: edges are soft, colours and composition are right.
    """

    weight: Float[Tensor, "pixels c reach reach"]
    bias: Float[Tensor, " pixels"]
    factor: int

    def __call__(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 H W"]:
        """The pictures, of the decoder's size."""
        pixels = F.conv2d(latents.float(), self.weight, self.bias, padding=REACH // 2)
        return to_uint8(F.pixel_shuffle(pixels, self.factor))


@torch.no_grad()
def fit_preview(codec: Codec) -> LinearPreview:
    """The map that is nearest to a codec's decoder on the latents of coloured shapes, in the mean square.

    No training picture is needed, and no seed: the shapes come from a Sobol sequence.
    """
    factor = codec.autoencoder.factor
    shapes = coloured_shapes(SIDE * factor).split(codec.chunk)
    latents = torch.cat([codec.encode_images(part).mean for part in shapes]).float()
    decoded = to_float(codec.decode(latents))
    around = F.unfold(latents, REACH, padding=REACH // 2).transpose(1, 2).flatten(0, 1).double()
    x = F.pad(around, (0, 1), value=1.0)  # and the constant
    y = F.pixel_unshuffle(decoded, factor).flatten(2).transpose(1, 2).flatten(0, 1).double()
    gram = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    solved = torch.linalg.solve(gram, x.T @ y / len(x)).T.float()
    weight = solved[:, :-1].unflatten(1, (latents.shape[1], REACH, REACH)).contiguous()
    return LinearPreview(weight=weight, bias=solved[:, -1].contiguous(), factor=factor)


def coloured_shapes(side: int) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures of ellipses and boxes of all colours and sizes, on white or on a colour."""
    draws = torch.quasirandom.SobolEngine(7 * SHAPES + 3).draw(PICTURES)
    shapes, grounds = draws[:, 3:].view(PICTURES, SHAPES, 7), draws[:, :3]
    grounds = torch.where(torch.arange(PICTURES)[:, None] % 2 == 0, torch.ones(3), grounds)
    line = torch.linspace(-1, 1, side)
    y, x = line.view(1, side, 1), line.view(1, 1, side)
    pictures = grounds[:, :, None, None].expand(-1, -1, side, side)
    for number, shape in enumerate(shapes.unbind(dim=1)):
        left, top, width, height = shape[:, :4, None, None].unbind(dim=1)
        across = ((x - 2 * left + 1) / (0.6 * width + 0.05)).abs()
        down = ((y - 2 * top + 1) / (0.6 * height + 0.05)).abs()
        inside = torch.maximum(across, down) < 1 if number % 2 else across**2 + down**2 < 1
        pictures = torch.where(inside[:, None], shape[:, 4:, None, None], pictures)
    return to_uint8(2 * pictures - 1)


def watchable(generator: Generator) -> Generator:
    """The generator, with cheap previews for who watches if it is latent diffusion; any other as it is."""
    if not isinstance(generator, TextToImage) or generator.preview is not None:
        return generator
    return replace(generator, preview=fit_preview(generator.codec))
