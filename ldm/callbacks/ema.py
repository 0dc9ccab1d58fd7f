"""Copies of the trained network whose weights follow it step by step, and the EMA that is made so."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from ldm import UserError
from ldm.distributed.ranks import local, whole, whole_state


class Follower:
    """A frozen copy of `stage.net`. If the network is sharded across ranks, each rank keeps its shard.

    The copy's state is whole, whatever the number of ranks, and may be loaded before the network is sharded.

    Attributes:
        net: the copy; None before `begin`.
    """

    def __init__(self) -> None:
        self.net: nn.Module | None = None
        self._original: nn.Module | None = None
        self._whole: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None

    def prepare(self, trainer: Trainer, stage: LightningModule) -> None:
        """Copies a network that is going to be sharded, before the strategy does it."""
        if hasattr(trainer.strategy, "shard"):
            self._whole = deepcopy(stage.net)

    def begin(self, trainer: Trainer, stage: LightningModule) -> None:
        """Makes the copy, equal to the network or to what was loaded."""
        copy, self._whole = self._whole, None
        net = deepcopy(stage.net) if copy is None else trainer.strategy.shard(copy)
        self.net, self._original = net.eval().requires_grad_(False), stage.net
        self._restore()

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Moves the copy's weights by a share of the way to the network's; its buffers go all the way."""
        ours, theirs = self._made, self._original
        assert theirs is not None
        torch._foreach_lerp_(*([local(p) for p in net.parameters()] for net in (ours, theirs)), share)
        for mine, yours in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(yours)

    def state(self) -> dict[str, Tensor]:
        """The copy's whole state; a collective call of all ranks."""
        return whole_state(self._made)

    def parameters(self) -> dict[str, Tensor]:
        """The copy's whole parameters by name; a collective call of all ranks."""
        return {name: whole(tensor.detach()) for name, tensor in self._made.named_parameters()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, now or when the copy is made."""
        self._loaded = state
        if self.net is not None:
            self._restore()

    def _restore(self) -> None:
        """Copies what was loaded into the copy, on each rank its shard."""
        if self._loaded is not None:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self._made, dict(self._loaded), options=options)
            self._loaded = None

    @property
    def _made(self) -> nn.Module:
        assert self.net is not None
        return self.net


class Following(Callback):
    """A callback with followers, which move once after each optimizer step.

    Attributes:
        followers: set by a subclass.
    """

    followers: Sequence[Follower]

    def __init__(self) -> None:
        self._last_step = 0

    def move(self, trainer: Trainer) -> None:
        """Updates the followers after optimizer step number `trainer.global_step`."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for follower in self.followers:
            follower.prepare(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for follower in self.followers:
            follower.begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # known only now: a resumed run restores it after on_fit_start

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step != self._last_step:  # else an accumulating batch
            self._last_step = trainer.global_step
            self.move(trainer)


class EMA(Following):
    """Keeps `stage.averaged`, an exponential moving average of `stage.net`.

    Lightning's WeightAveraging swaps the average with the network for validations and checkpoints. This copy
    is never swapped, so whatever is saved under the network's name is what was trained; and of a sharded
    network each rank averages its own shard. The decay warms up as min(decay, (1 + k) / (10 + k)) after k
    updates.

    Args:
        decay: of the average, in [0, 1).
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"{decay=} must lie in [0, 1)")
        super().__init__()
        self.decay = decay
        self.updates = 0
        self.followers = (Follower(),)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # past nn.Module's own __setattr__, which would make it a submodule, saved and switched with the stage
        object.__setattr__(pl_module, "averaged", self.followers[0].net)

    def move(self, trainer: Trainer) -> None:
        self.followers[0].follow(1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "net": self.followers[0].state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.followers[0].load(state_dict["net"])
