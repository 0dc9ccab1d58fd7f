"""The training that is ended: 40 steps of a small denoiser on latents of 20 emoji, with all its callbacks."""

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback

from benchmarks.configs import training_config
from data_prep.emoji import ASSETS, draw_validation, read_samples
from data_prep.making import write_shards
from ldm.checkpoints.training_state import newest_state
from ldm.config import build, build_data
from ldm.data.index import ShardIndex
from ldm.planning.fitting import make_trainer, quiet

STEPS, BATCH = 40, 4  # an epoch is five steps
EVERY = 3  # steps between two states
SMALL = (
    "name=chaos",
    "backbone=dit_tiny",
    "backbone.depth=1",
    "backbone.width=32",
    "backbone.num_heads=2",
    "backbone.long_skips=false",
    "callbacks=diffusion",
    "callbacks.samples.prompts=[a red apple]",
    "callbacks.samples.seeds=[0]",
    f"callbacks.saving.every={EVERY}",
    "sampler.steps=2",
    "trainer.precision=32",
    "trainer.val_check_interval=8",
    "trainer.log_every_n_steps=1",
    f"batch_size={BATCH}",
    f"steps={STEPS}",
)


def write_pictures(root: Path) -> Path:
    """24 emoji, 20 of them to train on."""
    everything = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
    captions = dict(list(everything.items())[:1440:60])
    held_out = draw_validation(list(captions), share=1 / 6, seed=0)
    root.mkdir(parents=True)
    shards = []
    for split, keys in (("train", captions.keys() - held_out), ("val", held_out)):
        samples = read_samples({key: entry for key, entry in captions.items() if key in keys})
        shards += write_shards(samples, root=root, split=split, samples_per_shard=8)
    ShardIndex(root=root, name="emoji", shards=tuple(shards)).save()
    return root


def config(pictures: Path, run_dir: Path, *overrides: str) -> DictConfig:
    """The config of `python -m ldm.train` for this training."""
    return training_config([*SMALL, f"data.root={pictures}", f"run_dir={run_dir}", *overrides])


def train(config: DictConfig, *callbacks: Callback) -> dict[str, Any]:
    """Trains in this process from the newest state, if there is one, to the end; returns the last state."""
    quiet()
    folder = Path(config.callbacks.saving.folder)
    torch.manual_seed(config.seed)
    stage = build(config.model.stage)
    data = build_data(config, stage)
    callbacks = [*build(config.callbacks).values(), *callbacks]
    trainer = make_trainer(config, callbacks=callbacks, folder=folder, enable_progress_bar=False)
    trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
    return last_state(folder)


def last_state(folder: Path) -> dict[str, Any]:
    """What the newest state holds.

    Raises:
        FileNotFoundError: there is none.
    """
    found = newest_state(folder)
    if found is None:
        raise FileNotFoundError(f"no state in {folder}")
    return torch.load(found, weights_only=True)
