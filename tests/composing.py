"""Hydra merges some thirty yaml files for each config; tests merge those of each choice of files only once.

A command composes its config three times: `ldm.config.check` compares what is typed with it, Hydra checks
whether it is a sweep, and the command runs with it. What the chosen files hold is remembered, as nothing else
decides it. Hydra then sets the values that are typed in a copy of it, each time. Of what is typed, each text
is parsed once, and so is each text of a yaml file: a training reads the configs of its bundles seven times.
"""

import pickle
from copy import copy
from dataclasses import replace
from typing import Any

import pytest
from hydra._internal import config_loader_impl as hydra_loader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ldm.construct import own_confs
from ldm.io import reading


def compose_once(patch: pytest.MonkeyPatch) -> None:
    """Remembers what files were chosen and what they hold, where all are of conf/: others may change."""
    loader = hydra_loader.ConfigLoaderImpl
    choose, merge = hydra_loader.create_defaults_list, loader._compose_config_from_defaults_list
    parse = OverridesParser.parse_rule
    look = loader._process_config_searchpath  # reads the first file, which names no further folders
    chosen: dict[Any, Any] = {}
    parsed: dict[tuple[str, str], Any] = {}  # by a text and the rule that reads it
    merged: dict[int, bytes] = {}  # by the identity of a list in `chosen`

    def remembered(*, repo: Any, overrides_list: list[Override], **options: Any) -> Any:
        if own_confs():
            return choose(repo=repo, overrides_list=overrides_list, **options)
        single = [each for each in overrides_list if not each.is_sweep_override()]
        values = [each for each in single if is_value(each, repo)]
        choices = [each for each in single if not is_value(each, repo)]
        sources = (source.path for source in repo.get_sources())
        key = (*sources, *options.values(), *(each.input_line for each in choices))
        if key not in chosen:
            chosen[key] = choose(repo=repo, overrides_list=choices, **options)
        return replace(chosen[key], config_overrides=values)

    def copied(self: Any, defaults: list[Any], repo: Any) -> DictConfig:
        if own_confs():
            return merge(self, defaults, repo)
        if id(defaults) not in merged:
            merged[id(defaults)] = pickle.dumps(merge(self, defaults, repo))
        return pickle.loads(merged[id(defaults)])

    def looked(self: Any, name: str | None, overrides: list[Override], repo: Any) -> None:
        if own_confs() or any(each.key_or_group == "hydra.searchpath" for each in overrides):
            look(self, name, overrides, repo)

    def parsed_once(self: Any, text: str, rule: str) -> Any:
        if (text, rule) not in parsed:
            parsed[text, rule] = parse(self, text, rule)
        return copy(parsed[text, rule])

    patch.setattr(OverridesParser, "parse_rule", parsed_once)
    patch.setattr(loader, "_process_config_searchpath", looked)
    patch.setattr(hydra_loader, "create_defaults_list", remembered)
    patch.setattr(loader, "_compose_config_from_defaults_list", copied)


def read_once(patch: pytest.MonkeyPatch) -> None:
    """Remembers what each text of yaml holds, and gives a copy of it."""
    parse = reading.parse_yaml
    held: dict[str | bytes, bytes] = {}

    def remembered(text: str | bytes, *, name: str) -> Any:
        if text not in held:
            held[text] = pickle.dumps(parse(text, name=name))
        return pickle.loads(held[text])

    patch.setattr(reading, "parse_yaml", remembered)


def is_value(override: Override, repo: Any) -> bool:
    """Whether an override sets a value of the config, and does not choose a group's file."""
    return isinstance(override.value(), dict) or not repo.group_exists(override.key_or_group)
