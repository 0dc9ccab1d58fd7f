"""Trains a stage: `python -m ldm.train +experiment=<name>`; the same command resumes an interrupted run.

With `dry_run=true` it prints what the training would take, and writes nothing. If the trainer has several
ranks, this process starts and watches them, unless torchrun or srun has started it as one.
"""

import os
import signal
import sys

if __name__ == "__main__":  # Python may lose a KeyboardInterrupt while modules load, the system doesn't
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, and a handler for it

from omegaconf import DictConfig

from ldm.commands.answers import refuse
from ldm.config import entry, overrides, plain
from ldm.distributed import LOST
from ldm.distributed.launch import follow_watcher, launch, ranks_to_start


@entry("train")
def main(config: DictConfig) -> None:
    """Runs a dry run, starts the ranks of a training, or trains as one of them."""
    if config.dry_run:
        from ldm.planning.dry_run import dry_run

        return dry_run(config)
    count = ranks_to_start(plain(config.trainer))
    if count == 1:
        follow_watcher()
        return train(config)
    # not sys.argv: in a sweep that runs inside one process the overrides are those of its point
    command = [sys.executable, "-m", "ldm.train", *overrides()]
    status, cause = launch(command, count, patience=config.patience)
    if cause:
        refuse(cause)
    if status:
        sys.exit(status)


def train(config: DictConfig) -> None:
    """Trains as one of the ranks; a signal, a time limit or a lost rank ends it with one sentence."""
    import torch

    from ldm.callbacks.saving import StoppedBySignal
    from ldm.data import DataError
    from ldm.distributed.ranks import is_lost, join, leave, rank
    from ldm.planning.fitting import EndedEarly, fit, keep_freed_memory, quiet

    quiet()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    try:
        join()
        fit(config)
        leave()
    except (StoppedBySignal, EndedEarly) as stopped:
        sys.exit(f"{stopped}; the same command resumes the training")
    except RuntimeError as error:
        if is_lost(error):
            print(f"ldm: rank {rank()} has lost another rank ({error})", file=sys.stderr, flush=True)
            os._exit(LOST)  # the broken process group would wait forever for the others at exit
        if "DataLoader worker" not in str(error):
            raise
        sentence = f"a loader process has died ({error}); the same command resumes the training"
        raise DataError(sentence) from error


if __name__ == "__main__":
    main()
