"""The training pictures that a picture is most like, as it is or mirrored: is it a copy of one?"""

import base64
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.data.index import FILE_NAME
from ldm.data.shards import PictureDataset
from ldm.io.pictures import encode_sample
from ldm.metrics.features import Pixels
from ldm.metrics.mmap_tables import Table, nearest
from ldm.serve.describing import run_config

SIDE = 32  # pixels at which pictures are compared
MOST = 20_000  # training pictures that are searched, the first ones
SHOWN = 6
COPY = 1 / 3  # of the distance to the second one: what is nearer is a copy (Yoon et al. 2023)
SHIPPED = "data/emoji"  # where `python -m data_prep.emoji` writes what the shipped model was trained on


def training_root(bundle: Bundle) -> str | None:
    """The folder of the pictures that a bundle was trained on; None where this machine doesn't have it."""
    root = SHIPPED if bundle.place == "shipped" else ""
    with suppress(UserError):
        root = root or run_config(bundle).mapping("data").text("root")
    return root if root and (Path(root) / FILE_NAME).is_file() else None


@lru_cache(maxsize=2)
def searched(root: str) -> tuple[PictureDataset, Table]:
    """The training pictures of a folder, and the table of their pixels."""
    pictures, features = PictureDataset(root, split="train", size=SIDE), Pixels(size=SIDE)
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
    shown = PictureDataset(root, split="train", size=bundle.config.get("size") or 2 * SIDE)
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
    return Pixels(size=SIDE)(values)["pixels"]


def both_ways(pixels: Float[Tensor, "1 d"], table: Table) -> list[tuple[int, float, bool]]:
    """The pictures nearest to one or to its mirror image: number, distance, whether it is nearer mirrored."""
    best: dict[int, tuple[float, bool]] = {}
    for mirrored in (False, True):
        rows = pixels.unflatten(1, (3, SIDE, SIDE)).flip(-1).flatten(1) if mirrored else pixels
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
