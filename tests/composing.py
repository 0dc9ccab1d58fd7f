"""Hydra composes each command's config three times; tests remember the two compositions that only look.

Before a command runs, its groups are composed for `ldm.config.check` to compare what is typed with, and Hydra
composes everything only to see whether it is a sweep. Both depend on nothing but the chosen groups, and on
Hydra's own keys. The config that the command runs with is composed each time.
"""

from functools import wraps
from typing import Any

import pytest
from hydra._internal.hydra import Hydra
from omegaconf import DictConfig

from ldm import config
from ldm.construct import own_confs


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Remembers both, where all files are those of conf/: a folder of a test's own may change."""
    composed: dict[Any, DictConfig] = {}
    modes: dict[Any, Any] = {}
    compose, get_mode = config.compose, Hydra.get_mode

    @wraps(compose)
    def looked_at(name: str, overrides: list[str]) -> DictConfig:
        key = (config.CONF, name, *overrides)
        if own_confs():
            return compose(name, overrides=overrides)
        if key not in composed:
            composed[key] = compose(name, overrides=overrides)
        return composed[key]

    def mode(hydra: Hydra, config_name: str, overrides: list[str]) -> Any:
        deciding = [each for each in overrides if decides(each)]
        sources = tuple(each.path for each in hydra.config_loader.get_sources())
        key = (sources, config_name, *deciding)
        if own_confs():
            return get_mode(hydra, config_name, overrides)
        if key not in modes:
            modes[key] = get_mode(hydra, config_name, deciding)
        return modes[key]

    patch.setattr(config, "compose", looked_at)
    patch.setattr(Hydra, "get_mode", mode)


def decides(override: str) -> bool:
    """Whether an override may make a command a sweep: one of Hydra's own, or a choice of a group's file."""
    key = override.partition("=")[0].lstrip("+~").partition("@")[0]
    return key.startswith("hydra") or (config.CONF / key).is_dir()
