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

from ldm import UserError
from ldm.data.stream import PictureBatch
from ldm.generators.generator import Generator
from ldm.io.curves import LOSS
from ldm.randomness import keyed
from ldm.randomness.seeds import check_seed
from ldm.stages.optim import Decay, OptimizerFactory, StepMean, check_optimizer, configure
from ldm.tokenizers import Tokenizer

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
    """A stage that trains one network on pictures and generates none, unless a method says otherwise.

    Args:
        net: the network that is trained.
        optimizer, decay: the optimizer's constructor, and its learning-rate factor by step.
        augment: random change of the training pictures, keyed by their positions.
        seed: key of all random numbers, together with the samples' positions.

    Raises UserError for a seed, a learning rate or a schedule with wrong values.
    """

    tokenizer: Tokenizer | None = None
    fixed_loss: "KeyedMean"  # only where `_log_fixed` is called

    def __init__(
        self,
        *,
        net: nn.Module,
        optimizer: OptimizerFactory,
        decay: Decay,
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_optimizer(optimizer, decay)
        check_seed(seed, "model.stage.seed")
        self.net = net
        # not a submodule: the callback sets it past nn.Module, so that no checkpoint holds it twice
        self.averaged: nn.Module | None = None
        self.optimizer, self.decay, self.augment, self.seed = optimizer, decay, augment, seed
        self._step_mean = StepMean()

    @property
    def best(self) -> Any:
        """The network that is validated and saved: its EMA if one is kept."""
        return self.averaged or self.net

    def _log_fixed(self, losses: Tensor, pictures: Tensor) -> None:
        """Logs the mean of a validation's losses by picture, which `target=` is compared with.

        They may depend on the pictures and the network, but not on the seed, the batch size or the ranks.
        """
        self.fixed_loss.update(losses, pictures)
        self.log(LOSS, self.fixed_loss)

    def _augmented(self, batch: PictureBatch) -> Tensor:
        """The pictures of a batch as the network is trained on them: uint8, b 3 h w."""
        if self.augment is None:
            return batch["image"]
        return self.augment(batch["image"], seed=self.seed, positions=batch["position"])

    def _normal(self, like: Tensor, positions: Tensor, stream: str) -> Tensor:
        """Standard normal noise in a tensor's shape, a function of the seed and the samples' positions."""
        key = {"seed": self.seed, "positions": positions, "stream": stream}
        return keyed.normal(like.shape[1:], **key, device=like.device).to(like)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch on a device, but for its positions: keys are hashed on the host."""
        host = {name: batch[name] for name in ("position",) if name in batch}
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), **host}

    def configure_optimizers(self) -> Any:
        """An optimizer for `net`, and its schedule, which advances every step."""
        # Lightning's default is every epoch, and the stream of batches has one that never ends
        optimizer, schedule = configure(self.net, self.optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def example_batch(self, count: int, *, size: int) -> Mapping[str, Any]:
        """Random pictures with captions, see `Stage`."""
        return example_pictures(count, size=size)

    def frozen(self) -> dict[str, nn.Module]:
        """None, see `Stage`."""
        return {}

    def generator(self) -> Generator | None:
        """None, see `Stage`."""
        return None


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
    is_differentiable = False

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
