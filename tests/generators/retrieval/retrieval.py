"""A system that is not diffusion, in one file: the mean of the training pictures whose captions are nearest.

This file, `conf/experiment/retrieval.yaml` and `tests/generators/test_a_new_system.py` show how a system is
added. Training fills a memory, picture by picture, with CLIP's states of captions; one number, the
sharpness of the choice between pictures, is learned by gradient descent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import to_float, to_uint8
from ldm.data.stream import PictureBatch
from ldm.generators.generator import Source, check_options
from ldm.stages.optim import OptimizerFactory
from ldm.stages.stage import example_pictures
from ldm.tokenizers import Tokenizer


class Memory(nn.Module):
    """Pictures with their captions' states: (texts: b d, nearest) -> pictures, b 3 size size, -1 to 1.

    Args:
        capacity: the most pictures that it holds; picture number n of the training set has slot n.
        size: of a picture, in pixels.
        width: of a text state.
    """

    def __init__(self, *, capacity: int, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(capacity, 3, size, size))
        self.register_buffer("states", torch.zeros(capacity, width))
        self.register_buffer("counts", torch.zeros(capacity))
        self.sharpness = nn.Parameter(torch.tensor(2.0))

    def store(self, numbers: Tensor, images: Tensor, states: Tensor) -> None:
        """Keeps each picture, and the mean of the states of its captions so far."""
        for number, image, state in zip(numbers.tolist(), images, states, strict=True):
            if number >= len(self.counts):
                raise UserError(f"capacity={len(self.counts)} is too small for picture number {number}")
            self.counts[number] += 1
            self.states[number] += (state - self.states[number]) / self.counts[number]
            self.pictures[number] = image

    def forward(self, texts: Tensor, *, nearest: int, without: Tensor | None = None) -> Tensor:
        """The mean of the `nearest` pictures of each text, weighted by likeness; `without` some slots."""
        likeness = F.normalize(texts, dim=1) @ F.normalize(self.states, dim=1).T
        likeness = likeness.masked_fill(self.counts == 0, -2.0)
        if without is not None:
            likeness = likeness.scatter(1, without[:, None], -2.0)
        values, slots = likeness.topk(min(nearest, len(self.counts)))
        weights = (self.sharpness.exp() * values).masked_fill(values == -2.0, -torch.inf).softmax(dim=1)
        return torch.einsum("bk,bkchw->bchw", weights, self.pictures[slots])


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """The generator (see `ldm.generators.generator.Generator`)."""

    memory: Memory
    text_encoder: nn.Module
    tokenizer: Tokenizer
    nearest: int = 1
    nfe: int = 1
    starts_from_pictures: bool = False
    reconstruct: None = None

    @property
    def size(self) -> int:
        return self.memory.pictures.shape[-1]

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.memory.parameters())

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None
    ) -> Tensor:
        """Pictures of prompts; retrieval draws no random numbers, so the seeds change nothing."""
        states = states_of(prompts, self.text_encoder, self.tokenizer, self.memory.sharpness.device)
        return to_uint8(self.memory(states, nearest=self.nearest))

    def to(self, device: torch.device | str) -> "Retrieval":
        self.memory.to(device)
        self.text_encoder.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        return {"nearest": self.nearest}

    def with_options(self, **changes: Any) -> "Retrieval":
        check_options(changes, ["nearest"], of="retrieval")
        return replace(self, **changes)


def states_of(texts: Sequence[str], encoder: nn.Module, tokenizer: Tokenizer, device: Any) -> Tensor:
    """CLIP's states of texts, b d."""
    return encoder(tokenizer.encode(texts).to(device)).pooled


def open_retrieval(bundle: Bundle, *, nearest: int = 1) -> Retrieval:
    """The generator of a bundle: what the bundle's entry `generator` names."""
    if type(nearest) is not int or nearest < 1:
        raise UserError(f"{nearest=} must be a whole number, at least 1")
    return Retrieval(
        memory=bundle.network("memory"),
        text_encoder=bundle.network("text_encoder"),
        tokenizer=bundle.tokenizer(),
        nearest=nearest,
    )


class RetrievalStage(LightningModule):
    """The training (see `ldm.stages.stage.Stage`).

    Args:
        net: the memory.
        text_encoder: a bundle whose text encoder and tokenizer read the captions.
        optimizer: what makes the optimizer of the memory's sharpness.
        nearest: how many pictures are mixed.
    """

    def __init__(
        self, *, net: Memory, text_encoder: str, optimizer: OptimizerFactory, nearest: int = 1
    ) -> None:
        super().__init__()
        self.net, self.optimizer, self.nearest = net, optimizer, nearest
        self.averaged: nn.Module | None = None
        self.texts = Bundle.open(text_encoder)
        self.tokenizer = self.texts.tokenizer()
        self.encoder = (self.texts.network("text_encoder"),)  # a tuple hides frozen weights from checkpoints

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters())

    def on_fit_start(self) -> None:
        self.encoder[0].to(self.device)

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> Tensor:
        return states_of(texts, self.encoder[0], self.tokenizer, self.device)

    def training_step(self, batch: PictureBatch, batch_idx: int) -> Tensor:
        images, states = to_float(batch["image"]), self.states(batch["captions"])
        self.net.store(batch["index"], images, states)
        # each picture from the others, or the sharpest choice, itself, would always win
        found = self.net(states, nearest=8, without=batch["index"].to(self.device))
        loss = F.mse_loss(found, images)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: PictureBatch, batch_idx: int) -> None:
        found = self.net(self.states(batch["captions"]), nearest=self.nearest)
        loss = F.mse_loss(found, to_float(batch["image"]))
        self.log("val/loss", loss, batch_size=len(found), sync_dist=True)

    def example_batch(self, count: int, *, size: int) -> PictureBatch:
        return example_pictures(count, size=size)

    def frozen(self) -> dict[str, nn.Module]:
        return {"text encoder": self.encoder[0]}

    def generator(self) -> Retrieval:
        return Retrieval(
            memory=self.net, text_encoder=self.encoder[0], tokenizer=self.tokenizer, nearest=self.nearest
        )

    def write_bundle(self, path: Path, *, config: Mapping[str, Any], data: object) -> Path:
        memory = Part(spec=config["model"]["stage"]["net"], state=self.net.state_dict())
        return write_bundle(
            path,
            parts={"memory": memory, "text_encoder": self.texts.part("text_encoder")},
            tokenizer=self.tokenizer,
            settings={
                "generator": {"_target_": "retrieval.open_retrieval", "nearest": self.nearest},
                "origin": origin(config),
            },
        )
