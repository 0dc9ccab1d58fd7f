"""The one loop that turns captions into pictures, whatever makes them: a pipeline, or a folder's files."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from ldm import UserError
from ldm.evaluation.captions import Caption

Pipeline = Callable[[list[str], list[int]], Tensor]  # prompts, seeds -> uint8 b 3 h w


class Request(NamedTuple):
    """One picture to make.

    Attributes:
        row: number of the right real picture.
        caption: number of the caption in its set.
        name: of its file in a folder of pictures, without the end: `<set>/<key of the right picture>`; the
            second picture of a key is `<set>/<key>_1`, the third `<set>/<key>_2`.
    """

    prompt: str
    seed: int
    row: int
    caption: int
    name: str


Draw = Callable[[Sequence[Request]], Tensor]  # requests -> uint8 b 3 h w


def requests_for(
    captions: Sequence[Caption], *, samples: int, seed_base: int, folder: str = ""
) -> list[Request]:
    """`samples` pictures a caption, caption by caption; no two share a seed or a name.

    Args:
        folder: what the names begin with, the set's name.
    """
    requests: list[Request] = []
    seen: Counter[str] = Counter()
    for number, caption in enumerate(captions):
        for sample in range(samples):
            earlier = seen[caption.key]
            seen[caption.key] += 1
            requests.append(
                Request(
                    prompt=caption.text,
                    seed=seed_base + number * samples + sample,
                    row=caption.row,
                    caption=number,
                    name=f"{folder}/{caption.key}_{earlier}" if earlier else f"{folder}/{caption.key}",
                )
            )
    return requests


def drawn_by(pipeline: Pipeline) -> Draw:
    """Pictures that a pipeline makes from the prompts and seeds."""
    return lambda requests: pipeline([one.prompt for one in requests], [one.seed for one in requests])


def generate(
    draw: Draw, requests: Sequence[Request], *, batch_size: int, title: str, progress: bool = True
) -> Iterator[tuple[list[Request], UInt8[Tensor, "b 3 h w"]]]:
    """Pictures in batches, on the CPU, with a progress bar; never more than a batch in memory.

    A picture depends on its request, and on the size of its batch only by rounding.

    Raises:
        UserError: something other than one 8-bit picture a request.
    """
    with tqdm(total=len(requests), desc=title, unit="picture", disable=not progress) as bar:
        for start in range(0, len(requests), batch_size):
            batch = list(requests[start : start + batch_size])
            images = draw(batch)
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(batch), 3):
                raise UserError(
                    f"the pipeline gave {images.dtype} {tuple(images.shape)} for {len(batch)} prompts, "
                    f"expected torch.uint8 ({len(batch)}, 3, height, width)"
                )
            yield batch, images.cpu()
            bar.update(len(batch))
