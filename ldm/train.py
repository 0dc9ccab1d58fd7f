"""Trains a stage: `python -m ldm.train +experiment=<name>`; the same command resumes an interrupted run.

With `dry_run=true` it prints what the training would take, and writes nothing. A trainer of several ranks is
started here once a rank, unless torchrun or srun has done so.
"""

import os
import signal
import sys

if __name__ == "__main__":  # Python may lose a KeyboardInterrupt while modules load, the system doesn't
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, and a handler for it

from omegaconf import DictConfig

from ldm.commands.answers import refuse
from ldm.config import entry, overrides, plain
from ldm.distributed.launch import LOST, follow_watcher, launch, ranks_to_start


@entry("train")
def main(config: DictConfig) -> None:
    """Starts the ranks of the training, or is one of them; or tells what the training would take."""
    if config.dry_run:
        from ldm.planning.dry_run import dry_run

        return dry_run(config)
    count = ranks_to_start(plain(config.trainer))
    if count == 1:
        follow_watcher()
        return train(config)
    command = [sys.executable, "-m", "ldm.train", *overrides()]
    status, cause = launch(command, count, patience=config.patience)
    if cause:
        refuse(cause)
    if status:
        sys.exit(status)


def train(config: DictConfig) -> None:
    """Trains as one of the ranks; what ends them all early, or a lost one, ends in a sentence."""
    import torch

    from ldm.callbacks.saving import StoppedBySignal
    from ldm.data import DataError
    from ldm.distributed.ranks import is_lost, join, leave, rank
    from ldm.planning.fitting import EndedEarly, fit
    from ldm.planning.trainers import quiet

    quiet()
    torch.set_float32_matmul_precision("high")
    try:
        join()
        fit(config)
        leave()
    except (StoppedBySignal, EndedEarly) as stopped:
        sys.exit(f"{stopped}; the same command resumes the training")
    except RuntimeError as error:
        if is_lost(error):
            print(f"ldm: rank {rank()} has lost another one ({error})", file=sys.stderr, flush=True)
            os._exit(LOST)  # what is left of the group can't be taken apart
        if "DataLoader worker" not in str(error):
            raise
        told = f"a loader process has died ({error}); the same command resumes the training"
        raise DataError(told) from error


if __name__ == "__main__":
    main()
