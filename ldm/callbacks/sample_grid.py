"""What the network draws while it trains: fixed prompts and seeds, one sheet a time."""

from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.checkpoints.pictures import save_sheet
from ldm.distributed import gather


class SampleGrid(Callback):
    """At each validation a sheet, one row a prompt: `<folder>/step=<k>.png`, and in loggers that take images.

    All ranks draw, each its share; the first one writes.

    Args:
        prompts: one row each.
        seeds: one column each, the same for every prompt and at every step.
        folder: where the sheets go.
    """

    def __init__(self, *, prompts: list[str], seeds: list[int], folder: str) -> None:
        self.prompts, self.seeds, self.folder = prompts, seeds, Path(folder)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        jobs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        ranks = trainer.world_size
        # a rank without a share draws one more, for the others may want its part of the network
        own = jobs[trainer.global_rank :: ranks] or jobs[:1]
        drawn = pl_module.pipeline()([prompt for prompt, _ in own], [seed for _, seed in own]).cpu()
        shares = gather(drawn)
        if not trainer.is_global_zero:
            return
        images = [shares[number % ranks][number // ranks] for number in range(len(jobs))]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step={trainer.global_step:06d}.png"
        save_sheet(images, path, columns=len(self.seeds))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B; it gets the file, whose pixels are already uint8
                logger.log_image("samples", [str(path)], step=trainer.global_step)
