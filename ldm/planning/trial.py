"""Steps of a stage tried on made-up samples: what they take, and what a training holds beside them."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ldm.planning.op_counter import Meter
from ldm.stages.stage import Stage

SECONDS = 5.0  # what the batch that is timed should take
MARGIN = 0.85  # share of a card that is planned with; the rest is for its context, workspaces and fragments


@dataclass(frozen=True, kw_only=True)
class Held:
    """Bytes that a training holds from its first step to its last."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen: int

    @property
    def together(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What was seen of steps of one and of two samples.

    Attributes:
        checkpointing: whether activations were computed again.
        step: bytes of any step, whatever its samples: copies of weights in low precision, and the like.
        sample: bytes of each sample at the peak.
        operations: of a sample, forward and backward.
        count, speed: samples at a time, and a second.
        allocated: most bytes that a GPU's allocator gave out at once; 0 on a CPU.
    """

    checkpointing: bool
    step: int
    sample: int
    operations: int
    count: int
    speed: float
    allocated: int

    def need(self, held: Held, count: int) -> int:
        """Bytes of a training with `count` samples at a time."""
        return held.together + self.step + count * self.sample

    def fitting(self, held: Held, memory: int) -> int:
        """The most samples at a time whose need is at most `MARGIN` of a memory."""
        return max(0, int(MARGIN * memory - self.need(held, 0)) // self.sample)


class Observer(Callback):
    """Meters each batch until its gradients are there, or with no `metering` only times it."""

    def __init__(self, *, metering: bool) -> None:
        self.metering = metering
        self.meters: list[Meter] = []
        self.seconds: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.hooks = [p.register_post_accumulate_grad_hook(self._leave_out) for p in pl_module.parameters()]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for hook in self.hooks:
            hook.remove()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.started = now()
        self.running = Meter() if self.metering else None
        if self.running is not None:
            self.meters.append(self.running)
            self.running.__enter__()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.running is not None:
            self.running.__exit__(None, None, None)
            self.running = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.seconds.append(now() - self.started)

    def _leave_out(self, parameter: Tensor) -> None:
        if self.running is not None and parameter.grad is not None:
            self.running.forget(parameter.grad)  # a gradient is held, and counted with what is


@dataclass(frozen=True, kw_only=True)
class Trier:
    """Tries steps of a stage as a training would make them.

    Attributes:
        stage: what is trained, on pictures of `size` pixels.
        make_trainer: `make_trainer(callbacks=..., max_steps=...)`.
        batch_size: the most samples at a time that are timed.
        memory: bytes that may be used.
    """

    stage: Stage
    make_trainer: Callable[..., Trainer]
    size: int
    batch_size: int
    memory: int

    def run(self, counts: Sequence[int], *, metering: bool) -> tuple[Observer, Trainer]:
        """Steps of batches of these sizes, seen by an observer."""
        observer = Observer(metering=metering)
        trainer = self.make_trainer(callbacks=[observer], max_steps=len(counts))
        batches: Any = [self.stage.example_batch(count, size=self.size) for count in counts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Lightning says of short trainings
            trainer.fit(self.stage, DataLoader(batches, batch_size=None))
        return observer, trainer

    def attempt(self, *, checkpointing: bool, averages: int) -> tuple[Trial, Held]:
        """Steps of one and two samples metered, then as many timed as time and memory allow."""
        set_checkpointing(self.stage, checkpointing)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        observer, trainer = self.run((1, 2), metering=True)
        allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        held = held_by(self.stage, trainer.optimizers, averages=averages)
        (one, two), slow = observer.meters, min(observer.seconds[0], observer.seconds[1] / 2)
        trial = Trial(
            checkpointing=checkpointing,
            step=max(0, 2 * one.peak - two.peak),
            sample=max(1, two.peak - one.peak),
            operations=two.operations // 2,
            count=2,
            speed=1 / slow,
            allocated=allocated,
        )
        count = max(1, min(self.batch_size, trial.fitting(held, self.memory), int(SECONDS / slow)))
        observer, _ = self.run((count, count), metering=False)
        return replace(trial, count=count, speed=count / observer.seconds[1]), held


def held_by(stage: Stage, optimizers: Iterable[Optimizer], *, averages: int) -> Held:
    """What a training of the stage holds once it has made a step."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    moments = [value for state in states for value in state.values() if isinstance(value, Tensor)]
    return Held(
        weights=num_bytes([*stage.parameters(), *stage.buffers()]),
        gradients=num_bytes(p for p in stage.parameters() if p.requires_grad),
        optimizer=num_bytes(moments),
        average=averages * num_bytes([*stage.net.parameters(), *stage.net.buffers()]),
        frozen=num_bytes(p for part in stage.frozen().values() for p in part.parameters()),
    )


def trained_parts(stage: Stage) -> dict[str, nn.Module]:
    """The networks that a stage trains, by name."""
    return {name: child for name, child in stage.named_children() if any(True for _ in child.parameters())}


def set_checkpointing(stage: Stage, value: bool) -> None:
    """Switches it in every part of the network that has it."""
    for module in checkpointed(stage):
        module.checkpointing = value  # type: ignore[assignment]


def checkpointed(stage: Stage) -> list[nn.Module]:
    """The parts of a network that can compute their activations again."""
    return [module for module in stage.net.modules() if hasattr(module, "checkpointing")]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def now() -> float:
    """Seconds, once the device has done what it was asked to."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()
