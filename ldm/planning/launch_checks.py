"""Checks before a training, of trainers that don't suit it, and what is printed at its start."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm import UserError
from ldm.construct import MOVED
from ldm.data.datamodule import PictureData
from ldm.distributed.ranks import is_first, world_size
from ldm.stages.stage import Stage
from ldm.tokenizers import cut_line

SHARDED = "ldm.distributed.sharding.Sharded"
UNEVEN = "ldm.callbacks.generation_metrics.GenerationMetrics"
MAX_STEPS = 10**7  # some hundred times the longest training
GENERATING = ("ldm.callbacks.sample_grid.SampleGrid", UNEVEN)


def batch_line(config: Mapping[str, Any]) -> str:
    """The samples of an optimizer step, and what that means for the learning rate."""
    ranks, batch = world_size(), config["batch_size"]
    accumulated = config["trainer"]["accumulate_grad_batches"]
    return (
        f"a step: {ranks} rank{'s' * (ranks > 1)} x {batch} samples x {accumulated} accumulated = "
        f"{ranks * batch * accumulated} samples; optimizer.lr={config['optimizer']['lr']:g} is the rate of "
        "the whole step and is not scaled with the ranks: for k times the samples try sqrt(k) times the rate"
    )


def caption_lines(stage: Stage, data: LightningDataModule) -> Iterator[str]:
    """What there is to tell, a line a split, of captions that are longer than the stage's tokenizer reads."""
    tokenizer, pictures = stage.tokenizer, getattr(data, "pictures", data)
    if tokenizer is None:
        return
    if not isinstance(pictures, PictureData):
        yield f"captions are streamed: beyond {tokenizer.context_length} tokens each is cut, and not counted"
        return
    for split in (pictures.train, pictures.val):
        texts = [text for own in split.texts() for text in own] if split else []
        if line := cut_line(tokenizer, texts, what="caption"):
            yield f"{split.split}: {line}"


def validation_options(data: LightningDataModule) -> dict[str, Any]:
    """A trainer's options for its data: without validation, which is said, where there is nothing for it."""
    pictures = getattr(data, "pictures", data)
    if getattr(pictures, "val", None) is not None or getattr(pictures, "validation", None) is not None:
        return {}
    if is_first() and isinstance(pictures, PictureData):
        print(
            f"data.root={pictures.root} has no pictures to validate on: trained without validation (to hold "
            "some out, prepare the set again with val_share=0.2)",
            flush=True,
        )
    return {"limit_val_batches": 0}


def check_start(stage: Stage, config: Mapping[str, Any]) -> None:
    """Refuses what would fail, or would not be what it seems, once the training runs.

    Raises:
        UserError: a guidance that a training can't draw with; float16 on a CPU; shards for a stage, a
            compiler or a callback that wants whole weights.
    """
    if "weak" in config.get("guidance", {}):
        raise UserError(
            "guidance: a training has no weak bundle to be guided by: choose autoguidance for ldm.sample, "
            "and guidance=cfg here"
        )
    check_steps(config["trainer"])
    check_precision(config["trainer"])
    for name, callback in config.get("callbacks", {}).items():
        if callback["_target_"] in GENERATING and stage.generator() is None:
            raise UserError(
                f"callbacks.{name} generates pictures, which {type(stage).__name__} does not: remove it"
            )
    strategy = config["trainer"].get("strategy", {}).get("_target_")
    if MOVED.get(strategy, strategy) != SHARDED:
        return
    if not is_overridden("configure_model", stage):
        raise UserError(
            "trainer=fsdp shards the denoiser alone, and this stage trains another network: take trainer=ddp"
        )
    if config["compile"]:
        raise UserError("compile=true with trainer=fsdp is not supported: take one of them, or trainer=ddp")
    if any(callback["_target_"] == UNEVEN for callback in config["callbacks"].values()):
        raise UserError(
            "callbacks: GenerationMetrics draws more batches on one rank than on another, and trainer=fsdp "
            "wants every rank for each: take trainer=ddp, or callbacks=diffusion"
        )


def check_steps(trainer: Mapping[str, Any]) -> None:
    """Refuses a number of steps that no training takes.

    Raises:
        UserError: it is no whole number from 1 to `MAX_STEPS`.
    """
    steps = trainer.get("max_steps", 1)
    if type(steps) is not int or not 1 <= steps <= MAX_STEPS:
        raise UserError(f"steps={steps} must lie between 1 and {MAX_STEPS} and be a whole number")


def check_precision(trainer: Mapping[str, Any]) -> None:
    """Refuses float16 where Lightning would take bfloat16 in its place.

    Raises:
        UserError: float16 on a CPU.
    """
    precision = trainer.get("precision")
    on_cpu = trainer.get("accelerator") == "cpu" or not torch.accelerator.is_available()
    if str(precision) in ("16", "16-mixed") and on_cpu:
        raise UserError(
            f"trainer.precision={precision}: a CPU does not train in float16; write bf16-mixed, or take a GPU"
        )
