"""The one loop that turns captions into pictures, for the callback during training and for the command."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.evaluation.protocol import Caption

Pipeline = Callable[[list[str], list[int]], Tensor]  # prompts, seeds -> uint8 b 3 h w


class Request(NamedTuple):
    """One picture to make.

    Attributes:
        row: number of the right real picture.
        caption: number of the caption in its set.
    """

    prompt: str
    seed: int
    row: int
    caption: int


def requests_for(captions: Sequence[Caption], *, samples: int, seed_base: int) -> list[Request]:
    """`samples` pictures a caption, caption by caption; no two share a seed."""
    return [
        Request(
            prompt=caption.text, seed=seed_base + number * samples + sample, row=caption.row, caption=number
        )
        for number, caption in enumerate(captions)
        for sample in range(samples)
    ]


def generate(
    pipeline: Pipeline, requests: Sequence[Request], *, batch_size: int, title: str, progress: bool = True
) -> Iterator[tuple[list[Request], UInt8[Tensor, "b 3 h w"]]]:
    """Pictures in batches, on the CPU, with a progress bar; never more than a batch in memory.

    A picture depends on its prompt and seed alone, so batch size and any division of the requests over ranks
    change nothing.

    Raises:
        ValueError: a pipeline that gives something other than one 8-bit picture a prompt.
    """
    with tqdm(total=len(requests), desc=title, unit="picture", disable=not progress) as bar:
        for start in range(0, len(requests), batch_size):
            batch = list(requests[start : start + batch_size])
            images = pipeline([request.prompt for request in batch], [request.seed for request in batch])
            if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(batch), 3):
                raise ValueError(
                    f"the pipeline gave {images.dtype} {tuple(images.shape)} for {len(batch)} prompts, "
                    f"expected torch.uint8 ({len(batch)}, 3, height, width)"
                )
            yield batch, images.cpu()
            bar.update(len(batch))
