"""The configs of trainings, as `ldm.train` composes them."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ldm.config import CONF


def training_config(overrides: Sequence[str]) -> DictConfig:
    """The config of a training with these overrides."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", overrides=[*overrides])
