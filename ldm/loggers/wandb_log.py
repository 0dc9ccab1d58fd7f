"""Weights & Biases: every run is recorded in its directory, and sent from there if the service answers."""

import os
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ldm.checkpoints.provenance import facts_of, published
from ldm.io.writing import append, make_folder
from ldm.loggers.background import BackgroundLogger, Rows, check_patience, say
from ldm.loggers.wandb_sending import Sending, own_settings, unsendable

CLOSING = 30.0  # seconds that closing a record may take besides sending it; it usually takes 0.1


def wandb_logger(
    *, project: str, name: str, folder: str, artifact: bool = False, patience: float = 15.0
) -> BackgroundLogger:
    """A logger that records in `<folder>/wandb` and sends the record while the training runs.

    Without a key, or if the service does not answer within 4 s, nothing is sent; `wandb sync` can do it
    later. A resumed training continues its W&B run.

    Args:
        project, name: of the W&B run.
        folder: the run directory; its `config.yaml` and `run.json` become the config of the W&B run.
        artifact: whether the trained bundle is uploaded, too.
        patience: seconds that the end waits for entries that are still to be sent.
    """
    check_patience(patience)
    recorder = partial(
        WandbRecorder, project=project, name=name, folder=Path(folder), artifact=artifact, patience=patience
    )
    return BackgroundLogger(recorder, title="W&B", patience=patience + CLOSING, give_up=kill_core)


class WandbRecorder:
    """Writes W&B's offline record and starts the process that sends it; arguments as of `wandb_logger`."""

    def __init__(self, *, project: str, name: str, folder: Path, artifact: bool, patience: float) -> None:
        import wandb
        from wandb.sdk import wandb_setup

        folder = folder.resolve()  # `wandb sync` may be called from anywhere
        # W&B stages the contents of tables here; its default is a folder in the user's home
        os.environ.setdefault("WANDB_DATA_DIR", str(folder))
        for place in ("artifacts", "wandb"):
            make_folder(folder / place, below=folder)
        self.folder, self.artifact, self.patience = folder, artifact, patience
        settings, earlier = own_settings(), own_records(folder / "wandb")
        # set before W&B loads its own: it would read `wandb/settings` of the working folder
        wandb_setup.singleton()._settings = settings.model_copy()
        # offline for the whole process: else its telemetry asks the service, and waits for it at exit
        wandb.setup(wandb.Settings(mode="offline"))
        # its own online mode would make the training wait where the service hangs: `Sending` sends the record
        self.run = wandb.init(
            project=project,
            name=name,
            dir=str(folder),
            id=earlier[-1].name.rpartition("-")[2] if earlier else uuid.uuid4().hex[:8],
            resume="allow",
            mode="offline",
            config=published(facts_of(folder)),
            # console off: a print must not wait for W&B; no `.wandb`, which could be a link out of the folder
            settings=wandb.Settings(console="off", silent=True, use_dot_wandb=False),
        )
        self.run.define_metric("step", hidden=True)
        self.run.define_metric("*", step_metric="step", step_sync=True)
        self.record = Path(self.run.settings.sync_dir)
        with suppress(OSError):  # without a home that can be written, a later start can't send this record
            append(records_list(), f"{self.record}\n")
        self.unsent = unsendable(settings)
        self.sending = None
        if self.unsent is None:
            unsent = [record for record in earlier if record.is_dir()]
            self.sending = Sending([*unsent, self.record], folder=folder, url=settings.base_url)
        else:
            say(f"W&B: recording in {self.record} and sending nothing: {self.unsent}")

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Records numbers, or W&B's form of anything else."""
        self.run.log({**values, "step": step})

    def image(self, name: str, path: Path, step: int) -> None:
        """Records a picture file."""
        import wandb

        self.metrics({name: wandb.Image(str(path))}, step)  # as a file: W&B would save floats black

    def table(self, name: str, header: Sequence[str], rows: Rows, step: int | None) -> None:
        """Records a table with its pictures."""
        import wandb

        cells = [[cell if isinstance(cell, str) else wandb.Image(cell) for cell in row] for row in rows]
        self.metrics({name: wandb.Table(columns=list(header), data=cells)}, step or 0)

    def bundle(self, path: Path) -> None:
        """Records the bundle as a W&B artifact if `artifact` is true; else does nothing."""
        import wandb

        if self.artifact:
            made = wandb.Artifact(f"bundle-{self.run.id}", type="model", metadata=facts_of(self.folder))
            made.add_dir(str(path.resolve()), policy="immutable")  # no copy: the bundle stays as it is
            self.run.log_artifact(made)

    def close(self, *, failed: bool) -> None:
        """Ends the record, and waits until it is sent; prints what is left to do if it is not."""
        self.run.finish(exit_code=int(failed))
        if self.sending is not None:
            self.unsent = self.sending.finish(patience=self.patience)
            if self.unsent:
                say(f"W&B: the record was not sent: {self.unsent}; `wandb sync {self.record}` sends it")


def own_records(folder: Path) -> list[Path]:
    """Records `offline-run-<time>-<id>` that this user's trainings made in a folder, oldest first.

    A record names the files that are uploaded with it, and the W&B run to which they go. Whoever gave the
    user the run directory could have forged one. So only a list in the user's home says which records are
    sent, and which id a resumed training continues.
    """
    path = records_list()
    listed = map(Path, path.read_text().splitlines() if path.is_file() else [])
    own = [record for record in listed if record.parent == folder]
    if strange := {*folder.glob("offline-run-*")} - {*own}:
        say(
            f"W&B: {len(strange)} of the records in {folder} are not sent, as your list {path} does not name "
            "them; if you trust them, `wandb sync` sends them"
        )
    return own


def records_list() -> Path:
    """The file that lists the records of all this user's trainings, by their paths."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ldm" / "wandb_records"


def kill_core() -> None:
    """Kills the process in which W&B writes records, for which Python would wait forever at its exit."""
    with suppress(Exception, SystemExit):  # it is W&B's own, and may be gone
        import wandb
        from wandb.sdk import wandb_setup

        wandb_setup.singleton()._connection._proc._process.kill()
        wandb.teardown(exit_code=1)
