"""The denoiser's stage with terms added to its loss: what the network's hidden states should look like.

A term is built for the denoiser that it trains, so that it knows the widths of the hidden states and has a
projector that fits. Projectors are trained beside the denoiser: they are in the checkpoint, in no EMA and in
no bundle. Without any term the stage is `LatentDiffusion` to the bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError
from ldm.data.features import Embedder
from ldm.data.stream import LatentBatch
from ldm.diffusion.process import Noised
from ldm.distributed.ranks import rank
from ldm.stages.diffusion import LatentDiffusion
from ldm.stages.optim import configure

FEATURED = "ldm.data.features.FeaturedLatents"  # the data module whose batches have features of pictures


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A batch and what the network has made of it."""

    batch: LatentBatch
    noised: Noised
    output: Float[Tensor, "b c h w"]
    hidden: Mapping[str, Tensor]  # hidden states by the names in `layers`
    gather: Callable[[Tensor], Tensor] = lambda rows: rows  # all ranks' rows, rank after rank


class Term(nn.Module, ABC):
    """A number that is added to the denoising loss, times its weight.

    Attributes:
        weight: its factor in the loss.
        layers: names of the denoiser's hidden states that it reads.
        embedder: makes the features of pictures that it needs in each batch; None: it needs none.
    """

    layers: tuple[str, ...] = ()
    embedder: Embedder | None = None

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        self.weight = weight

    @abstractmethod
    def forward(self, seen: Seen) -> Float[Tensor, ""]:
        """The term of a batch, not yet weighted, in float32."""


def similarity(ours: Float[Tensor, "b c h w"], theirs: Float[Tensor, "b c h2 w2"]) -> Float[Tensor, ""]:
    """Mean cosine of two maps' vectors over the places of the coarser grid, to which the finer is pooled."""
    side = [min(sizes) for sizes in zip(ours.shape[-2:], theirs.shape[-2:], strict=True)]
    maps = [F.adaptive_avg_pool2d(each.float(), side) for each in (ours, theirs)]
    return F.cosine_similarity(*maps, dim=1).mean()


def layer_of(net: nn.Module, name: str | None, *, default: int, key: str = "layer") -> str:
    """The name of one of a denoiser's hidden states; `default` is the number of the one that None stands for.

    Raises UserError for a denoiser without hidden states, and a name that it doesn't have.
    """
    names = list(getattr(net, "hidden", {}))
    if not names:
        raise UserError(f"model.stage.terms: {type(net).__name__} returns no hidden states: take one of ldm")
    if name is not None and name not in names:
        raise UserError(f"model.stage.terms: there is no {key} {name!r}; the backbone has {', '.join(names)}")
    return names[default] if name is None else name


class Alignment(Term):
    """Minus the mean cosine of a hidden state and a map of the clean picture, through a trained projector.

    The projector is two linear layers at each place; that of Yu et al. 2025 has three.

    Args:
        layer: name of the denoiser's hidden state; None: the one in the middle.

    Attributes:
        projector: from the state's channels, last axis, to those of the map; a subclass makes it.

    Raises UserError for a layer that the denoiser doesn't have.
    """

    projector: nn.Module

    def __init__(self, *, net: nn.Module, weight: float = 0.5, layer: str | None = None) -> None:
        super().__init__(weight=weight)
        name = layer_of(net, layer, default=len(getattr(net, "hidden", ())) // 2)
        self.layers = (name,)
        self.channels, self.factor = net.hidden[name]

    @abstractmethod
    def target(self, seen: Seen) -> Float[Tensor, "b c h w"]:
        """The map of the clean picture that the state is compared with."""

    def forward(self, seen: Seen) -> Float[Tensor, ""]:
        """Between -1, where all directions agree, and 1."""
        projected = self.projector(seen.hidden[self.layers[0]].movedim(1, -1)).movedim(-1, 1)
        return -similarity(projected, self.target(seen))


def projector(channels: int, inner: int, width: int) -> nn.Sequential:
    """Two linear layers over the last axis, `inner` channels between them."""
    return nn.Sequential(nn.Linear(channels, inner), nn.SiLU(), nn.Linear(inner, width))


class FeatureAlignment(Alignment):
    """REPA: alignment to a frozen network's features of the clean picture (Yu et al. 2025, eq. 8).

    Args:
        features: the network, whose outputs are computed once and come with each batch.
        inner: channels of the projector's hidden layer.
        others: see `Alignment`.
    """

    def __init__(self, *, features: Embedder, inner: int = 512, **others: Any) -> None:
        super().__init__(**others)
        self.embedder = features
        self.projector = projector(self.channels, inner, features.shape[0])

    def target(self, seen: Seen) -> Float[Tensor, "b c h w"]:
        """The features; UserError if the data module adds none to its batches."""
        if "embedding" not in seen.batch:
            raise UserError(
                "model.stage.terms: the batches have no features of pictures: write "
                f"model.datamodule._target_={FEATURED}"
            )
        return seen.batch["embedding"]


class LatentAlignment(Alignment):
    """SRA 2: alignment to the autoencoder's latents of the clean picture (Wang et al. 2026).

    Where a place of the hidden state stands for several latents, their channels are joined.

    Args:
        inner: channels of the projector's hidden layer.
        others: see `Alignment`.
    """

    def __init__(self, *, net: nn.Module, inner: int = 512, **others: Any) -> None:
        super().__init__(net=net, **others)
        self.projector = projector(self.channels, inner, net.latent_channels * self.factor**2)

    def target(self, seen: Seen) -> Float[Tensor, "b c h w"]:
        """The latents' means, joined to the places of the hidden state."""
        return F.pixel_unshuffle(seen.batch["mean"], self.factor)


class LayerSync(Term):
    """Minus the mean cosine of an early hidden state and a later one, which gets no gradient of it.

    Haghighi et al. 2025, arXiv 2510.12581. It needs no projector and no other network.

    Args:
        early, late: names of the denoiser's states; None: at a quarter of their list from its start and from
            its end, which is the same level of a U-Net on its ways down and up.

    Raises UserError for layers that the denoiser doesn't have, or that differ in their channels.
    """

    def __init__(
        self, *, net: nn.Module, weight: float = 0.2, early: str | None = None, late: str | None = None
    ) -> None:
        super().__init__(weight=weight)
        quarter = (len(getattr(net, "hidden", ())) - 1) // 4
        first = layer_of(net, early, default=quarter, key="early")
        second = layer_of(net, late, default=-1 - quarter, key="late")
        channels = {name: net.hidden[name][0] for name in (first, second)}
        if first == second or len(set(channels.values())) > 1:
            raise UserError(
                f"model.stage.terms: early={first} and late={second} have "
                f"{' and '.join(map(str, channels.values()))} channels: name two different layers of equal "
                "width"
            )
        self.layers = (first, second)

    def forward(self, seen: Seen) -> Float[Tensor, ""]:
        """Between -1, where all directions agree, and 1."""
        early, late = (seen.hidden[name] for name in self.layers)
        return -similarity(early, late.detach())


class ContrastiveFlow(Term):
    """Minus the weighted squared error to the target of another sample (Stoica et al. 2025, eq. 5).

    The other one is the next sample of the batch of all ranks, and for the last one the first; with
    accumulation, of the micro-batch. It pushes predictions of different captions apart; a large weight makes
    them diverge. It asks nothing of the denoiser.
    """

    def __init__(self, *, net: nn.Module, weight: float = 0.05) -> None:
        super().__init__(weight=weight)

    def forward(self, seen: Seen) -> Float[Tensor, ""]:
        """At most 0; 0 for a batch of one sample, which has no other."""
        noised, everyone = seen.noised, seen.gather(seen.noised.target)
        world = len(everyone) // len(noised.target)
        # ranks take turns: sample k of rank r stands at k * world + r of the whole batch
        in_order = everyone.unflatten(0, (world, -1)).transpose(0, 1).flatten(0, 1)
        if len(in_order) == 1:
            return torch.zeros((), device=everyone.device)
        others = in_order.roll(-1, 0)[rank() % world :: world]
        return -replace(noised, target=others).error(seen.output).mean()


class EarlyPrediction(Term):
    """The denoising loss of the denoiser's early head, by which it guides itself (arXiv 2512.24176).

    Raises UserError for a denoiser without one.
    """

    layers = ("early",)

    def __init__(self, *, net: nn.Module, weight: float = 0.5) -> None:
        super().__init__(weight=weight)
        if getattr(net, "early_head", None) is None:
            depth = len(getattr(net, "hidden", ()))
            raise UserError(
                "model.stage.terms: the backbone has no early head: take a DiT, as in backbone=dit_tiny, and "
                f"write backbone.early_head={max(1, round(0.3 * depth))}, at about a third of its blocks"
            )

    def forward(self, seen: Seen) -> Float[Tensor, ""]:
        """The mean weighted squared error of the early prediction."""
        return seen.noised.error(seen.hidden["early"]).mean()


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

    def frozen(self) -> dict[str, nn.Module]:
        """The networks of the codec, and the one that makes features."""
        return super().frozen() | ({} if self.embedder is None else {"features": self.embedder})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the fingerprint of the network that makes features, whose weights are in no checkpoint."""
        if self.embedder is not None:
            checkpoint["features"] = self.embedder.image_fingerprint()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint that was trained on the features of another network; UserError."""
        own = self.embedder and self.embedder.image_fingerprint()
        if checkpoint.get("features", own) != own:  # of an earlier version: it has none
            raise UserError("model.stage.terms: the run has features of another network: take resume=never")

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
