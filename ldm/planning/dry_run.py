"""What a training will need, before it starts: `python -m ldm.train +experiment=<name> dry_run=true`.

Everything is built as for the training, but no data are read and nothing is written. A few steps on random
samples (`trial.py`) show how much memory and time a step and a sample need on this machine.
"""

import os
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ldm.checkpoints.bundle import Bundle, BundleError, find
from ldm.codec import Codec
from ldm.config import build, build_data, plain
from ldm.data.index import FILE_NAME
from ldm.models.meta_init import meta_init
from ldm.planning.checks import MB, check_needs, needs_of
from ldm.planning.fitting import keep_freed_memory, make_trainer, quiet
from ldm.planning.trial import MARGIN, Held, Trial, Trier, checkpointed, num_bytes
from ldm.randomness.seeds import key_of
from ldm.stages.stage import Stage
from ldm.tokenizers import Tokenizer

GB = 2**30
CODEC = ("autoencoder", "text_encoder")  # networks of a codec
CARDS = (8, 24, 80)  # GB of the GPUs for which the largest micro-batch is printed
# what a training writes, and what needs several devices, is left out of the tried trainer
ALONE = {
    "enable_progress_bar": False,
    "limit_val_batches": 0,
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "accumulate_grad_batches": 1,
}


def dry_run(config: DictConfig) -> None:
    """Prints what a training needs: parameters, memory, time, and the micro-batches that fit."""
    quiet()
    keep_freed_memory()  # the steps that are tried here take the time of a training's
    print(f"{config.name}: {config.summary}")
    averages = ("ema" in config.callbacks) + len(config.callbacks.get("averages", {}).get("lengths", []))
    with meta_init():
        net = build(config.model.stage.net)
    least, memory = 5 * num_bytes(net.parameters()), memory_here()  # weights, gradients, moments, EMA
    if least > memory:
        return print_counted(config, net, averages=averages, memory=memory)
    torch.manual_seed(key_of(config.seed, "weights"))
    stage, absent = made_up_stage(config)
    if (Path(config.data.root) / FILE_NAME).is_file():  # else the set is not prepared yet
        check_needs(needs_of(stage, build_data(config, stage), config.runs))
    chosen = any(module.checkpointing for module in checkpointed(stage))
    trier = Trier(
        stage=stage,
        make_trainer=partial(make_trainer, config, **ALONE),
        size=config.data.size,
        batch_size=config.batch_size,
        memory=memory,
    )
    ways = (False, True) if checkpointed(stage) else (False,)
    tried = [trier.attempt(checkpointing=way, averages=averages) for way in ways]
    trials, held = [trial for trial, _ in tried], tried[0][1]

    on_gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else f"the CPU with {torch.get_num_threads()} threads"
    print(f"tried on {device}, {config.trainer.precision}; 1 GB is 2^30 bytes")
    for name, path in absent.items():
        print(f"{name} at random: there is no bundle at {path} yet")
    print_parts(dict(stage.named_children()), stage.frozen())
    print_held(held)
    print_trials(trials, held)
    print_need(config, next(trial for trial in trials if trial.checkpointing == chosen), held)


def print_counted(config: DictConfig, net: nn.Module, *, averages: int, memory: int) -> None:
    """Prints parameters and memory of a training that is too large to be tried here.

    Args:
        averages: copies of the network that follow it.
        memory: bytes that there are here.
    """
    weights = num_bytes(net.parameters())
    print(
        f"not tried: weights, gradients, optimizer and EMA alone take {5 * weights / GB:.1f} GB, and there "
        f"are {memory / GB:.1f} GB here; everything is counted on the meta device"
    )
    names = CODEC if "codec" in config.model.stage else ()
    with meta_init():
        frozen = {name.replace("_", " "): build(config[name]) for name in names}
    print_parts({"net": net}, frozen)
    of_frozen = num_bytes(p for part in frozen.values() for p in part.parameters())
    copies = {"gradients": weights, "optimizer": 2 * weights, "average": averages * weights}
    print_held(Held(weights=weights, **copies, frozen=of_frozen))


def made_up_stage(config: DictConfig) -> tuple[Stage, dict[str, str]]:
    """The stage with substitutes for what comes from data or other trainings.

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
        settings["discriminator_start"] = 0  # with its discriminator the training costs most
    return build(settings), absent


def made_up_codec(config: DictConfig) -> tuple[Codec, dict[str, str]]:
    """The codec of the training; a part that was not trained yet is built from the config, at random."""
    parts, absent = {}, {}
    for name in CODEC:
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
    """A tokenizer that knows single bytes only: networks cost the same with any other of its size."""
    size = text_encoder.vocab_size
    return Tokenizer([], vocab_size=size, context_length=text_encoder.context_length, pad_id=size - 1)


def memory_here() -> int:
    """Bytes that are free on the GPU, or half of the machine's memory where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def print_parts(trained: dict[str, nn.Module], frozen: dict[str, nn.Module]) -> None:
    """Prints each network's parameters, of a trained one also those of its largest parts."""
    print("\nparameters")
    for name, part in (trained | frozen).items():
        inner = part.named_children() if name in trained else ()
        children = sorted(inner, key=lambda child: -count(child[1]))
        largest = ", ".join(f"{child} {millions(module)}" for child, module in children[:3])
        if count(part):
            print(f"  {name:<22}{millions(part):>9}   {largest if name in trained else 'frozen'}")


def print_held(held: Held) -> None:
    """Prints the memory that is held from the first step to the last."""
    numbers = asdict(held) | {"together": held.together}
    print_rows("held all the time", {name: [megabytes(number)] for name, number in numbers.items()})


def print_trials(trials: list[Trial], held: Held) -> None:
    """Prints what the steps needed, one column per trial, and the batches that fit on GPUs."""
    rows = {
        "checkpointing": ["on" if trial.checkpointing else "off" for trial in trials],
        "whatever the samples": [megabytes(trial.step) for trial in trials],
        "per sample": [megabytes(trial.sample) for trial in trials],
        "operations per sample": [f"{trial.operations / 1e9:.1f} GFLOP" for trial in trials],
        "samples per second": [f"{trial.speed:.2f}" for trial in trials],
        "samples when timed": [str(trial.count) for trial in trials],
    }
    if torch.cuda.is_available():
        rows["GPU's peak, 2 samples"] = [megabytes(trial.allocated) for trial in trials]
    print_rows("at the peak of a step", rows)
    fitting = {card: [str(trial.fitting(held, card * GB)) for trial in trials] for card in CARDS}
    print_rows("largest micro-batch", {f"{card} GB": counts for card, counts in fitting.items()})
    print(f"  what is held, and the peak of a step with so many samples, fill {MARGIN:.0%} of a GPU at most")
    if not torch.cuda.is_available():
        print("  measured on a CPU, where attention stores its weights: on a GPU a sample needs less")


def print_rows(title: str, rows: dict[str, list[str]]) -> None:
    """Prints a table with a name before each row."""
    print(f"\n{title}")
    for name, values in rows.items():
        print(f"  {name:<22}" + "   ".join(f"{value:>12}" for value in values).removeprefix("   "))


def print_need(config: DictConfig, trial: Trial, held: Held) -> None:
    """Prints memory, operations and hours of the training as it is configured."""
    accumulated = config.trainer.accumulate_grad_batches
    samples = config.steps * accumulated * config.batch_size
    print(
        f"\nas configured: {config.batch_size} x {accumulated} samples per step, checkpointing "
        f"{'on' if trial.checkpointing else 'off'}: {trial.need(held, config.batch_size) / GB:.1f} GB; "
        f"{config.steps} steps are {samples / 1e6:.2f} M samples, "
        f"{samples * trial.operations / 1e15:.2f} PFLOP, "
        f"{samples / trial.speed / 3600:.1f} hours at this speed"
    )


def count(module: nn.Module) -> int:
    """Parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def millions(module: nn.Module) -> str:
    """Parameters of a module in millions."""
    return f"{count(module) / 1e6:.2f} M"


def megabytes(number: int) -> str:
    """Bytes in MB."""
    return f"{number / MB:.1f} MB"
