"""Measures a bundle or any pictures: `python -m ldm.evaluate bundle=<folder> out=<new folder>`."""

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ldm import UserError
from ldm.config import CONF, build, entry, plain
from ldm.construct import nearest

if TYPE_CHECKING:
    import torch

AXES = {  # list of a sweep -> axis: the key of the config that it varies
    "bundles": "bundle",
    "ema_lengths": "ema_length",
    "samplers": "sampler",
    "num_steps": "steps",
    "scales": "scale",
}
WANTED = {int: "a whole number", int | float: "a number"}  # what an option must be, in words


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Measures a subject, or each point of a sweep; numbers, report and figures are written whole or not."""
    check_options(config)
    if config.fetch:
        return fetch_weights([*config.protocol.extractors, *(config.protocol.get("distances") or ())])
    from ldm.evaluation.command import Command  # seconds of torch that a refusal does without
    from ldm.evaluation.feature_pass import Ranks
    from ldm.evaluation.report import numbers_table

    ranks = Ranks.started()
    options = plain(config)
    named = {name for each in options["protocol"]["sets"] for name in each.get("metrics", ())}
    options["metric"] = {name: node for name, node in options["metric"].items() if name in named}
    command = Command(options=options, build=build, device=choose_device(config.device), ranks=ranks)
    if config.list_prompts is not None:
        count = command.list_prompts(Path(config.list_prompts))
        return print(f"{config.list_prompts}: {count} pictures to generate")
    if config.write_statistics is not None:
        found = command.write_statistics(Path(config.write_statistics))
        return print(f"{config.write_statistics}: {found.features} of {found.count} pictures")
    is_sweep = any(config.sweep.values())
    if is_sweep:
        samplers = {name: sampler_node(name) for name in config.sweep.samplers or ()}
        rows = command.sweep(points(options["sweep"]), samplers=samplers)
    else:
        rows = command.measure()["rows"]
    if ranks.number == 0:
        print(numbers_table(rows, axes=[*AXES.values()] if is_sweep else ()))
        print(f"report: {Path(config.out) / 'report.md'}")


def check_options(config: DictConfig) -> None:
    """Refuses options outside their range, or a folder that is there already, before anything heavy loads."""
    there = config.pictures is not None or config.real is not None
    for name, kind in {"steps": int, "scale": int | float, "ema_length": int | float}.items():
        if config[name] is not None and not isinstance(config[name], kind):
            raise UserError(f"{name}={config[name]} must be {WANTED[kind]}, or null for the bundle's")
    if config.ema_length is not None and there:
        raise UserError("ema_length applies only to a bundle: leave it out, or leave out pictures and real")
    if config.show < 1:
        raise UserError(f"show={config.show} must be at least 1")
    if OmegaConf.is_list(config.bundle):
        check_bundles(config.bundle, alone=not there and not any(config.sweep.values()))
    if config.pictures is not None and config.real is not None:
        raise UserError("pictures and real both say what is measured: give one of them")
    if any(config.sweep.values()) and there:
        raise UserError("a sweep generates pictures, and pictures and real name some: leave one of them out")
    if config.reference is not None and config.statistics is not None:
        raise UserError("reference and statistics both name the reference set: give one of them")
    if config.write_statistics is not None and config.statistics is not None:
        raise UserError("write_statistics takes real pictures, not statistics: leave statistics out")
    if config.write_statistics is not None and Path(config.write_statistics).suffix != ".npz":
        raise UserError(f"write_statistics={config.write_statistics} must end with .npz")
    written = [name for name in ("list_prompts", "write_statistics") if config[name] is not None]
    for name in written or ["out"]:
        if os.path.lexists(config[name]):
            raise UserError(f"{name}={config[name]} exists already: choose another name, or remove it")
    points(plain(config.sweep))
    for name in config.sweep.samplers or ():
        sampler_node(name)


def check_bundles(bundles: Sequence[Any], *, alone: bool) -> None:
    """Refuses a list of bundles that isn't one of names, or that stands beside another subject or a sweep."""
    if not bundles or not all(isinstance(each, str) for each in bundles):
        raise UserError(f"bundle={list(bundles)} must name trainings of a recipe, as bundle=[runs/a,runs/b]")
    if not alone:
        raise UserError("a list of bundles is one subject: leave out pictures, real and the sweep")


def points(lists: Mapping[str, Sequence[Any] | None]) -> list[dict[str, Any]]:
    """All combinations of a sweep's values by axis, None for a list that is null; UserError for no list."""
    for name, values in lists.items():
        if name not in AXES:
            raise UserError(f"sweep.{name} is unknown: a sweep has {', '.join(AXES)}")
        if values is not None and (not isinstance(values, list) or not values):
            raise UserError(
                f"sweep.{name}={values} must be a list with a value or more, as sweep.scales=[1,2,4]"
            )
    combinations = product(*(lists.get(name) or [None] for name in AXES))
    return [dict(zip(AXES.values(), values, strict=True)) for values in combinations]


def fetch_weights(names: Iterable[str]) -> None:
    """Downloads what feature networks with these names need, on a machine that has a network."""
    from ldm.metrics.weights import KNOWN, describe, fetch

    names = list(names)
    if wanted := [name for name in names if name in KNOWN]:
        print(describe(wanted), flush=True)  # with size and licence, before the first byte comes
    for name in names:
        print(f"{name}: {fetch(name) if name in KNOWN else 'nothing to fetch'}")


def sampler_node(name: str) -> dict[str, Any]:
    """The config of a sampler in conf/sampler; UserError where there is no such sampler."""
    names = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
    if name not in names:
        raise UserError(f"sweep.samplers: there is no sampler {name!r}{nearest(name, names)}")
    return plain(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"))


def choose_device(name: str) -> "torch.device":
    """`auto` is the GPU where there is one; UserError for an unknown name, or a GPU that isn't there."""
    import torch

    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise UserError(f"device={name} is unknown or not there: write device=auto or device=cpu")
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


if __name__ == "__main__":
    main()
