"""Describes a generator to the page and to API clients, using nothing but the `Generator` protocol."""

from collections.abc import Mapping
from contextlib import suppress
from inspect import signature
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import CONFIG, Bundle
from ldm.checkpoints.provenance import published
from ldm.config import options
from ldm.generators.generator import Generator, Opened
from ldm.io.fields import Fields
from ldm.io.reading import read_yaml
from ldm.sampling.record import first, short

GROUPS = ("sampler", "grid", "guidance")  # options that name a file of conf/
NOT_OFFERED = ("autoguidance", "internal")  # need a path, or a network with an early head
MOST = 12  # prompts to click on
SHIPPED = (  # prompts that the shipped model follows well from any seed
    *("red apple", "sailboat", "owl", "birthday cake", "fox"),
    *("penguin", "butterfly", "snowman", "cherry blossom"),
)


def described(name: str, opened: Opened) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it; `name` is its id."""
    generator = opened.generator
    default = defaults(generator)
    known = [option for option, value in default.items() if takes(generator, option, value)]
    return {
        "id": name,
        "name": published(opened.bundle.place),
        "sha256": opened.bundle.sha256,
        "size": generator.size,
        "parameters": generator.num_parameters,
        "default": {option: short(default[option]) for option in known},
        "options": known,
        "choices": choices(known),
        "starts_from_pictures": generator.starts_from_pictures,
        "presets": presets(default["steps"] if "steps" in known else None),
        "preview": "watch" in signature(generator.__call__).parameters,
        "examples": examples_of(opened.bundle),
    }


def examples_of(bundle: Bundle) -> list[str]:
    """Prompts to click on: those of the sample grids of the run that a bundle lies in, if it lies in one."""
    if bundle.place == "shipped":
        return list(SHIPPED)
    with suppress(UserError):
        return run_config(bundle).mapping("callbacks").mapping("samples").texts("prompts")[:MOST]
    return []


def run_config(bundle: Bundle) -> Fields:
    """The config of the run that a bundle lies in; empty where it lies in none, or the config is damaged."""
    config = bundle.path.parent / CONFIG
    with suppress(OSError, UserError):
        return Fields.of(read_yaml(config), name=str(config))
    return Fields(str(config), {})


def defaults(generator: Generator) -> dict[str, Any]:
    """The options that a page offers, with their values in the settings of a generator."""
    settings = generator.settings()
    found = {"negative": ""} | {option: first(settings, option) for option in ("scale", "steps", *GROUPS)}
    found |= {option: value for option, value in settings.items() if type(value) in (int, float)}
    return {option: value for option, value in found.items() if value is not None}


def takes(generator: Generator, option: str, value: Any) -> bool:
    """Whether a generator has an option: it is asked for the value that it has."""
    try:
        generator.with_options(**{option: value})
    except UserError:
        return False
    return True


def choices(known: list[str]) -> dict[str, list[str]]:
    """The names that a request may choose from, for the options that have names."""
    return {
        group: [name for name in options(group) if name not in NOT_OFFERED]
        for group in GROUPS
        if group in known
    }


def presets(steps: int | None) -> Mapping[str, dict[str, int]]:
    """The options of fast, balanced and best: a quarter, a half and all of the default's steps."""
    if steps is None:
        return {"fast": {}, "balanced": {}, "best": {}}
    return {
        "fast": {"steps": min(steps, max(4, steps // 4))},
        "balanced": {"steps": min(steps, max(8, steps // 2))},
        "best": {"steps": steps},
    }
