"""Weights & Biases: always recorded in the run directory, and sent from there where a service answers."""

import os
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ldm.checkpoints.run import facts_of
from ldm.io.writing import make_folder, write
from ldm.loggers.background import BackgroundLogger, Cell, check_patience, say
from ldm.loggers.wandb_sending import Sending, address, unsendable

CLOSING = 30.0  # seconds that the end of a record may take beside its sending; it takes some hundredths


def wandb_logger(
    *, project: str, name: str, folder: str, artifact: bool = False, patience: float = 15.0
) -> BackgroundLogger:
    """A logger that records in `<folder>/wandb` and sends from there.

    Without a key, or an answer within 4 s, nothing is sent: `wandb sync` does it later. The id is kept in
    `<folder>/wandb_id`, so a resumed run is the same run there.

    Args:
        project, name: of the run.
        folder: the run directory; its `config.yaml` and `run.json` become the run's config.
        artifact: whether the bundle that the training leaves is sent, too.
        patience: seconds that the end waits for what is still to be sent.
    """
    check_patience(patience)
    opener = partial(
        WandbRecorder, project=project, name=name, folder=Path(folder), artifact=artifact, patience=patience
    )
    return BackgroundLogger(opener, title="W&B", patience=patience + CLOSING, give_up=kill_core)


class WandbRecorder:
    """A record of W&B's, the process that sends it, and nothing that waits for a service.

    The arguments are those of `wandb_logger`.
    """

    def __init__(self, *, project: str, name: str, folder: Path, artifact: bool, patience: float) -> None:
        import wandb

        folder = folder.resolve()  # `wandb sync` may be called from anywhere
        # what tables consist of is kept beside the record, not in the home folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder))
        for name in ("artifacts", "wandb"):  # where it writes
            make_folder(folder / name, below=folder)
        earlier = sorted((folder / "wandb").glob("offline-run-*"))
        self.folder, self.artifact, self.patience = folder, artifact, patience
        # of this whole process: else its telemetry asks the service, and waits for it at the exit
        wandb.setup(wandb.Settings(mode="offline"))
        self.run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            id=identity(folder),
            resume="allow",
            mode="offline",
            config=facts_of(folder),
            settings=wandb.Settings(console="off", silent=True),  # a print must not wait for W&B
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step", step_sync=True)
        self.record = Path(self.run.settings.sync_dir)
        self.unsent = unsendable()
        self.sending = None
        if self.unsent is None:
            self.sending = Sending([*earlier, self.record], folder=folder, url=address())
        else:
            say(f"W&B: recording in {self.record} and sending nothing: {self.unsent}")

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        self.run.log({**values, "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.metrics({name: wandb.Image(str(path))}, step)  # a file: floats would be saved black

    def table(
        self, name: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], step: int | None
    ) -> None:
        import wandb

        cells = [[cell if isinstance(cell, str) else wandb.Image(cell) for cell in row] for row in rows]
        self.metrics({name: wandb.Table(columns=list(header), data=cells)}, step or 0)

    def bundle(self, path: Path) -> None:
        import wandb

        if not self.artifact:
            return
        made = wandb.Artifact(f"bundle-{self.run.id}", type="model", metadata=facts_of(self.folder))
        made.add_dir(str(path.resolve()), policy="immutable")  # no copy of what stays where it is
        self.run.log_artifact(made)

    def close(self, *, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))
        if self.sending is not None:
            self.unsent = self.sending.finish(patience=self.patience)
            if self.unsent:
                say(f"W&B: not all was sent: {self.unsent}; `wandb sync {self.record}` does it")


def kill_core() -> None:
    """Kills the process in which W&B writes records, for which Python would wait at its exit for ever."""
    with suppress(Exception, SystemExit):  # it is W&B's own, and may be gone
        import wandb
        from wandb.sdk import wandb_setup

        wandb_setup.singleton()._connection._proc._process.kill()
        wandb.teardown(exit_code=1)


def identity(folder: Path) -> str:
    """The id of a run directory's run: eight hexadecimal digits, the same at each start."""
    path = folder / "wandb_id"
    found = path.read_text(errors="replace") if path.is_file() else ""
    if not re.fullmatch("[0-9a-f]{8}", found):
        found = uuid.uuid4().hex[:8]
        write(path, found)
    return found
