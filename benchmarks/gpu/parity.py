"""The same numbers on the GPU as on the CPU: noise to the bit, all else within stated bounds."""

from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.gpu.machine import Machine, largest
from benchmarks.gpu.rows import Row, bounded
from ldm.data.stream import LatentBatch
from ldm.planning.dry_run import made_up_stage
from ldm.randomness import keyed
from ldm.stages.diffusion import LatentDiffusion

SAMPLES, STEPS = 2, 10
# Relative to the largest number. In float32 the terms of sums round in another order; AdamW divides by roots
# of squares, which are almost 0 for some weights, so its first steps enlarge such differences.
FORWARD, LOSS, TRAINED, SAMPLED, HALF = 1e-4, 1e-4, 1e-2, 1e-3, 5e-2


def parity(machine: Machine) -> Iterator[Row]:
    """Rows of noise, forward pass, loss, ten training steps and a sampler, in float32 without TF32."""
    yield noise(machine)
    (config,) = machine.configs("flickr_base").values()
    torch.manual_seed(0)
    stage, _ = made_up_stage(config)
    for parameter in stage.net.parameters():  # none at the zeros that training starts from
        parameter.data += 0.02 * torch.randn_like(parameter)
    batch = stage.example_batch(SAMPLES, size=config.data.size)
    precise, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        stages = [placed(deepcopy(stage), machine.device), placed(stage, torch.device("cpu"))]
        yield from passes(stages, batch)
        samples = [each.generator().with_options(steps=STEPS).latents(["a"], [3]) for each in stages]
        yield bounded(f"sampler, {STEPS} steps: latents differ by", largest(*([x] for x in samples)), SAMPLED)
        yield from steps(stages, batch)
    finally:
        torch.backends.cudnn.allow_tf32 = precise


def noise(machine: Machine) -> Row:
    """Numbers of the counter-based generator that differ in a bit."""
    key = {"seed": 1, "positions": torch.tensor([0, 7, 2**40]), "stream": "noise"}
    shape = (4, 64, 64)
    ours = keyed.normal(shape, **key, device=machine.device).cpu()
    return bounded("noise: numbers that differ", (ours != keyed.normal(shape, **key)).sum().item(), 0)


def placed(stage: LatentDiffusion, device: torch.device) -> LatentDiffusion:
    """A stage on a device, ready to train."""
    stage.to(device)
    stage.on_fit_start()
    return stage


def passes(stages: list[LatentDiffusion], batch: LatentBatch) -> Iterator[Row]:
    """The forward pass in float32 and bfloat16, and the loss."""
    outputs, halves, losses = [], [], []
    for stage in stages:
        own, device = stage.transfer_batch_to_device(batch, stage.device, 0), stage.device
        inputs = own["mean"], torch.full((SAMPLES,), 500.0, device=device), own["context"]
        with torch.no_grad():
            outputs.append(stage.net(*inputs))
            losses.append(stage.loss(own))
            with torch.autocast(device.type, torch.bfloat16):
                halves.append(stage.net(*inputs).float())
    yield bounded("forward pass, float32: differs by", largest(outputs[:1], outputs[1:]), FORWARD)
    yield bounded("forward pass, bfloat16: differs from float32 by", largest(halves[:1], outputs[1:]), HALF)
    yield bounded("loss: differs by", largest(losses[:1], losses[1:]), LOSS)


def steps(stages: list[LatentDiffusion], batch: LatentBatch) -> Iterator[Row]:
    """Losses of training steps, and the weights after them."""
    ours, theirs = (trained(stage, batch) for stage in stages)
    yield bounded(f"{STEPS} training steps: losses differ by", largest([ours], [theirs]), TRAINED)
    weights = [list(stage.net.parameters()) for stage in stages]
    yield bounded(f"{STEPS} training steps: weights differ by", largest(*weights), TRAINED)


def trained(stage: LatentDiffusion, batch: LatentBatch) -> Tensor:
    """The losses of training steps, whose noise and timesteps differ."""
    optimizer = stage.configure_optimizers()["optimizer"]
    own, losses = stage.transfer_batch_to_device(batch, stage.device, 0), []
    for number in range(STEPS):
        loss = stage.loss({**own, "position": batch["position"] + number * SAMPLES})
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)
