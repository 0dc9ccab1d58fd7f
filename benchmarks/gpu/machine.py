"""The device that is measured, how it is timed, and the sizes of what it is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from benchmarks.configs import training_config
from benchmarks.problem_sizes import EVERY, ProblemSize
from benchmarks.timing import in_turns
from ldm.planning.trial import now

SAMPLES = {"base": 64, "sd": 8}  # per step: as many as fill a large GPU and fit into 24 GB
REHEARSED = (  # a training of everything at its smallest
    "backbone=dit_tiny",
    *("backbone.depth=1", "backbone.width=32", "backbone.num_heads=2", "backbone.long_skips=false"),
    *("batch_size=2", "data.num_workers=0"),
)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it runs, and whether it is a rehearsal at toy sizes."""

    device: torch.device
    rehearsal: bool

    @classmethod
    def here(cls, *, rehearsal: bool) -> "Machine":
        """The GPU, or the CPU for a rehearsal where there is none."""
        there = torch.cuda.is_available()
        return cls(device=torch.device("cuda" if there else "cpu"), rehearsal=rehearsal or not there)

    @property
    def name(self) -> str:
        """Of the device."""
        return torch.cuda.get_device_name() if self.on_gpu else f"CPU, {torch.get_num_threads()} threads"

    @property
    def on_gpu(self) -> bool:
        """Whether it computes on a GPU."""
        return self.device.type == "cuda"

    def sizes(self, *names: str) -> dict[str, ProblemSize]:
        """The problem sizes with these names, or the toy alone."""
        if self.rehearsal:
            return {"toy": EVERY["toy"]}
        return {name: replace(EVERY[name], batch=SAMPLES[name], steps=20) for name in names}

    def configs(self, *experiments: str) -> dict[str, Any]:
        """The configs of experiments by name; in a rehearsal one of the smallest training."""
        if self.rehearsal:
            return {"toy": training_config(REHEARSED)}
        return {name: training_config([f"+experiment={name}"]) for name in experiments}

    def scaled(self, real: int, toy: int) -> int:
        """A number of things, or fewer of them in a rehearsal."""
        return toy if self.rehearsal else real

    def seconds(self, action: Callable[[], object], *, rounds: int = 5, warm: int = 2) -> float:
        """Median time of an action, its work on the device included."""
        return median(self.times({"": action}, rounds=rounds, warm=warm)[""])

    def times(
        self, actions: dict[Any, Callable[[], object]], *, rounds: int = 5, warm: int = 2
    ) -> dict[Any, list[float]]:
        """Times of several actions in turns; a rehearsal takes each once."""
        if self.rehearsal:
            rounds, warm = 1, 0
        return in_turns(actions, rounds=rounds, warm=warm, clock=now)

    def forget(self) -> None:
        """Gives memory back before the next measurement."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def largest(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Largest difference of some tensors from others, relative to the largest number of these."""
    pairs = [
        (a.detach().cpu().double(), b.detach().cpu().double()) for a, b in zip(ours, theirs, strict=True)
    ]
    size = max(b.abs().max().item() for _, b in pairs)
    return max((a - b).abs().max().item() for a, b in pairs) / max(size, 1e-30)
