"""Steps of a stage tried on random samples: the memory and operations they need, and how fast they are."""

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, UntypedStorage, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from ldm.stages.stage import Stage

SECONDS = 5.0  # how long the timed batch should take
MARGIN = 0.85  # share of a GPU's memory to plan with; the rest is for its context, workspaces, fragments


class Meter(TorchDispatchMode):
    """Counts what operators allocate and compute while it is on, on any device, forward and backward.

    A storage counts from the operator that made it until nothing holds it. Workspaces inside operators and
    the allocator's rounding are not seen. (torch's profiler sees them, but only after a run on a GPU.)

    Attributes:
        peak: most bytes alive at once, of storages made under this meter and not forgotten.
        operations: multiplications and additions of matrix products, convolutions and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.operations = 0
        self._alive: dict[int, int] = {}
        self._total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls an operator, and counts what it has made and computed."""
        kwargs = kwargs or {}
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _storages(out):
            key = id(storage)
            if key not in inputs and key not in self._alive:
                self._alive[key] = storage.nbytes()
                self._total += storage.nbytes()
                self.peak = max(self.peak, self._total)
                weakref.finalize(storage, self._leave, key).atexit = False
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **kwargs, out_val=out)
        return out

    def forget(self, tensor: Tensor) -> None:
        """Stops counting a tensor."""
        self._leave(id(tensor.untyped_storage()))

    def _leave(self, key: int) -> None:
        self._total -= self._alive.pop(key, 0)


def _storages(tree: Any) -> list[UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


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
        """Their sum."""
        return sum(astuple(self))


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Measures of steps with one and with two samples."""

    checkpointing: bool  # whether activation checkpointing was on
    step: int  # bytes of any step, whatever its samples: copies of weights in low precision, and the like
    sample: int  # bytes of each sample at the peak
    operations: int  # of a sample, forward and backward
    count: int  # samples per batch when it was timed
    speed: float  # samples per second
    allocated: int  # peak of the GPU's allocator with two samples, in bytes; 0 on a CPU

    def need(self, held: Held, count: int) -> int:
        """Bytes of a training with batches of `count` samples."""
        return held.together + self.step + count * self.sample

    def fitting(self, held: Held, memory: int) -> int:
        """The largest batch whose need is at most `MARGIN` of a memory in bytes."""
        return max(0, int(MARGIN * memory - self.need(held, 0)) // self.sample)


class Observer(Callback):
    """Meters each batch until its gradients are there; with `metering` off it only times it."""

    def __init__(self, *, metering: bool) -> None:
        self.metering = metering
        self.meters: list[Meter] = []
        self.seconds: list[float] = []
        self.running: Meter | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Hooks itself to each gradient."""
        self.hooks = [p.register_post_accumulate_grad_hook(self._leave_out) for p in pl_module.parameters()]

    def teardown(self, *_: Any, **__: Any) -> None:
        """Removes the hooks: the stage is tried again."""
        for hook in self.hooks:
            hook.remove()

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock, and a meter."""
        self.started = now()
        if self.metering:
            self.running = Meter()
            self.meters.append(self.running)
            self.running.__enter__()

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Stops the meter: what the optimizer keeps is counted in `Held`."""
        if self.running is not None:
            self.running.__exit__(None, None, None)
            self.running = None

    def on_train_batch_end(self, *_: Any) -> None:
        """Stops the clock."""
        self.seconds.append(now() - self.started)

    def _leave_out(self, parameter: Tensor) -> None:
        if self.running is not None and parameter.grad is not None:
            self.running.forget(parameter.grad)  # `Held` counts the gradients


@dataclass(frozen=True, kw_only=True)
class Trier:
    """Tries steps of a stage as a training would make them."""

    stage: Stage
    make_trainer: Callable[..., Trainer]  # make_trainer(callbacks=..., max_steps=...)
    size: int  # pixels on a side of the training's pictures
    batch_size: int  # the most samples at a time that are timed
    memory: int  # bytes that may be used

    def run(self, counts: Sequence[int], *, metering: bool) -> tuple[Observer, Trainer]:
        """Makes one step per count with so many samples; returns what an observer saw, and the trainer."""
        observer = Observer(metering=metering)
        trainer = self.make_trainer(callbacks=[observer], max_steps=len(counts))
        batches: Any = [self.stage.example_batch(count, size=self.size) for count in counts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning warns of short trainings
            trainer.fit(self.stage, DataLoader(batches, batch_size=None))
        return observer, trainer

    def attempt(self, *, checkpointing: bool, averages: int) -> tuple[Trial, Held]:
        """Meters steps of one and two samples, then times as many as `SECONDS` and the memory allow."""
        set_checkpointing(self.stage, checkpointing)
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        observer, trainer = self.run((1, 2), metering=True)
        allocated = torch.cuda.max_memory_allocated() if on_gpu else 0
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
    """Bytes that a training of the stage holds once it has made a step."""
    states = [state for optimizer in optimizers for state in optimizer.state.values()]
    return Held(
        weights=num_bytes([*stage.parameters(), *stage.buffers()]),
        gradients=num_bytes(p for p in stage.parameters() if p.requires_grad),
        optimizer=num_bytes(v for state in states for v in state.values() if isinstance(v, Tensor)),
        average=averages * num_bytes([*stage.net.parameters(), *stage.net.buffers()]),
        frozen=num_bytes(p for part in stage.frozen().values() for p in part.parameters()),
    )


def checkpointed(stage: Stage) -> list[nn.Module]:
    """The parts of a network that offer activation checkpointing."""
    return [module for module in stage.net.modules() if hasattr(module, "checkpointing")]


def set_checkpointing(stage: Stage, value: bool) -> None:
    """Switches activation checkpointing on or off in the whole network."""
    for module in checkpointed(stage):
        module.checkpointing = value  # type: ignore[assignment]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors together."""
    return sum(tensor.nbytes for tensor in tensors)


def now() -> float:
    """Seconds of a clock, once the device has finished its work."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return perf_counter()
