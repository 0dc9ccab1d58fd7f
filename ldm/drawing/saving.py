"""Pictures and their records as files, each whole or not at all, in the order in which they are drawn."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.pictures import save_picture
from ldm.data.picture_files import LIST
from ldm.drawing.clearing import clear
from ldm.drawing.drawer import Drawer
from ldm.drawing.job import Job
from ldm.drawing.record import chunks, facts_of
from ldm.io.writing import append


class Saver:
    """Writes `<name>.png` and a line of `pictures.jsonl` for each picture of one command.

    Args:
        folder: where they go; what an earlier command has left there is removed.
        drawer, bundle, precision: what draws them, for the records.
    """

    def __init__(self, folder: Path, *, drawer: Drawer, bundle: Bundle, precision: str) -> None:
        self.folder, self.drawer, self.bundle, self.precision = folder, drawer, bundle, precision
        clear(folder)

    def save(self, jobs: Sequence[Job], images: Tensor) -> None:
        """Writes one batch as it was drawn."""
        for place, (job, image) in enumerate(zip(jobs, images, strict=True)):
            facts = facts_of(
                job, self.drawer, self.bundle, precision=self.precision, batch=(place, len(jobs))
            )
            file = self.folder / f"{job.name}.png"
            save_picture(image, file, texts=chunks(facts), below=self.folder)
            append(self.folder / LIST, json.dumps({"file": file.name} | facts, ensure_ascii=False) + "\n")
