"""What explains a picture: the words that moved its parts, and the training pictures that it is most like.

The weights of all cross-attentions and steps are brought to one size and averaged (DAAM; Tang et al. 2023,
sec. 3). A picture is compared with the training pictures as it is and mirrored: is it a copy of one?
"""

import base64
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.data.index import FILE_NAME
from ldm.data.shards import PictureDataset
from ldm.generators.generator import Opened
from ldm.io.pictures import encode_sample
from ldm.metrics.features import Pixels
from ldm.metrics.mmap_tables import Table, nearest
from ldm.models.attention import CrossAttention, KeysValues
from ldm.sampling.batches import generate_batch
from ldm.sampling.jobs import Job
from ldm.serve.describing import run_config
from ldm.tokenizers import Tokenizer

SIDE = 32  # of a map
PIXELS = 32  # pixels at which pictures are compared
MOST = 20_000  # training pictures that are searched, the first ones
SHOWN = 6
COPY = 1 / 3  # of the distance to the second one: what is nearer is a copy (Yoon et al. 2023)
SHIPPED = "data/emoji"  # where `python -m data_prep.emoji` writes what the shipped model was trained on
NONE = "This system has no cross-attention from places in the picture to words: there is nothing to show."
THIRDS = (
    ("upper left", "top", "upper right"),
    ("left", "middle", "right"),
    ("lower left", "bottom", "lower right"),
)


@dataclass
class Maps:
    """The sum of the weights that were seen, tokens times places, and how many there were."""

    total: Float[Tensor, "m s s"] | None = None
    seen: int = 0
    length: int = 0  # tokens of the context

    def add(self, weights: Float[Tensor, "n m"]) -> None:
        """Adds the weights of one attention, whose places are a square; others say nothing of places."""
        side = math.isqrt(len(weights))
        if side < 2 or side**2 != len(weights) or self.length not in (0, weights.shape[1]):
            return
        grid = rearrange(weights, "(h w) m -> 1 m h w", h=side)
        sized = F.interpolate(grid, (SIDE, SIDE), mode="bilinear", align_corners=False)[0]
        self.total = sized if self.total is None else self.total + sized
        self.seen, self.length = self.seen + 1, weights.shape[1]

    def mean(self) -> Float[Tensor, "m s s"]:
        """The average."""
        assert self.total is not None
        return self.total / self.seen


def weights_of(attention: CrossAttention, tokens: Tensor, context: KeysValues) -> Float[Tensor, "n m"]:
    """The softmax of one attention, averaged over its heads, for the first text: guidance follows it."""
    first = tokens[:1]
    q = attention.norm_q(rearrange(attention.q(first), "b n (h d) -> b h n d", h=attention.num_heads)).float()
    logits = q @ context.keys[:1].float().transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(dim=-1).mean(dim=1)[0]


@contextmanager
def watched(nets: list[nn.Module]) -> Iterator[Maps]:
    """The weights of every cross-attention of networks, added up while the block runs."""
    maps = Maps()

    def _see(module: nn.Module, arguments: Any, _: Any) -> None:
        assert isinstance(module, CrossAttention)
        maps.add(weights_of(module, *arguments).cpu())

    found = [each for net in nets for each in net.modules() if isinstance(each, CrossAttention)]
    handles = [each.register_forward_hook(_see) for each in found]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def networks_of(generator: Any) -> list[nn.Module]:
    """The networks that a generator holds; a weak one, which only guides, is none of them."""
    held = vars(generator).items() if hasattr(generator, "__dict__") else ()
    return [value for name, value in held if isinstance(value, nn.Module) and name != "weak"]


def heat_maps(opened: Opened, job: Job) -> dict[str, Any]:
    """The maps of a picture's words as plain data, from 0 to 1 each; generates the picture once more.

    Returns `sentence`, and `words` with `word`, `map` (a list of rows) and `place`, none for a system without
    cross-attention.
    """
    with torch.no_grad(), watched(networks_of(opened.generator)) as maps:
        generate_batch(opened, [job])
    tokenizer = opened.generator.tokenizer
    if maps.seen == 0 or tokenizer is None:
        return {"sentence": NONE, "words": []}
    mean, listed = maps.mean(), []
    for word, positions in spans(job.prompt, tokenizer):
        if positions and max(positions) < len(mean):
            grid = mean[positions].sum(dim=0)
            span = (grid.max() - grid.min()).clamp(min=1e-12)
            scaled = (grid - grid.min()) / span
            rows = [[round(value, 3) for value in row] for row in scaled.tolist()]
            listed.append({"word": word, "map": rows, "place": place_of(scaled)})
    sentence = f"Bright is where a word was read most; the mean of {maps.seen} attentions."
    return {"sentence": sentence, "words": listed}


def spans(prompt: str, tokenizer: Tokenizer) -> list[tuple[str, list[int]]]:
    """The words of a prompt with the positions of their tokens, as far as they are read."""
    found, start = [], 1  # the first token is the start
    for word in tokenizer.words(prompt):
        count = tokenizer.count(word) - 2
        positions = [each for each in range(start, start + count) if each < tokenizer.context_length - 1]
        if any(letter.isalnum() for letter in word):
            found.append((word, positions))
        start += count
    return found


def place_of(grid: Float[Tensor, "s s"]) -> str:
    """Where the centre of a map lies, in words."""
    heavy = grid.square()  # the bright parts count, not the wide dim ones
    total = heavy.sum().clamp(min=1e-12)
    places = torch.arange(len(grid)) + 0.5
    row, column = ((heavy.sum(dim=dim) * places).sum() / total / len(grid) for dim in (1, 0))
    return THIRDS[min(2, int(3 * row))][min(2, int(3 * column))]


def training_root(bundle: Bundle) -> str | None:
    """The folder of the pictures that a bundle was trained on; None where this machine doesn't have it."""
    root = SHIPPED if bundle.place == "shipped" else ""
    with suppress(UserError):
        root = root or run_config(bundle).mapping("data").text("root")
    return root if root and (Path(root) / FILE_NAME).is_file() else None


@lru_cache(maxsize=2)
def searched(root: str) -> tuple[PictureDataset, Table]:
    """The training pictures of a folder, and the table of their pixels."""
    pictures, features = PictureDataset(root, split="train", size=PIXELS), Pixels(size=PIXELS)
    numbers = range(min(MOST, len(pictures)))
    # half precision holds the whole numbers to 255 exactly
    rows = [features(pictures.image(number)[None])["pixels"].half() for number in numbers]
    return pictures, Table(parts=[torch.cat(rows)], order=torch.arange(len(numbers)))


def nearest_pictures(bundle: Bundle, file: Path) -> dict[str, Any]:
    """The nearest training pictures of a picture as plain data: `sentence`, and `neighbours`, nearest first.

    Each has a `distance` (the root mean square difference of pixel values, of 255), `mirrored`, its
    `caption`, and as `url` the picture itself.
    """
    root = training_root(bundle)
    if root is None:
        remedy = ": python -m data_prep.emoji writes them" if bundle.place == "shipped" else ""
        return {
            "sentence": f"The pictures that this model was trained on are not on this machine{remedy}.",
            "neighbours": [],
        }
    pictures, table = searched(root)
    found = sorted(both_ways(pixels_of(file), table), key=lambda each: each[1])[:SHOWN]
    shown = PictureDataset(root, split="train", size=bundle.config.get("size") or 2 * PIXELS)
    neighbours = []
    for number, distance, mirrored in found:
        png = base64.b64encode(encode_sample(shown.image(number), texts={})).decode()
        captions = pictures.captions(number)
        url, caption = f"data:image/png;base64,{png}", captions[0] if captions else ""
        neighbours.append({"distance": distance, "mirrored": mirrored, "caption": caption, "url": url})
    return {"sentence": verdict([distance for _, distance, _ in found], len(table)), "neighbours": neighbours}


def pixels_of(file: Path) -> Float[Tensor, "1 d"]:
    """A picture's pixels, as the table has them."""
    with Image.open(file, formats=("PNG",)) as picture:
        values = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None]
    return Pixels(size=PIXELS)(values)["pixels"]


def both_ways(pixels: Float[Tensor, "1 d"], table: Table) -> list[tuple[int, float, bool]]:
    """The pictures nearest to one or to its mirror image: number, distance, whether it is nearer mirrored."""
    best: dict[int, tuple[float, bool]] = {}
    for mirrored in (False, True):
        rows = pixels.unflatten(1, (3, PIXELS, PIXELS)).flip(-1).flatten(1) if mirrored else pixels
        distances, numbers = nearest(rows, table, count=SHOWN)
        for distance, number in zip(distances[0].tolist(), numbers[0].tolist(), strict=True):
            best[number] = min(best.get(number, (distance, mirrored)), (distance, mirrored))
    scale = pixels.shape[1] ** 0.5
    return [(number, distance / scale, mirrored) for number, (distance, mirrored) in best.items()]


def verdict(distances: list[float], count: int) -> str:
    """Whether a picture is a copy, by the distances to its nearest training pictures."""
    searched_of = f"the nearest of {count:,} training pictures"
    if len(distances) < 2:
        return f"This is {searched_of}."
    ratio = distances[0] / max(distances[1], 1e-9)
    if ratio < COPY:
        times = f"{1 / max(ratio, 1e-9):.0f} times"
        return f"This counts as a copy: {searched_of} is {times} nearer than the second."
    limit = f"a copy has less than {COPY:.0%}"
    return f"No copy: {searched_of} is at {ratio:.0%} of the distance of the second; {limit}."
