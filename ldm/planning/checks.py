"""Checks before a training starts: does the trainer suit the stage, and have the disks room for its files?"""

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm import UserError
from ldm.construct import moved
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.distributed.ranks import world_size
from ldm.io.curves import LOSS
from ldm.loggers.background import say
from ldm.stages.stage import Stage

SHARDED = "ldm.distributed.sharding.Sharded"
UNEVEN = "ldm.callbacks.generation_metrics.GenerationMetrics"
GENERATING = ("ldm.callbacks.pictures.SampleGrid", UNEVEN)
MAX_STEPS = 10**7  # some hundred times the longest training
MB = 2**20
CHECKPOINTS = 3  # at most beside each other: two that are kept, and the one that is being written
COPIES = 2  # of each parameter in a checkpoint, beside the optimizer's: its value and its EMA


def check_start(stage: Stage, config: Mapping[str, Any]) -> None:
    """Refuses what would fail once the training runs, or would silently be something else.

    Raises UserError for a guidance without its weak bundle; steps out of range; float16 on a CPU; sample
    callbacks for a stage that generates nothing; shards for a stage, compiler or callback of whole weights.
    """
    if "weak" in config.get("guidance", {}):
        raise UserError(
            "guidance: a training has no weak bundle to be guided by: choose autoguidance for ldm.sample, "
            "and guidance=cfg here"
        )
    trainer = config["trainer"]
    check_steps(trainer)
    on_cpu = trainer.get("accelerator") == "cpu" or not torch.accelerator.is_available()
    # Lightning would take bfloat16 instead
    if str(trainer.get("precision")) in ("16", "16-mixed") and on_cpu:
        raise UserError(
            f"trainer.precision={trainer['precision']}: a CPU does not train in float16; write bf16-mixed, "
            "or take a GPU"
        )
    targets = {name: str(node.get("_target_", "")) for name, node in config.get("callbacks", {}).items()}
    callbacks = {name: moved(target) for name, target in targets.items()}
    generating = next((name for name, target in callbacks.items() if target in GENERATING), None)
    if generating is not None and stage.generator() is None:
        raise UserError(f"callbacks.{generating} generates pictures, {type(stage).__name__} none: remove it")
    if config.get("compile") and (dropout := getattr(stage, "dropout", 0)):
        raise UserError(
            f"compile=true: the keys of model.stage.dropout={dropout} can't be compiled: leave one out"
        )
    if moved(str(trainer.get("strategy", {}).get("_target_", ""))) == SHARDED:
        _check_shards(stage, compiled=config["compile"], callbacks=callbacks.values())


def _check_shards(stage: Stage, *, compiled: bool, callbacks: Collection[str]) -> None:
    """Refuses what `trainer=fsdp` can't train."""
    if not is_overridden("configure_model", stage):
        other = f"{type(stage).__name__} trains another network: take trainer=ddp"
        raise UserError(f"trainer=fsdp shards the denoiser of latents alone, and {other}")
    if compiled:
        raise UserError("compile=true with trainer=fsdp is not supported: take one of them, or trainer=ddp")
    if UNEVEN in callbacks:
        raise UserError(
            "callbacks: GenerationMetrics generates more batches on one rank than on another, and "
            "trainer=fsdp needs every rank for each: take trainer=ddp, or callbacks=diffusion"
        )


def check_target(config: Mapping[str, Any], stage: Stage, data: LightningDataModule) -> None:
    """Raises UserError for a `target` that no validation of the training would be compared with."""
    if config.get("target") is None:
        return
    words, trainer = f"target={config['target']} is a validation loss", config["trainer"]
    if not hasattr(stage, "fixed_loss"):
        raise UserError(f"{words} ({LOSS}), and {type(stage).__name__} has none to be compared: leave it out")
    if "target" not in config.get("callbacks", {}):
        raise UserError(f"{words}, at which callbacks.target ends the training: leave it in")
    if not is_validated(data):
        remedy = "prepare them again with val_share=0.2, or leave it out"
        raise UserError(f"{words}, and the data have no pictures to validate on: {remedy}")
    interval = trainer["val_check_interval"]
    batches = trainer["max_steps"] * trainer["accumulate_grad_batches"]
    if interval > batches:
        raise UserError(
            f"{words}, and trainer.val_check_interval={interval} leaves no validation in {batches} batches: "
            "write a smaller one"
        )


def check_steps(trainer: Mapping[str, Any]) -> None:
    """Raises UserError if `max_steps` is not a whole number from 1 to `MAX_STEPS`."""
    steps = trainer.get("max_steps", 1)
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise UserError(f"steps={steps} must lie between 1 and {MAX_STEPS} and be a whole number")


def batch_line(config: Mapping[str, Any]) -> str:
    """A line with the samples per optimizer step, and what they mean for the learning rate."""
    ranks, batch = world_size(), config["batch_size"]
    accumulated = config["trainer"]["accumulate_grad_batches"]
    return (
        f"a step: {ranks} rank{'s' * (ranks > 1)} x {batch} samples x {accumulated} accumulated = "
        f"{ranks * batch * accumulated} samples; optimizer.lr={config['optimizer']['lr']:g} is the rate of "
        "the whole step and is not scaled with the ranks: for k times the samples try sqrt(k) times the rate"
    )


def caption_lines(stage: Stage, data: LightningDataModule) -> Iterator[str]:
    """A line per split that has captions longer than the stage's tokenizer reads."""
    tokenizer, pictures = stage.tokenizer, getattr(data, "pictures", data)
    if tokenizer is not None and not isinstance(pictures, PictureData):
        yield f"captions are streamed: each is cut after {tokenizer.context_length} tokens, uncounted"
    elif tokenizer is not None:
        for split in filter(None, (pictures.train, pictures.val)):
            every = -(-len(split) // 2**15)  # more would delay each start of a large set's training
            texts = [text for number in range(0, len(split), every) for text in split.captions(number)]
            if line := tokenizer.cut_line(texts, what="caption"):
                yield f"{split.split}{f', every {every}th picture' * (every > 1)}: {line}"


def is_validated(data: LightningDataModule) -> bool:
    """Whether the data have a held-out set."""
    pictures = getattr(data, "pictures", data)
    return any(getattr(pictures, name, None) is not None for name in ("val", "validation"))


def validation_options(data: LightningDataModule) -> dict[str, Any]:
    """Options that switch a trainer's validation off if the data have no held-out set, which is printed."""
    if is_validated(data):
        return {}
    if isinstance(pictures := getattr(data, "pictures", data), PictureData):
        say(
            f"data.root={pictures.root} has no pictures to validate on: trained without validation (to hold "
            "some out, prepare the set again with val_share=0.2)"
        )
    return {"limit_val_batches": 0}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Files that are going to be written below a folder."""

    folder: Path
    place: str  # the folder as its option names it, such as `runs=runs`
    num_bytes: int  # about how much
    what: str  # the files, in words
    remedy: str  # what to type if they can't be written

    @property
    def size(self) -> str:
        """Size and kind, for messages."""
        return f"{self.num_bytes / MB:.1f} MB of {self.what}"


def needs_of(stage: Stage, data: Any, runs: str) -> list[Need]:
    """Everything that a training writes, in the order in which it is written."""
    weights = sum(parameter.nbytes for parameter in stage.parameters())
    optimizer = stage.optimizer(stage.parameters()) if hasattr(stage, "optimizer") else None
    moments = getattr(optimizer, "state_bytes", 2 * weights)  # of AdamW two a parameter
    run = Need(
        folder=Path(runs),
        place=f"runs={runs}",
        num_bytes=CHECKPOINTS * (COPIES * weights + moments) + weights,  # which is the bundle
        what="checkpoints and bundle",
        remedy="name another folder with runs=",
    )
    return [*needs_of_cache(data), run]


def needs_of_cache(data: Any) -> list[Need]:
    """Latents and text states of a data set that are still to be computed; none if all are there."""
    missing = data.missing_bytes() if isinstance(data, LatentData) else {}
    if not any(missing.values()):
        return []
    root, cache = data.pictures.train.index.root, data.pictures.train.cache
    return [
        Need(
            folder=cache,
            place=f"data.root={root}" if cache == root else f"data.cache={cache}",
            num_bytes=sum(missing.values()),
            what=" and ".join(kind for kind, number in missing.items() if number),
            remedy="name a folder for them with data.cache=<folder>, or start this training once where "
            f"{root} can be written",
        )
    ]


def check_needs(needs: Sequence[Need]) -> None:
    """Refuses folders that can't be written, and disks with too little room for all files that go there."""
    left: dict[int, int] = {}  # bytes by disk
    for need in needs:
        folder = next(each for each in (need.folder, *need.folder.absolute().parents) if each.exists())
        try:
            with tempfile.TemporaryFile(dir=folder) as stream:  # a quota can be full where a disk is not
                stream.write(b"\0" * MB)
                stream.flush()
                os.fsync(stream.fileno())
            disk = folder.stat().st_dev
            free = left.setdefault(disk, shutil.disk_usage(folder).free)
        except OSError as error:
            raise UserError(
                f"{need.place} can't be written ({error.strerror}), and the training writes {need.size} "
                f"there: {need.remedy}"
            ) from error
        if need.num_bytes > free:
            raise UserError(
                f"{need.place} has {free / MB:.1f} MB free for it, and the training writes {need.size} "
                f"there: make room, or {need.remedy}"
            )
        left[disk] -= need.num_bytes
