"""Sheets of pictures while a stage trains: samples of prompts, reconstructions, or what CLIP finds."""

from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.codec import to_float, to_uint8
from ldm.distributed.ranks import all_gather
from ldm.io.pictures import save_sheet, to_picture
from ldm.loggers.background import background_loggers, say
from ldm.randomness.seeds import check_seed

BATCH = 64  # pictures that CLIP encodes at once
Sheet = tuple[list[torch.Tensor], int]  # uint8 pictures, row by row, and the number of columns


class Sheets(Callback, ABC):
    """Writes `<folder>/step=<k>.png` at each validation, prints its path, and logs it to TensorBoard or W&B.

    The folder lies in the run directory.
    """

    title: str  # the sheet's name in the loggers

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    @abstractmethod
    def sheet(self, trainer: Trainer, stage: LightningModule) -> Sheet | None:
        """The pictures; None where there is nothing to write."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a sheet; every rank has a part in making its pictures."""
        if trainer.sanity_checking or (made := self.sheet(trainer, pl_module)) is None:
            return
        images, columns = made
        path = self.folder / f"step={trainer.global_step:06d}.png"
        save_sheet(images, path, columns=columns, below=self.folder.parent)
        for logger in background_loggers(trainer.loggers):
            logger.record("image", self.title, path, trainer.global_step)
        say(f"{self.title}: {path}")


class SampleGrid(Sheets):
    """Samples of fixed prompts and seeds, one row per prompt; loggers get them as a table, too.

    Each rank generates its share; the first one writes. If samples are NaN or infinite, no sheet is written,
    which is printed the first time, and the training continues.

    Args:
        prompts: one row each.
        seeds: one column each, the same for every prompt and at every step.
    """

    title = "samples"

    def __init__(self, *, prompts: list[str], seeds: list[int], folder: str) -> None:
        super().__init__(folder)
        for seed in seeds:
            check_seed(seed, "callbacks.samples.seeds")
        self.prompts, self.seeds = prompts, seeds
        self._warned = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints which prompts are longer than the tokenizer reads."""
        tokenizer = pl_module.generator().tokenizer
        if line := tokenizer.cut_line(self.prompts, what="prompt") if tokenizer else None:
            say(f"samples: {line}")

    def sheet(self, trainer: Trainer, stage: LightningModule) -> Sheet | None:
        """Samples; None on the other ranks, and where any is NaN or infinite."""
        jobs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        ranks = trainer.world_size
        # a rank without a share generates one more: sharded weights are gathered from all ranks
        own = jobs[trainer.global_rank :: ranks] or jobs[:1]
        try:
            samples = stage.generator()([prompt for prompt, _ in own], [seed for _, seed in own]).cpu()
        except FloatingPointError:
            samples = None
        shares = all_gather(samples)
        if not trainer.is_global_zero:
            return None
        if any(share is None for share in shares):
            if not self._warned:
                text = "the pictures are NaN or infinite, so there is no sheet"
                say(f"samples: at step {trainer.global_step} {text}")
            self._warned = True
            return None
        images = [shares[number % ranks][number // ranks] for number in range(len(jobs))]
        pictures = iter(map(to_picture, images))
        rows = [[prompt, *islice(pictures, len(self.seeds))] for prompt in self.prompts]
        header = ["prompt", *(f"seed {seed}" for seed in self.seeds)]
        for logger in background_loggers(trainer.loggers):
            logger.record("table", "samples_table", header, rows, trainer.global_step)
        return images, len(self.seeds)


class Reconstructions(Sheets):
    """`count` held-out pictures above the autoencoder's reconstructions of them."""

    title = "reconstructions"

    def __init__(self, *, count: int, folder: str) -> None:
        super().__init__(folder)
        self.count = count

    @torch.no_grad()
    def sheet(self, trainer: Trainer, stage: LightningModule) -> Sheet | None:
        """Pictures, and below them their reconstructions by the EMA; None on the other ranks."""
        if not trainer.is_global_zero:
            return None
        pictures = trainer.datamodule.val
        originals = torch.stack([pictures.image(i) for i in range(min(self.count, len(pictures)))])
        net = stage.averaged or stage.net
        decoded = to_uint8(net.reconstruct(to_float(originals.to(stage.device)))).cpu()
        return [*originals, *decoded], len(originals)


class RetrievedPictures(Sheets):
    """Pictures of the training set that CLIP finds for prompts, one row per prompt, the nearest first.

    Args:
        prompts: one row each.
        count: pictures in a row.
        gallery: how many pictures of the training set are searched, the first ones.
    """

    title = "retrieved"

    def __init__(self, *, prompts: list[str], count: int, gallery: int, folder: str) -> None:
        super().__init__(folder)
        self.prompts, self.count, self.gallery = prompts, count, gallery

    @torch.no_grad()
    def sheet(self, trainer: Trainer, stage: LightningModule) -> Sheet | None:
        """The nearest pictures by the cosine of the EMA's features; None on the other ranks."""
        if not trainer.is_global_zero:
            return None
        pictures = trainer.datamodule.train
        numbers = range(min(self.gallery, len(pictures)))
        net, device = stage.averaged or stage.net, stage.device
        batches = pictures.batches(BATCH, numbers=numbers)
        features = torch.cat([net.encode_images(to_float(batch.to(device))) for batch in batches])
        queries = net.encode_texts(stage.tokenizer.encode(self.prompts).to(device))
        columns = min(self.count, len(numbers))
        nearest = (queries @ features.T).topk(columns).indices.flatten().tolist()
        return [pictures.image(number) for number in nearest], columns
