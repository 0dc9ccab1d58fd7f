"""Weights & Biases through Lightning's logger, which must never stop a run."""

import netrc
import os
import uuid
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger


def wandb_logger(*, project: str, name: str, folder: str) -> WandbLogger:
    """A logger that records offline when there is no key or no answer within 5 s.

    Offline records lie in `<folder>/wandb`; `wandb sync` sends them. The id is kept in
    `<folder>/wandb_id`, so a resumed run is the same run there.
    """
    import wandb

    identity = Path(folder) / "wandb_id"
    if not identity.exists():
        identity.write_text(uuid.uuid4().hex[:8])
    os.environ.setdefault(
        "WANDB_DATA_DIR", folder
    )  # tables keep their pictures beside the run, not in the home folder
    options = {
        "project": project,
        "name": name,
        "save_dir": folder,
        "id": identity.read_text(),
        "resume": "allow",
    }
    if not has_key():
        return WandbLogger(**options, offline=True)
    try:
        logger = WandbLogger(**options, settings=wandb.Settings(init_timeout=5))
        logger.experiment  # noqa: B018 - connects now, so that a dead service is found before training
        return logger
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        print(f"W&B does not answer ({error}); recording offline in {folder}/wandb")
        return WandbLogger(**options, offline=True)


def has_key() -> bool:
    """Whether W&B has been logged in to on this machine."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
