"""The denoiser's stage with terms added to its loss; without any it is `LatentDiffusion` to the bit."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm import UserError
from ldm.data.stream import LatentBatch
from ldm.stages.diffusion import LatentDiffusion
from ldm.stages.optim import configure
from ldm.stages.terms import Seen, Term


class DiffusionWithTerms(LatentDiffusion):
    """Trains a denoiser by the sum of its denoising loss and the weighted terms.

    `train/loss` is the denoising loss alone, which compares with a training without terms, and
    `train/loss_<name>` each term before its weight. Validation, EMA and bundle know of no term.

    Args:
        terms: constructors of the terms by name, which are given the denoiser.
        others: see `LatentDiffusion`.

    Raises UserError for terms that want the features of two networks in a batch.
    """

    def __init__(self, *, net: nn.Module, terms: Mapping[str, Callable[..., Term]], **others: Any) -> None:
        super().__init__(net=net, **others)
        # after the network, whose first weights are those that it has without terms
        self.terms = nn.ModuleDict({name: make(net=net) for name, make in terms.items()})
        self.hidden = tuple({layer: None for term in self.terms.values() for layer in term.layers})
        embedders = {name: term.embedder for name, term in self.terms.items() if term.embedder is not None}
        if len(embedders) > 1:
            raise UserError(
                f"terms {' and '.join(embedders)} each want features of their own in a batch: leave one out"
            )
        self.embedder = next(iter(embedders.values()), None)  # for the data: its features go into batches

    def configure_model(self) -> None:
        """Shards the projectors, too, if the trainer's strategy shards the network."""
        super().configure_model()
        if hasattr(self.trainer.strategy, "shard"):
            for term in self.terms.values():
                for projector in term.children():
                    self.trainer.strategy.shard(projector)

    def on_fit_start(self) -> None:
        """Moves the network that makes features, too, which Lightning does not know of."""
        super().on_fit_start()
        if self.embedder is not None:
            self.embedder.to(self.device)

    def configure_optimizers(self) -> Any:
        """An optimizer for the network and the projectors, and its schedule."""
        trained = nn.ModuleList([self.net, self.terms])
        optimizer, schedule = configure(trained, self.optimizer, self.decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        """The weighted sum of a batch; logs the mean of each part over the optimizer step."""
        losses = self.losses(batch)
        means = self._step_mean(torch.stack([*losses.values()]), batch_idx)
        for name, mean in zip(losses, means, strict=True):
            self.log("train/loss" if not name else f"train/loss_{name}", mean)
        return self.total(losses)

    def loss(self, batch: LatentBatch) -> Tensor:
        """The weighted sum of a batch."""
        return self.total(self.losses(batch))

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """The mean denoising loss of a batch under the name "", and each term by its name, not weighted."""
        noised, context = self.noised(batch)
        made = self.net(noised.x, noised.time, context, **({"hidden": self.hidden} if self.hidden else {}))
        output, hidden = made if self.hidden else (made, {})
        facts = {"batch": batch, "noised": noised, "output": output, "hidden": hidden}
        seen = Seen(gather=self._of_all_ranks, **facts)
        return {"": noised.error(output).mean()} | {name: term(seen) for name, term in self.terms.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The denoising loss plus each term times its weight."""
        loss = losses[""]
        for name, term in self.terms.items():
            loss = loss + term.weight * losses[name]
        return loss

    def example_batch(self, count: int, *, size: int) -> LatentBatch:
        """As `LatentDiffusion.example_batch`, with features if a term wants them."""
        batch = super().example_batch(count, size=size)
        if self.embedder is not None:
            batch["embedding"] = torch.randn(count, *self.embedder.shape)
        return batch
