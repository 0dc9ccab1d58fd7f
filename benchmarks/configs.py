"""The configs of trainings, as `ldm.train` composes them."""

from argparse import ArgumentParser
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks.problem_sizes import EVERY
from ldm.config import CONF

FOLDER = Path("/var/tmp/ldm-training")  # a folder per problem size, with what is made once


def training_config(overrides: Sequence[str]) -> DictConfig:
    """The config of a training with these overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", overrides=[*overrides])


def at_size(shape: str, folder: Path, *, pictures: int = 512, source: Path | None = None) -> list[str]:
    """Overrides of a training at a problem size, on a random pipeline and pictures that are made if need be.

    Args:
        folder: gets the pipeline, as `diffusers` and as `bundle`, and the pictures, as shards in `data`.
        pictures: how many.
        source: folder of photographs; without it, noise like photographs.
    """
    from benchmarks.loader import made, photographs, prepare
    from benchmarks.random_pipeline import make_pipeline

    make_pipeline(folder, EVERY[shape])
    data = folder / "data"
    if not (data / "shards.json").is_file():
        prepare(islice(photographs(source) if source else made(), pictures), data)
    return [*EVERY[shape].overrides(folder / "bundle"), f"data.root={data}"]


def add_trained_shape(parser: ArgumentParser) -> None:
    """Adds `--shape` for a benchmark that otherwise takes the overrides of any training."""
    told = "the training of benchmarks.training_vs_diffusers at this size, before the overrides"
    parser.add_argument("--shape", choices=EVERY, help=told)


def trained(shape: str | None, overrides: Sequence[str]) -> list[str]:
    """The overrides that `--shape` stands for, and those that were typed."""
    return [*(at_size(shape, FOLDER / shape) if shape else ()), *overrides]
