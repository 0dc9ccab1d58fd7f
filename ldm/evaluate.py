"""Measures a bundle or any pictures: `python -m ldm.evaluate bundle=<folder> out=<new folder>`."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from ldm import UserError
from ldm.config import CONF, build, entry, plain
from ldm.construct import nearest
from ldm.evaluation.sweep import AXES, points

if TYPE_CHECKING:
    import torch


@entry("evaluate")
def main(config: DictConfig) -> None:
    """Measures a subject, or each point of a sweep; numbers, report and figures are written whole or not."""
    check_options(config)
    if config.fetch:
        return fetch_weights([*config.protocol.extractors, *(config.protocol.get("distances") or ())])
    from ldm.evaluation.command import Command
    from ldm.evaluation.ranks import Ranks
    from ldm.evaluation.report import numbers_table

    ranks = Ranks.started()
    options = plain(config)
    named = {name for each in options["protocol"]["sets"] for name in each.get("metrics", ())}
    options["metric"] = {name: node for name, node in options["metric"].items() if name in named}
    command = Command(
        options=options,
        build=build,
        sampler_node=sampler_node,
        device=choose_device(config.device),
        ranks=ranks,
    )
    if config.list_prompts is not None:
        count = command.list_prompts(Path(config.list_prompts))
        return print(f"{config.list_prompts}: {count} pictures to draw")
    if config.write_statistics is not None:
        found = command.write_statistics(Path(config.write_statistics))
        return print(f"{config.write_statistics}: {found.features} of {found.count} pictures")
    if any(config.sweep.values()):
        table = numbers_table(command.sweep(), axes=AXES)
    else:
        table = numbers_table(command.measure()["rows"])
    if ranks.number == 0:
        print(table)
        print(f"report: {Path(config.out) / 'report.md'}")


def check_options(config: DictConfig) -> None:
    """What can be refused before anything heavy loads.

    Raises:
        UserError: an option outside its range, or a folder that is there already.
    """
    if config.steps is not None and not isinstance(config.steps, int):
        raise UserError(f"steps={config.steps} must be a whole number, or null for the bundle's")
    if config.scale is not None and not isinstance(config.scale, int | float):
        raise UserError(f"scale={config.scale} must be a number, or null for the bundle's")
    if config.ema_length is not None and not isinstance(config.ema_length, int | float):
        raise UserError(f"ema_length={config.ema_length} must be a number, or null for the bundle's")
    if config.ema_length is not None and (config.pictures or config.real):
        raise UserError("ema_length is of a bundle, and pictures or real name others: leave one of them out")
    if config.show < 1:
        raise UserError(f"show={config.show} must be at least 1")
    if config.pictures is not None and config.real is not None:
        raise UserError("pictures and real both say what is measured: give one of them")
    if any(config.sweep.values()) and (config.pictures or config.real):
        raise UserError(
            "a sweep draws, and what pictures or real name is there already: leave one of them out"
        )
    if config.reference is not None and config.statistics is not None:
        raise UserError("reference and statistics both say what pictures are held against: give one of them")
    if config.write_statistics is not None:
        return check_new_statistics(config)
    points(plain(config.sweep))
    for name in config.sweep.samplers or ():
        sampler_node(name)
    if config.list_prompts is None and os.path.lexists(config.out):
        raise UserError(f"out={config.out} exists already: name a new folder with out=<folder>, or remove it")


def check_new_statistics(config: DictConfig) -> None:
    """What can be refused of a file of statistics to write.

    Raises:
        UserError: a name that doesn't end with .npz or is taken, or statistics to make statistics of.
    """
    path = Path(config.write_statistics)
    if path.suffix != ".npz":
        raise UserError(f"write_statistics={path} must end with .npz")
    if os.path.lexists(path):
        raise UserError(f"write_statistics={path} exists already: name a new file, or remove it")
    if config.statistics is not None:
        raise UserError("write_statistics takes real pictures, not statistics: leave statistics out")


def fetch_weights(names: Iterable[str]) -> None:
    """Downloads what feature networks with these names need, on a machine that has a network."""
    from ldm.metrics.weights import KNOWN, describe, fetch

    names = list(names)
    if wanted := [name for name in names if name in KNOWN]:
        print(describe(wanted), flush=True)  # with size and licence, before the first byte comes
    for name in names:
        print(f"{name}: {fetch(name) if name in KNOWN else 'nothing to fetch'}")


def sampler_node(name: str) -> dict[str, Any]:
    """The config of a sampler in conf/sampler.

    Raises:
        UserError: there is no such sampler.
    """
    names = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))
    if name not in names:
        raise UserError(f"sweep.samplers: there is no sampler {name!r}{nearest(name, names)}")
    return plain(OmegaConf.load(CONF / "sampler" / f"{name}.yaml"))


def choose_device(name: str) -> "torch.device":
    """`auto` is the GPU where there is one.

    Raises:
        UserError: an unknown name, or a GPU that isn't there.
    """
    import torch

    gpu = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda") or (name == "cuda" and not gpu):
        raise UserError(f"device={name} is unknown or not there: write device=auto or device=cpu")
    return torch.device("cuda" if gpu and name != "cpu" else "cpu")


if __name__ == "__main__":
    main()
