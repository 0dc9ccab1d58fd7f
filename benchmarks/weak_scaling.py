"""Weak scaling on this machine: ranks of one thread each, every one with a batch of its own.

    python -m benchmarks.weak_scaling [--ranks 2] [--shape base] [+experiment=emoji key=value ...]

Three trainings take their turns, each round in new processes that train a stage on made-up samples as
`ldm.train` would: one rank alone, several that know nothing of each other, and several that train as one.
Prints the median seconds of a step of each, and two ratios of them:

    efficiency              alone / joined, 1 if ranks do not slow each other down
    of what the machine has apart / joined: the share of it that is left once each core has its work;
                            what alone / apart is below 1 is caches, memory and clock that cores share

Take the numbers on an idle machine with a core for each rank.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from omegaconf import DictConfig

from benchmarks.configs import add_trained_shape, trained, training_config
from ldm.commands.answers import answer_errors
from ldm.config import build
from ldm.distributed.launch import follow_watcher, launch

WARM = 2  # steps that are not counted
SAMPLES = ("batch_size=16",)  # of a rank, unless another is given
STEADY = ("ema", "gradients")  # callbacks that are part of every step
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")


def configured(overrides: Sequence[str], *, ranks: int) -> DictConfig:
    """The training's config for a number of ranks."""
    trainer = ["trainer=cpu"] if ranks == 1 else ["trainer=cpu_ddp", f"trainer.devices={ranks}"]
    return training_config([*trainer, *SAMPLES, *overrides])


def be_rank(overrides: Sequence[str], *, ranks: int, apart: bool, steps: int, out: Path) -> None:
    """Trains as one of the ranks, or by itself while the others do; writes the seconds of each step."""
    follow_watcher()
    from torch.utils.data import DataLoader

    from ldm.distributed.ranks import join, leave, rank
    from ldm.planning.dry_run import made_up_stage
    from ldm.planning.fitting import make_trainer, quiet
    from ldm.planning.trial import Observer

    quiet()
    config = configured(overrides, ranks=1 if apart else ranks)
    stage, _ = made_up_stage(config)
    observer = Observer(metering=False)
    batches = [stage.example_batch(config.batch_size, size=config.data.size)] * (WARM + steps)
    join()  # so that all begin at once
    number = rank()
    if apart:
        leave()
        for name in PLACE:
            os.environ.pop(name, None)
    trainer = make_trainer(
        config,
        callbacks=[*(build(config.callbacks[name]) for name in STEADY), observer],
        enable_progress_bar=False,
        limit_val_batches=0,
        max_steps=WARM + steps,
    )
    trainer.fit(stage, DataLoader(batches, batch_size=None))
    size = sum(parameter.numel() for parameter in stage.net.parameters())
    found = {"seconds": observer.seconds[WARM:], "parameters": size}
    (out / f"{number}.json").write_text(json.dumps(found))
    leave()


def measure(overrides: Sequence[str], *, ranks: int, apart: bool, steps: int) -> tuple[list[float], int]:
    """Seconds of all steps of all ranks, and the network's parameters.

    Raises:
        ValueError: a rank failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        own = ["--rank-of", str(ranks), "--steps", str(steps), "--out", folder, *["--apart"] * apart]
        command = [sys.executable, "-m", "benchmarks.weak_scaling", *own, *overrides]
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        status, cause = launch(command, ranks, patience=60)
        if status:
            raise ValueError(cause or "the first rank has said why it ended")
        found = [json.loads(path.read_text()) for path in Path(folder).iterdir()]
    return [seconds for each in found for seconds in each["seconds"]], found[0]["parameters"]


def compare(overrides: Sequence[str], *, ranks: int, rounds: int, steps: int) -> None:
    """Prints the seconds of a step of each training, and the ratios."""
    config = configured(overrides, ranks=ranks)
    ways = {"alone": (1, False), "apart": (ranks, True), "joined": (ranks, False)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (count, apart) in ways.items():
            own, parameters = measure(overrides, ranks=count, apart=apart, steps=steps)
            seconds[way] += own
    alone, apart, joined = (median(own) for own in seconds.values())
    print(
        f"{config.name}, {parameters / 1e6:.2f} M parameters, {config.batch_size} samples a rank, "
        f"{rounds} rounds of {steps} steps, one thread a rank, {os.cpu_count()} cores"
    )
    print(f"a step of one rank alone: {alone:.3f} s; of {ranks} apart: {apart:.3f} s; joined: {joined:.3f} s")
    print(f"weak scaling efficiency, alone / joined: {alone / joined:.2f}")
    print(
        f"of what the machine has, apart / joined: {apart / joined:.2f}; alone / apart: {alone / apart:.2f}"
    )


def main() -> None:
    """Reads the options; what is left are overrides of the training's config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    add_trained_shape(parser)
    options, typed = parser.parse_known_args()
    overrides = trained(options.shape, typed)
    if options.rank_of:
        own = {"ranks": options.rank_of, "apart": options.apart, "steps": options.steps}
        return be_rank(overrides, **own, out=options.out)
    answer_errors(lambda: compare(overrides, ranks=options.ranks, rounds=options.rounds, steps=options.steps))


if __name__ == "__main__":
    main()
