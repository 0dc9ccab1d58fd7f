"""A picture drawn again from what it carries, and held against the one that is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import SHIPPED, Bundle
from ldm.checkpoints.pipeline import identified, open_pipeline, weak_path
from ldm.drawing.drawer import Drawer
from ldm.drawing.job import Job
from ldm.drawing.record import environment, facts_of, identity, read_facts
from ldm.randomness.noise import noise_of
from ldm.randomness.seeds import EARLIER_GENERATOR

MOST = 4096  # pictures in a batch
MAY_DIFFER = (
    "commit",
    "torch",
    "threads",
    "machine",
)  # told, not refused: the pixels are compared in the end


@dataclass(frozen=True, kw_only=True)
class Redrawing:
    """A picture of ours that is to be drawn once more.

    Attributes:
        place, size: of the picture in its batch. It is drawn in one of that size, for sums are rounded by it.
    """

    path: Path
    bundle: Bundle
    job: Job
    drawer: Drawer
    precision: str
    place: int
    size: int

    @classmethod
    def open(cls, path: Path, *, bundle: str | None = None) -> "Redrawing":
        """Reads a picture's record and opens what drew it.

        Args:
            bundle: where its bundle lies now, if it has moved.

        Raises:
            UserError: no record, another version or bundle, or a file that has changed, by its name.
        """
        facts = read_facts(path)
        try:
            check_version(path, facts)
            opened = bundle_of(path, facts, bundle)
            check_files(path, facts)
            check_batch(path, **facts["batch"])
            nodes = {"sampler": facts["sampler"], "guidance": facts["guidance"]}
            pipeline = open_pipeline(opened, precision=facts["precision"], **nodes)
            pipeline = pipeline.with_options(noise=noise_of(facts.get("generator", EARLIER_GENERATOR)))
            return cls(
                path=path,
                bundle=opened,
                job=job_of(facts, name=path.stem),
                drawer=Drawer(pipeline=pipeline, nodes=nodes),
                precision=facts["precision"],
                place=facts["batch"]["place"],
                size=facts["batch"]["size"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: its record is damaged ({type(error).__name__}: {error})") from error

    def __call__(self) -> tuple[Tensor, dict[str, Any]]:
        """The picture, uint8 3 h w, and its record, both of now."""
        image = self.drawer([self.job] * self.size)[self.place]
        batch = (self.place, self.size)
        return image, facts_of(self.job, self.drawer, self.bundle, precision=self.precision, batch=batch)


def check_version(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses a picture of another version of the code.

    Raises:
        UserError: both versions.
    """
    own = environment()["version"]
    if facts["version"] != own:
        raise UserError(
            f"{path} was drawn by ldm {facts['version']} and this is ldm {own}, which may draw otherwise: "
            f"install ldm=={facts['version']}"
        )


def bundle_of(path: Path, facts: Mapping[str, Any], place: str | None) -> Bundle:
    """The bundle that drew a picture.

    Raises:
        UserError: another one lies there now.
    """
    bundle = Bundle.open(place or facts["bundle_path"])
    if bundle.sha256 != facts["bundle"]:
        named = "shipped" if bundle.path == SHIPPED else bundle.path
        raise UserError(
            f"{path} was drawn by a bundle with sha256 {facts['bundle'][:12]}, and {named} has"
            f" {bundle.sha256[:12]}: name the one that drew it with bundle="
        )
    return bundle


def check_files(path: Path, facts: Mapping[str, Any]) -> None:
    """Refuses where a picture to start from, a mask or a weak bundle is not what it was.

    Raises:
        UserError: its name and place.
    """
    for name in ("image", "mask"):
        if name in facts:
            file = Path(facts[name]["file"])
            if not file.is_file() or identity(file)["sha256"] != facts[name]["sha256"]:
                raise UserError(f"{path} was drawn from {name}={file}, which is gone or changed: put it back")
    if "weak" in facts and identified(facts["guidance"])["weak"] != facts["weak"]:
        weak = weak_path(facts["guidance"])
        raise UserError(f"{path} was drawn beside guidance.weak={weak}, which is another bundle now")


def check_batch(path: Path, *, place: int, size: int) -> None:
    """Refuses a batch that no command draws.

    Raises:
        UserError: place and size.
    """
    if type(place) is not int or type(size) is not int or not 0 <= place < size <= MOST:
        raise UserError(f"{path}: its record has place {place} in a batch of {size}: it is damaged")


def job_of(facts: Mapping[str, Any], *, name: str) -> Job:
    """The job that a record tells; the scale is in its guidance."""
    image, mask = (Path(facts[key]["file"]) if key in facts else None for key in ("image", "mask"))
    return Job(
        prompt=facts["prompt"],
        seed=facts["seed"],
        name=name,
        negative=facts["negative"],
        image=image,
        mask=mask,
        strength=facts.get("strength"),
    )


def compared(image: Tensor, redrawing: Redrawing) -> str:
    """A sentence on how a picture differs from the one that it was drawn after."""
    with Image.open(redrawing.path) as picture:
        earlier = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if earlier.shape != image.shape:
        return f"its size differs from that of {redrawing.path}"
    difference = (image.int() - earlier.int()).abs()
    if not difference.any():
        return f"every pixel is that of {redrawing.path}"
    then, now = read_facts(redrawing.path), environment()
    changed = [f"{key} {then.get(key)}, here {now[key]}" for key in MAY_DIFFER if then.get(key) != now[key]]
    reason = f" ({'; '.join(changed)})" if changed else ""
    count, most = int(difference.amax(dim=0).count_nonzero()), int(difference.max())
    return f"{count} pixels differ from {redrawing.path}, by {most} of 255 at most{reason}"
