"""A picture generated once more from its record, and compared with the one that is there."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.generators.generator import Opened, open_generator
from ldm.sampling.batches import configured, generate_batch
from ldm.sampling.jobs import Job
from ldm.sampling.record import environment, facts_of, identity, read_facts, settings_of

MAY_DIFFER = ("commit", "torch", "threads", "machine")  # reported, not refused: the pixels are compared


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A picture of ours that is to be generated once more.

    Attributes:
        facts: its record.
        opened: the generator with the settings of the record.
    """

    path: Path
    facts: Mapping[str, Any]
    job: Job
    opened: Opened

    @classmethod
    def open(cls, path: Path, *, bundle: str | None = None) -> "Reproduction":
        """Reads a picture's record and opens the generator that made it.

        Args:
            bundle: where its bundle lies now, if it has moved.

        Raises:
            UserError: no record, another version or bundle, or a file that has changed, by its name.
        """
        facts, own = read_facts(path), environment()["version"]
        if facts["version"] != own:
            raise UserError(
                f"{path} was drawn by ldm {facts['version']} and this is ldm {own}, which may draw otherwise:"
                f" install ldm=={facts['version']}"
            )
        found = Bundle.open(bundle or facts["bundle_path"])
        if found.sha256 != facts["bundle"]:
            raise UserError(
                f"{path} was drawn by a bundle with sha256 {facts['bundle'][:12]}, and {found.place} has"
                f" {found.sha256[:12]}: name the one that drew it with bundle="
            )
        job = job_of(path, facts)
        return cls(path=path, facts=facts, job=job, opened=open_generator(found, **settings_of(facts)))

    def __call__(self) -> tuple[Tensor, dict[str, Any]]:
        """The picture, uint8 3 h w, and its record, both of now; it is made in a batch of the same size."""
        place, size = self.facts["batch"]["place"], self.facts["batch"]["size"]
        image = generate_batch(self.opened, [self.job] * size)[place]
        return image, facts_of(self.job, configured(self.opened, self.job), batch=(place, size))


def job_of(path: Path, facts: Mapping[str, Any]) -> Job:
    """The job that a record describes; its scale is among the generator's settings.

    Raises:
        UserError: a picture to start from, or a mask, that is gone or changed.
    """
    files = {name: Path(facts[name]["file"]) for name in ("image", "mask") if name in facts}
    for name, file in files.items():
        if not os.path.isfile(file) or identity(file)["sha256"] != facts[name]["sha256"]:
            raise UserError(f"{path} was drawn from {name}={file}, which is gone or changed: put it back")
    own = {name: facts[name] for name in ("prompt", "seed", "negative", "strength") if name in facts}
    return Job(name=path.stem, **own, **files)


def compared(image: Tensor, earlier: Reproduction) -> str:
    """A sentence on how a picture differs from the one that it reproduces."""
    with Image.open(earlier.path) as picture:
        before = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if before.shape != image.shape:
        return f"its size differs from that of {earlier.path}"
    difference = (image.int() - before.int()).abs()
    if not difference.any():
        return f"every pixel is that of {earlier.path}"
    then, now = earlier.facts, environment()
    changed = [f"{key} {then.get(key)}, here {now[key]}" for key in MAY_DIFFER if then.get(key) != now[key]]
    reason = f" ({'; '.join(changed)})" if changed else ""
    count, most = int(difference.amax(dim=0).count_nonzero()), int(difference.max())
    return f"{count} pixels differ from {earlier.path}, by {most} of 255 at most{reason}"
