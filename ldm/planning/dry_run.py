"""What a training will take, before it is started: `python -m ldm.train +experiment=<name> dry_run=true`.

Everything is built as the training would build it, but no data are read and nothing is written: a few steps
on made-up samples (`trial.py`) tell what a step and a sample need, and how fast they go here.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Trainer
from torch import nn

from ldm.checkpoints.bundle import Bundle, BundleError, find
from ldm.codec import Codec
from ldm.config import build, build_data, plain
from ldm.data.index import FILE_NAME
from ldm.models.meta_init import meta_init
from ldm.planning.disk_room import check_needs, needs_of
from ldm.planning.trainers import make_trainer, quiet
from ldm.planning.trial import (
    MARGIN,
    Held,
    Trial,
    Trier,
    checkpointed,
    num_bytes,
    trained_parts,
)
from ldm.randomness.seeds import key_of
from ldm.stages.stage import Stage
from ldm.tokenizers import Tokenizer

MB, GB = 2**20, 2**30
CARDS = (8, 24, 80)  # GB of the GPUs that micro-batches are told for


def dry_run(config: DictConfig) -> None:
    """Prints what the training of a config takes: parameters, memory, speed, micro-batches that fit."""
    quiet()
    print(f"{config.name}: {config.summary}")
    with meta_init():
        net = build(config.model.stage.net)
    least, memory = 5 * num_bytes(net.parameters()), memory_here()  # weights, gradients, moments, average
    if least > memory:
        print(
            f"not tried: weights, gradients, optimizer and average alone take {least / GB:.1f} GB, and there "
            f"are {memory / GB:.1f} GB here; all is counted on the meta device"
        )
        frozen = parts_on_meta(config)
        print_parts({"net": net}, frozen)
        return print_held(counted(net, frozen, averages=averages_kept(config)))
    torch.manual_seed(key_of(config.seed, "weights"))
    stage, absent = made_up_stage(config)
    if (Path(config.data.root) / FILE_NAME).is_file():  # else the set is not prepared yet
        check_needs(needs_of(stage, build_data(config, stage), config.runs))
    chosen = any(module.checkpointing for module in checkpointed(stage))
    trier = Trier(
        stage=stage,
        make_trainer=partial(short_trainer, config),
        size=config.data.size,
        batch_size=config.batch_size,
        memory=memory,
    )
    tried = [
        trier.attempt(checkpointing=checkpointing, averages=averages_kept(config))
        for checkpointing in ((False, True) if checkpointed(stage) else (False,))
    ]
    trials, held = [trial for trial, _ in tried], tried[0][1]

    print(f"tried on {hardware()}, {config.trainer.precision}; 1 GB is 2^30 bytes")
    for name, path in absent.items():
        print(f"{name} at random: there is no bundle at {path} yet")
    print_parts(trained_parts(stage), stage.frozen())
    print_held(held)
    print_trials(trials, held)
    print_need(config, next(trial for trial in trials if trial.checkpointing == chosen), held)


def parts_on_meta(config: DictConfig) -> dict[str, nn.Module]:
    """The networks of the config's codec, which take no memory."""
    names = ("autoencoder", "text_encoder") if "codec" in config.model.stage else ()
    with meta_init():
        return {name.replace("_", " "): build(config[name]) for name in names}


def averages_kept(config: DictConfig) -> int:
    """How many averages of the network a training keeps."""
    return ("ema" in config.callbacks) + len(config.callbacks.get("averages", {}).get("lengths", []))


def counted(net: nn.Module, frozen: dict[str, nn.Module], *, averages: int) -> Held:
    """What a training of `net` holds by its sizes; an optimizer keeps two moments of each parameter."""
    weights = num_bytes(net.parameters())
    return Held(
        weights=weights,
        gradients=weights,
        optimizer=2 * weights,
        average=averages * weights,
        frozen=num_bytes(p for part in frozen.values() for p in part.parameters()),
    )


def short_trainer(config: DictConfig, **changes: Any) -> Trainer:
    """The trainer of a config, without all that it writes, on one device and without accumulation."""
    silent = {"enable_progress_bar": False, "limit_val_batches": 0}
    alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "accumulate_grad_batches": 1}
    return make_trainer(config, **(silent | alone | changes))


def made_up_stage(config: DictConfig) -> tuple[Stage, dict[str, str]]:
    """The stage with parts made up where data or another training would give them.

    Returns it with the path at which each network of the codec was looked for and not found.
    """
    settings, absent = plain(config.model.stage), {}
    if "codec" in settings:
        settings["codec"], absent = made_up_codec(config)
    if "tokenizer" in settings:
        settings["tokenizer"] = made_up_tokenizer(config.text_encoder)
    if "initial" in settings:
        settings["initial"] = None  # weights of the same sizes: none need to be read
    if "discriminator_start" in settings:
        settings["discriminator_start"] = 0  # with its adversary the training is at its costliest
    return build(settings), absent


def made_up_codec(config: DictConfig) -> tuple[Codec, dict[str, str]]:
    """The codec of the training; a part that was not trained yet is the config's own, at random."""
    parts, absent = {}, {}
    for name in ("autoencoder", "text_encoder"):
        path = config.codec[name]
        try:
            found = find(Path(path))
        except BundleError:
            parts[name], absent[name] = build(config[name]), path
        else:
            parts[name] = Bundle.open(found).network(name)
    ones = torch.ones(parts["autoencoder"].latent_channels)
    tokenizer = made_up_tokenizer(parts["text_encoder"])
    return Codec(**parts, tokenizer=tokenizer, latent_shift=0 * ones, latent_scale=ones), absent


def made_up_tokenizer(text_encoder: Any) -> Tokenizer:
    """A tokenizer that knows bytes alone: to the networks one is like any other of its size."""
    size = text_encoder.vocab_size
    return Tokenizer([], vocab_size=size, context_length=text_encoder.context_length, pad_id=size - 1)


def hardware() -> str:
    """The GPU's name, or the number of CPU threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"the CPU with {torch.get_num_threads()} of its threads"


def memory_here() -> int:
    """Bytes that are free on the GPU, or half of the machine's memory where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def print_parts(trained: dict[str, nn.Module], frozen: dict[str, nn.Module]) -> None:
    print("\nparameters")
    for name, part in trained.items():
        children = sorted(part.named_children(), key=lambda child: -count(child[1]))
        largest = ", ".join(f"{child} {millions(module)}" for child, module in children[:3])
        print(f"  {name:<22}{millions(part):>9}   {largest}")
    for name, part in frozen.items():
        print(f"  {name:<22}{millions(part):>9}   frozen")


def print_held(held: Held) -> None:
    print("\nheld all the time")
    for name in ("weights", "gradients", "optimizer", "average", "frozen", "together"):
        print(f"  {name:<22}{megabytes(getattr(held, name)):>9}")


def print_trials(trials: list[Trial], held: Held) -> None:
    rows = {
        "checkpointing": ["on" if trial.checkpointing else "off" for trial in trials],
        "a step": [megabytes(trial.step) for trial in trials],
        "each of its samples": [megabytes(trial.sample) for trial in trials],
        "a sample's work": [f"{trial.operations / 1e9:.1f} GFLOP" for trial in trials],
        "speed": [f"{trial.speed:.2f} a s" for trial in trials],
        "at a time": [str(trial.count) for trial in trials],
        "GPU's peak with two": [megabytes(trial.allocated) for trial in trials if trial.allocated],
    }
    print("\nat the peak of a step")
    print_rows({name: values for name, values in rows.items() if values})
    print("\nlargest micro-batch")
    print_rows({f"{card} GB": [str(trial.fitting(held, card * GB)) for trial in trials] for card in CARDS})
    print(f"  together + a step + micro-batch x sample, within {MARGIN:.0%} of the card")
    if not torch.cuda.is_available():
        print("  seen on a CPU, where attention keeps its weights: on a GPU a sample takes less")


def print_rows(rows: dict[str, list[str]]) -> None:
    for name, values in rows.items():
        print(f"  {name:<22}" + "   ".join(f"{value:>12}" for value in values).removeprefix("   "))


def print_need(config: DictConfig, trial: Trial, held: Held) -> None:
    """How the config itself stands: its batch, and the memory that it asks for."""
    accumulated = config.trainer.accumulate_grad_batches
    samples = config.steps * accumulated * config.batch_size
    print(
        f"\nas configured: {config.batch_size} x {accumulated} samples a step, checkpointing "
        f"{'on' if trial.checkpointing else 'off'}: {trial.need(held, config.batch_size) / GB:.1f} GB; "
        f"{config.steps} steps are {samples / 1e6:.2f} M samples, "
        f"{samples * trial.operations / 1e15:.2f} PFLOP, "
        f"{samples / trial.speed / 3600:.1f} hours at this speed"
    )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def millions(module: nn.Module) -> str:
    return f"{count(module) / 1e6:.2f} M"


def megabytes(number: int) -> str:
    return f"{number / MB:.1f} MB"
