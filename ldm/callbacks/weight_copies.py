"""Copies of the trained network whose weights follow it, step by step."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from ldm.distributed.ranks import local, whole, whole_state
from ldm.distributed.sharding import Sharded


class Follower:
    """A frozen copy of `stage.net`; of a network that is dealt out over ranks each rank follows its share.

    Its state is whole, whatever the number of ranks, and may be loaded before the network is dealt out.

    Attributes:
        net: the copy; null before `begin`.
    """

    def __init__(self) -> None:
        self.net: nn.Module | None = None
        self._original: nn.Module | None = None
        self._whole: nn.Module | None = None
        self._loaded: Mapping[str, Any] | None = None

    def prepare(self, trainer: Trainer, stage: LightningModule) -> None:
        """Called before the strategy sets the network up: copies it while it is whole."""
        if isinstance(trainer.strategy, Sharded):
            self._whole = deepcopy(stage.net)

    def begin(self, trainer: Trainer, stage: LightningModule) -> None:
        """Makes the copy, equal to the network or to what was loaded."""
        if isinstance(trainer.strategy, Sharded) and self._whole is not None:
            net, self._whole = trainer.strategy.deal_out(self._whole), None
        else:
            net = deepcopy(stage.net)
        self.net, self._original = net.eval().requires_grad_(False), stage.net
        self._restore()

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Moves the copy's weights by a share of the way to the network's; its buffers go all the way."""
        ours, theirs = self._made, self._original
        assert theirs is not None
        torch._foreach_lerp_(shards(ours), shards(theirs), share)
        for mine, yours in zip(ours.buffers(), theirs.buffers(), strict=True):
            mine.copy_(yours)

    def state(self) -> dict[str, Tensor]:
        """The copy's whole state; every rank must ask for it."""
        return whole_state(self._made)

    def parameters(self) -> dict[str, Tensor]:
        """The copy's whole parameters by name; every rank must ask for them."""
        return {name: whole(tensor.detach()) for name, tensor in self._made.named_parameters()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, now or when the copy is made."""
        self._loaded = state
        if self.net is not None:  # states of shards are read once these are there
            self._restore()

    def _restore(self) -> None:
        """Puts what was loaded into the copy, each rank its share."""
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
        followers: what it has; a subclass makes them.
    """

    followers: Sequence[Follower]

    def __init__(self) -> None:
        self._last_step = 0

    def move(self, trainer: Trainer) -> None:
        """What is done after a step, `trainer.global_step` of which have been taken."""
        raise NotImplementedError

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for follower in self.followers:
            follower.prepare(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for follower in self.followers:
            follower.begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step  # known only now: a resumed run restores it after on_fit_start

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step:  # else an accumulating batch
            self._last_step = trainer.global_step
            self.move(trainer)


def shards(module: nn.Module) -> list[Tensor]:
    """What this rank holds of a module's parameters."""
    return [local(parameter) for parameter in module.parameters()]
