"""TensorBoard beside `metrics.jsonl`: curves, sample sheets, tables and the config."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ldm.checkpoints.provenance import facts_of, published
from ldm.evaluation.report import markdown_table
from ldm.io.writing import make_folder
from ldm.loggers.background import BackgroundLogger, Rows, check_patience

LITERATURE = ("fid", "is_mean")  # curves that share a panel with published numbers


def tensorboard_logger(*, folder: str, patience: float = 30.0) -> BackgroundLogger:
    """A logger that writes to `<folder>/tensorboard`; `tensorboard --logdir runs` shows all runs.

    Args:
        folder: the run directory, whose config and record are shown as text.
        patience: seconds that the end waits for entries that are still to be written.
    """
    check_patience(patience)
    return BackgroundLogger(lambda: TensorBoardRecorder(Path(folder)), title="TensorBoard", patience=patience)


class TensorBoardRecorder:
    """Writes event files below a run directory; steps that a resumed run repeats replace the earlier ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each number."""
        writer = self._open(step if any(name.startswith("train/") for name in values) else step + 1)
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Adds a picture."""
        with Image.open(path) as picture:
            self._open(step + 1).add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def table(self, name: str, header: Sequence[str], rows: Rows, step: int | None) -> None:
        """Adds a table as text, without its pictures."""
        texts = [[cell if isinstance(cell, str) else "picture" for cell in row] for row in rows]
        self._open((step or 0) + 1).add_text(name, markdown_table(header, texts), step)

    def bundle(self, path: Path) -> None:
        """TensorBoard keeps no bundles."""

    def close(self, *, failed: bool) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int) -> Any:
        """The writer; when it is made, it hides the entries of earlier starts from `purge_step` on.

        A resumed run repeats the validation at its checkpoint's step k, but step k was trained before. So if
        the first entry is a validation's, only entries from step k + 1 on are hidden.
        """
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            place = make_folder(self.folder / "tensorboard", below=self.folder)
            self._writer = SummaryWriter(str(place), purge_step=purge_step)
            facts = yaml.safe_dump(published(facts_of(self.folder)), sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", f"```yaml\n{facts}```")
            panels = {name: ["Multiline", [f"val/{name}$", f"literature/{name}/.*"]] for name in LITERATURE}
            self._writer.add_custom_scalars({"beside the literature": panels})
        return self._writer
