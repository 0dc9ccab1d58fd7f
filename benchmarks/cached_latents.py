"""Training on stored latents against encoding every batch: same stage, same samples, in turns.

    python -m benchmarks.cached_latents [--shape base | +experiment=flickr_cpu] [--rounds 3] [key=value ...]

The second way is that of the usual fine-tuning scripts: each step decodes its pictures and runs the frozen
autoencoder and text encoder on them. Prints steps a second of both (median of the rounds), their ratio, and
the largest difference between what the denoiser gets (0: the batches are the same to the bit). Take the
numbers on an idle machine.
"""

import argparse
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningDataModule, Trainer
from torch.optim import Optimizer

from benchmarks.configs import add_trained_shape, trained, training_config
from benchmarks.timing import in_turns
from ldm.commands.answers import answer_errors
from ldm.config import build, build_data
from ldm.data.streaming import EncodedPictures
from ldm.planning.fitting import make_trainer
from ldm.stages.diffusion import LatentDiffusion

Batches = Iterator[dict[str, Any]]


def batches(data: LightningDataModule, trainer: Trainer) -> Batches:
    """Batches as a stage gets them, without end."""
    data.trainer = trainer
    data.prepare_data()
    data.setup("fit")
    for batch in data.train_dataloader():
        yield data.on_after_batch_transfer(batch, 0)


def train(stage: LatentDiffusion, optimizer: Optimizer, source: Batches, *, steps: int) -> None:
    """Some training steps, loading included."""
    for _ in range(steps):
        batch = next(source)
        with torch.autocast("cpu", torch.bfloat16):
            loss = stage.loss(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest difference between the tensors of two batches."""
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def compare(config: DictConfig, *, rounds: int, steps: int) -> None:
    """Prints the table."""
    stage = build(config.model.stage)
    trainer = make_trainer(config)
    trainer.strategy.connect(stage)
    stage.on_fit_start()
    stored = build_data(config, stage)
    encoded = EncodedPictures(pictures=build(config.data), codec=stage.codec)
    sources = {"stored": batches(stored, trainer), "encoded": batches(encoded, trainer)}
    print(f"largest difference of the first batches: {difference(*map(next, sources.values())):.1e}")
    optimizer = stage.configure_optimizers()["optimizer"]
    ways = {name: partial(train, stage, optimizer, own, steps=steps) for name, own in sources.items()}
    ours, theirs = (median(own) / steps for own in in_turns(ways, rounds=rounds, warm=0).values())
    threads = torch.get_num_threads()
    print(f"{config.name}, batch {config.batch_size}, {threads} threads, {rounds} rounds of {steps} steps")
    print(f"stored: {1 / ours:.2f} steps/s; encoded at each step: {1 / theirs:.2f} steps/s")
    print(f"ratio of the times, stored / encoded: {ours / theirs:.2f}")


def main() -> None:
    """Reads the options; what is left are overrides of the training's config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    add_trained_shape(parser)
    options, overrides = parser.parse_known_args()
    config = training_config(trained(options.shape, overrides))
    answer_errors(lambda: compare(config, rounds=options.rounds, steps=options.steps))


if __name__ == "__main__":
    main()
