"""The contract of a training stage, and what the stages of this package share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError, send
from ldm.data.stream import PictureBatch
from ldm.distributed.ranks import is_first, whole_state
from ldm.generators.generator import Generator
from ldm.io.curves import LOSS
from ldm.randomness import keyed
from ldm.randomness.seeds import check_seed
from ldm.stages.optim import Decay, OptimizerFactory, check_optimizer, configure
from ldm.tokenizers import Tokenizer

Weights = Mapping[str, Tensor]  # of a network, by their names
Augment = Callable[..., Tensor]  # (images, *, seed, positions) -> images
ENDLESS = "a " * 1000  # longer than any context: the largest memory that a caption can take


class Stage(Protocol):
    """A LightningModule that `ldm.train` can train; dry runs and callbacks know no more of it.

    Attributes:
        net: the network that is trained; its parameters are counted, and its EMA is kept.
        averaged: the EMA of `net`, set by `callbacks.ema`; None until then.
        tokenizer: of the captions, so that those that are cut are reported; None if none are read.
    """

    net: nn.Module
    averaged: nn.Module | None
    tokenizer: Tokenizer | None

    def example_batch(self, count: int, *, size: int) -> Mapping[str, Any]:
        """A batch of random data in the shapes of the training's, from pictures of `size` pixels a side."""
        ...

    def frozen(self) -> dict[str, nn.Module]:
        """The networks that the stage uses and doesn't train, by name."""
        ...

    def generator(self) -> Generator | None:
        """The system as it would generate pictures now; None if the stage generates none."""
        ...

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: Any) -> Path:
        """Writes the bundle of the training; returns its path.

        Every rank must call it, for each may hold a shard of the network; the first rank writes.
        """
        ...


class NetworkStage(LightningModule):
    """A stage that trains one network and generates no pictures, unless a method says otherwise.

    Args:
        optimizer, decay: the optimizer's constructor, and its learning-rate factor by step.
        seed: key of all random numbers, together with the samples' positions.

    Raises UserError for a seed, a learning rate or a schedule with wrong values.
    """

    tokenizer: Tokenizer | None = None
    loss: Callable[[Any], Tensor]  # the mean loss of a batch, by which `training_step` trains
    write: Callable[..., None]  # (path, state, *, config, data): writes the bundle with the whole `best`

    def __init__(self, *, net: nn.Module, optimizer: OptimizerFactory, decay: Decay, seed: int = 0) -> None:
        super().__init__()
        check_optimizer(optimizer, decay)
        check_seed(seed, "model.stage.seed")
        self.net = net
        # not a submodule: the callback sets it past nn.Module, so that no checkpoint holds it twice
        self.averaged: nn.Module | None = None
        self.optimizer, self.decay, self.seed = optimizer, decay, seed
        self._losses: list[Tensor] = []  # of the optimizer step so far

    @property
    def best(self) -> Any:
        """The network that is validated and saved: its EMA if one is kept."""
        return self.averaged or self.net

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """The loss of a batch; logs its mean over the optimizer step."""
        loss = self.loss(batch)
        self.log("train/loss", self._step_mean(loss, batch_idx))
        return loss

    def _step_mean(self, value: Tensor, batch_idx: int) -> Tensor:
        """Mean of losses over the micro-batches of an optimizer step so far; at the last one, over all."""
        # Lightning logs at a step's last micro-batch, and would log the loss of that one alone
        trainer = self._trainer  # null where a step is taken by hand
        if trainer is None or batch_idx % trainer.accumulate_grad_batches == 0:
            self._losses = []
        self._losses.append(value.detach())
        return torch.stack(self._losses).mean(dim=0)

    def _normal(self, like: Tensor, positions: Tensor, stream: str) -> Tensor:
        """Standard normal noise in a tensor's shape, a function of the seed and the samples' positions."""
        key = {"seed": self.seed, "positions": positions, "stream": stream}
        return keyed.normal(like.shape[1:], **key, device=like.device).to(like)

    def _of_all_ranks(self, rows: Tensor) -> Tensor:
        """The rows of all ranks one after the other; those that have a gradient pass it on."""
        if self._trainer is None or self.trainer.world_size == 1:  # null where a step is taken by hand
            return rows
        return self.all_gather(rows, sync_grads=rows.requires_grad).flatten(0, 1)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on a device, but for its positions: keys are hashed on the host."""
        host = {name: batch[name] for name in ("position",) if name in batch}
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), **host}

    def configure_optimizers(self) -> Any:
        """An optimizer for `net`, and its schedule, which advances every step."""
        # Lightning's default is every epoch, and the stream of batches has one that never ends
        optimizer, schedule = configure(self.net, self.optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def frozen(self) -> dict[str, nn.Module]:
        """None, see `Stage`."""
        return {}

    def generator(self) -> Generator | None:
        """None, see `Stage`."""
        return None

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: Any) -> Path:
        """By `write`, on the first rank; see `Stage`."""
        state = whole_state(self.best)  # on all ranks: it gathers shards
        if is_first():
            self.write(path, state, config=config, data=data)
        return path


class PictureStage(NetworkStage):
    """A stage that trains its network on pictures.

    Args:
        augment: random change of the training pictures, keyed by their positions.
        others: see `NetworkStage`.
    """

    def __init__(self, *, augment: Augment | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.augment = augment

    def _augmented(self, batch: PictureBatch) -> Tensor:
        """The pictures of a batch as the network is trained on them: uint8, b 3 h w."""
        if self.augment is None:
            return batch["image"]
        return self.augment(batch["image"], seed=self.seed, positions=batch["position"])

    def example_batch(self, count: int, *, size: int) -> Mapping[str, Any]:
        """Random pictures with captions, see `Stage`."""
        return example_pictures(count, size=size)


class ConditionedStage(NetworkStage):
    """A stage that trains some samples without their condition, which guidance needs (Ho & Salimans 2022).

    Args:
        caption_drop: share of samples trained without it.
        others: see `NetworkStage`.

    Raises UserError for a share outside [0, 1].
    """

    def __init__(self, *, caption_drop: float = 0.1, **others: Any) -> None:
        super().__init__(**others)
        check_share("caption_drop", caption_drop)
        self.caption_drop = caption_drop
        self.fixed_loss = KeyedMean()

    def _dropped(self, positions: Tensor) -> Tensor:
        """Which samples are trained without their condition: bool, b 1 1."""
        numbers = keyed.uniform(seed=self.seed, positions=positions, stream="drop")
        return send(numbers < self.caption_drop, self.device).view(-1, 1, 1)

    def _log_fixed(self, losses: Tensor, pictures: Tensor) -> None:
        """Logs the mean of a validation's losses by picture, which `target=` is compared with.

        They may depend on the pictures and the network, but not on the seed, the batch size or the ranks.
        """
        self.fixed_loss.update(losses, pictures)
        self.log(LOSS, self.fixed_loss)


def check_share(name: str, share: float) -> None:
    """Raises UserError for a share of the samples outside [0, 1]."""
    if not 0 <= share <= 1:
        raise UserError(f"{name}={share} must lie in [0, 1]: it is a share of the samples")


def example_pictures(count: int, *, size: int) -> PictureBatch:
    """Random pictures with captions that fill any context."""
    numbers = torch.arange(count)
    # bytes, as a loader hands them on: the stage makes floats of them, and what that takes counts
    image = torch.randint(256, (count, 3, size, size), dtype=torch.uint8)
    return PictureBatch(image=image, captions=[ENDLESS] * count, position=numbers, index=numbers)


class KeyedMean(Metric):
    """Mean over pictures of one number each, float64, summed in the order of their keys.

    A picture that comes twice, as when every rank validates on all of them, counts once.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("values", "keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, values: Float[Tensor, " b"], keys: Int[Tensor, " b"]) -> None:
        """Adds the numbers of some pictures, whose keys say which they are."""
        self.values.append(values.detach().double())
        self.keys.append(keys)

    def compute(self) -> Float[Tensor, ""]:
        """The mean; UserError if no picture was added."""
        if not len(self.keys):
            raise UserError("a mean over pictures needs at least one picture")
        keys, values = dim_zero_cat(self.keys), dim_zero_cat(self.values)
        order = keys.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = keys[order].diff() != 0
        return values[order][first].mean()
