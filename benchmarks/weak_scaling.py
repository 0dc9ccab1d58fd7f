"""Weak scaling on this machine: ranks of one thread each, every one with a batch of its own.

    python -m benchmarks.weak_scaling [--ranks 2] [--rounds 3] [--steps 10] [+experiment=emoji key=value ...]

One rank and several take their turns, each round in new processes that train a stage on made-up samples as
`ldm.train` would. Prints the median seconds of a step of both, and the efficiency: their ratio, 1 if ranks
do not slow each other down. Take the numbers on an idle machine with a core for each rank.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm.config import CONF, answer_errors, build, plain
from ldm.launch import follow_watcher, launch

WARM = 2  # steps that are not counted
SAMPLES = ("batch_size=16",)  # of a rank, unless another is given


def configured(overrides: Sequence[str], *, ranks: int) -> DictConfig:
    """The training's config for a number of ranks."""
    trainer = ["trainer=cpu"] if ranks == 1 else ["trainer=cpu_ddp", f"trainer.devices={ranks}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", overrides=[*trainer, *SAMPLES, *overrides])


def be_rank(overrides: Sequence[str], *, ranks: int, steps: int, out: Path) -> None:
    """Trains as one of the ranks; the first one writes the seconds of each step."""
    follow_watcher()
    from torch.utils.data import DataLoader

    from ldm.distributed import is_first, join, leave
    from ldm.dry_run import made_up_stage
    from ldm.train import quiet
    from ldm.trial import Observer, made_up_batch

    quiet()
    join()
    config = configured(overrides, ranks=ranks)
    stage, _ = made_up_stage(config)
    observer = Observer(metering=False)
    silent = {"logger": False, "enable_progress_bar": False, "limit_val_batches": 0}
    settings = plain(config.trainer) | silent | {"callbacks": [observer], "max_steps": WARM + steps}
    batches = [made_up_batch(stage, config.batch_size, size=config.data.size)] * (WARM + steps)
    build(settings).fit(stage, DataLoader(batches, batch_size=None))
    if is_first():
        size = sum(parameter.numel() for parameter in stage.net.parameters())
        out.write_text(json.dumps({"seconds": observer.seconds[WARM:], "parameters": size}))
    leave()


def measure(overrides: Sequence[str], *, ranks: int, steps: int) -> dict:
    """What the first of some ranks wrote.

    Raises:
        ValueError: a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "seconds.json"
        own = ["--rank-of", str(ranks), "--steps", str(steps), "--out", str(out)]
        command = [sys.executable, "-m", "benchmarks.weak_scaling", *own, *overrides]
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        status, cause = launch(command, ranks, patience=60)
        if status:
            raise ValueError(cause or "the first rank has said why it ended")
        return json.loads(out.read_text())


def compare(overrides: Sequence[str], *, ranks: int, rounds: int, steps: int) -> None:
    """Prints the seconds of a step and the efficiency."""
    config = configured(overrides, ranks=ranks)
    seconds: dict[int, list[float]] = {1: [], ranks: []}
    for _ in range(rounds):
        for count, own in seconds.items():
            found = measure(overrides, ranks=count, steps=steps)
            own += found["seconds"]
    alone, together = median(seconds[1]), median(seconds[ranks])
    print(
        f"{config.name}, {found['parameters'] / 1e6:.2f} M parameters, {config.batch_size} samples a rank, "
        f"{rounds} rounds of {steps} steps, one thread a rank, {os.cpu_count()} cores"
    )
    print(f"a step of 1 rank: {alone:.3f} s; of {ranks} ranks: {together:.3f} s")
    print(f"weak scaling efficiency: {alone / together:.2f}")


def main() -> None:
    """Reads the options; what is left are overrides of the training's config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options, overrides = parser.parse_known_args()
    if options.rank_of:
        return be_rank(overrides, ranks=options.rank_of, steps=options.steps, out=options.out)
    answer_errors(lambda: compare(overrides, ranks=options.ranks, rounds=options.rounds, steps=options.steps))


if __name__ == "__main__":
    main()
