"""Copies of the trained network that follow it step by step: its EMA, and averages for post-hoc EMA."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from ldm import UserError
from ldm.callbacks.saving import settle
from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of
from ldm.distributed.ranks import local, whole, whole_state
from ldm.io.writing import sweep


class Follower:
    """A frozen copy of `stage.net`. If the network is sharded across ranks, each rank keeps its shard.

    The copy's state is whole, whatever the number of ranks, and may be loaded before the network is sharded.

    Attributes:
        net: the copy, from `begin` on.
    """

    net: nn.Module

    def __init__(self) -> None:
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
        self.net = net.eval().requires_grad_(False)
        self._restore()

    @torch.no_grad()
    def follow(self, original: nn.Module, share: float) -> None:
        """Moves the copy's weights by a share of the way to the network's; its buffers go all the way."""
        # one fused call on each rank's own shards: an average needs no communication
        weights = ([local(p) for p in net.parameters()] for net in (self.net, original))
        torch._foreach_lerp_(*weights, share)
        for mine, theirs in zip(self.net.buffers(), original.buffers(), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """The copy's whole state; a collective call of all ranks."""
        return whole_state(self.net)

    def parameters(self) -> dict[str, Tensor]:
        """The copy's whole parameters by name; a collective call of all ranks."""
        return {name: whole(tensor.detach()) for name, tensor in self.net.named_parameters()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over a state, now or when the copy is made."""
        self._loaded = state
        if hasattr(self, "net"):
            self._restore()

    def _restore(self) -> None:
        """Copies what was loaded into the copy, on each rank its shard."""
        if self._loaded is not None:
            options = StateDictOptions(full_state_dict=True)
            set_model_state_dict(self.net, dict(self._loaded), options=options)
            self._loaded = None


class Following(Callback, ABC):
    """A callback whose followers, which a subclass sets, move once after each optimizer step."""

    followers: Sequence[Follower]

    def __init__(self) -> None:
        self._last_step = 0

    @abstractmethod
    def move(self, trainer: Trainer, net: nn.Module) -> None:
        """Updates the followers of a network after optimizer step number `trainer.global_step`."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepares the followers."""
        for follower in self.followers:
            follower.prepare(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the copies."""
        for follower in self.followers:
            follower.begin(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the step, which is known only now: a resumed run restores it after `on_fit_start`."""
        self._last_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Moves the followers, unless the batch was only accumulated."""
        if trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self.move(trainer, pl_module.net)


class EMA(Following):
    """Keeps `stage.averaged`, an exponential moving average of `stage.net`.

    Lightning's WeightAveraging swaps the average with the network for validations and checkpoints. This copy
    is never swapped, so whatever is saved under the network's name is what was trained; and of a sharded
    network each rank averages its own shard. The decay after k updates is min(decay, (1 + k) / (10 + k)), in
    which `decay` lies in [0, 1).
    """

    def __init__(self, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"{decay=} must lie in [0, 1)")
        super().__init__()
        self.decay = decay
        self.updates = 0
        self.followers = (Follower(),)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the copy and gives it to the stage."""
        super().on_fit_start(trainer, pl_module)
        # past nn.Module's own __setattr__, which would make it a submodule, saved and switched with the stage
        object.__setattr__(pl_module, "averaged", self.followers[0].net)

    def move(self, trainer: Trainer, net: nn.Module) -> None:
        """One update of the average."""
        self.followers[0].follow(net, 1 - min(self.decay, (1 + self.updates) / (10 + self.updates)))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The number of updates and the average."""
        return {"updates": self.updates, "net": self.followers[0].state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self.updates = state_dict["updates"]
        self.followers[0].load(state_dict["net"])


class PowerAverages(Following):
    """Keeps averages of `stage.net` that weigh step s as s**gamma, and writes them now and then.

    Karras et al. 2024, eq. 1; `checkpoints/power_average.py` combines what was written into an average of any
    length between these and somewhat beyond. Two lengths are enough; each costs memory for the network once
    more. A resumed run writes the same bytes.

    Args:
        lengths: standard deviation of each average's profile, as a share of the training; none switches the
            callback off.
        every: steps between two writings; the last step is written, too.
    """

    def __init__(self, *, lengths: Sequence[float], every: int, folder: str) -> None:
        if every < 1:
            raise UserError(f"callbacks.averages.{every=} must be at least 1 step")
        super().__init__()
        self.every, self.averages = every, Averages(Path(folder))
        self.by_length = {length: Follower() for length in lengths}
        self.exponents = {length: exponent_of(length) for length in lengths}
        self.followers = [*self.by_length.values()]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes the copies, and removes what a killed writer left in their folder."""
        super().on_fit_start(trainer, pl_module)
        if trainer.is_global_zero:
            sweep(self.averages.folder, below=self.averages.folder.parent)

    def move(self, trainer: Trainer, net: nn.Module) -> None:
        """Updates all averages, and writes them every `every` steps and at the last one."""
        step = trainer.global_step
        for length, follower in self.by_length.items():
            follower.follow(net, 1 - decay(step, self.exponents[length]))
            if step % self.every == 0 or step == trainer.max_steps:
                settle(trainer)
                parameters = follower.parameters()  # of all ranks
                if trainer.is_global_zero:
                    self.averages.write(Profile(step, length), parameters)

    def state_dict(self) -> dict[str, Any]:
        """Each average by its length."""
        return {f"{length:g}": follower.state() for length, follower in self.by_length.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; raises UserError for averages of other lengths."""
        own = {f"{length:g}": follower for length, follower in self.by_length.items()}
        if own.keys() != state_dict.keys():
            raise UserError(
                f"callbacks.averages.lengths={sorted(own)} are not those of the checkpoint, "
                f"{sorted(state_dict)}: averages can't begin in the middle of a training"
            )
        for length, follower in own.items():
            follower.load(state_dict[length])
