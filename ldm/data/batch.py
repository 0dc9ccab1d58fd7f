"""What travels from a loader to a stage."""

from typing import TypedDict

from torch import Tensor


class PictureBatch(TypedDict):
    """Pictures, each with one of its captions."""

    image: Tensor  # uint8, b 3 h w
    text: list[str]  # b captions, one chosen per picture
    position: Tensor  # int64, b: place in the stream of samples, the key of every random draw
    index: Tensor  # int64, b: the picture's number in its split


class LatentBatch(TypedDict):
    """Posterior moments of pictures, in the codec's scaled units, with the states of one caption each."""

    mean: Tensor  # float32, b c h w
    std: Tensor  # float32, b c h w
    context: Tensor  # float32, b n d
    position: Tensor  # int64, b
    index: Tensor  # int64, b
