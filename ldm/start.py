"""What a training tells before its first step, and what it refuses: trainers that don't suit its stage."""

from collections.abc import Mapping
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_helpers import is_overridden

from ldm.distributed import world_size

SHARDED = "ldm.sharding.Sharded"
UNEVEN = "ldm.callbacks.generation_metrics.GenerationMetrics"


def batch_line(config: Mapping[str, Any]) -> str:
    """The samples of an optimizer step, and what that means for the learning rate."""
    ranks, batch = world_size(), config["batch_size"]
    accumulated = config["trainer"]["accumulate_grad_batches"]
    return (
        f"a step: {ranks} rank{'s' * (ranks > 1)} x {batch} samples x {accumulated} accumulated = "
        f"{ranks * batch * accumulated} samples; optimizer.lr={config['optimizer']['lr']:g} is the rate of "
        "the whole step and is not scaled with the ranks: for k times the samples try sqrt(k) times the rate"
    )


def check_start(stage: LightningModule, config: Mapping[str, Any]) -> None:
    """Refuses what would fail, or would not be what it seems, once the training runs.

    Raises:
        ValueError: shards for a stage, a compiler or a callback that wants whole weights.
    """
    if config["trainer"].get("strategy", {}).get("_target_") != SHARDED:
        return
    if not is_overridden("configure_model", stage):
        raise ValueError(
            "trainer=fsdp shards the denoiser alone, and this stage trains another network: take trainer=ddp"
        )
    if config["compile"]:
        raise ValueError("compile=true with trainer=fsdp is not supported: take one of them, or trainer=ddp")
    if any(callback["_target_"] == UNEVEN for callback in config["callbacks"].values()):
        raise ValueError(
            "callbacks: GenerationMetrics draws more batches on one rank than on another, and trainer=fsdp "
            "wants every rank for each: take trainer=ddp, or callbacks=diffusion"
        )
