"""Pictures that a stage generates while it trains: fixed prompts and seeds, one sheet a time."""

from itertools import islice
from pathlib import Path

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.callbacks.sheets import show_sheet
from ldm.distributed.ranks import all_gather
from ldm.io.pictures import to_picture
from ldm.loggers.background import log_table
from ldm.randomness.seeds import check_seed
from ldm.tokenizers import cut_line


class SampleGrid(Callback):
    """At each validation a sheet, one row a prompt: `<folder>/step=<k>.png`.

    Loggers that work aside get it too, and a table of the same pictures, one row a prompt.

    All ranks draw, each its share; the first one writes. Pictures that are NaN or infinite leave no sheet,
    which is said the first time, and the training continues.

    Args:
        prompts: one row each.
        seeds: one column each, the same for every prompt and at every step.
        folder: where the sheets go.
    """

    def __init__(self, *, prompts: list[str], seeds: list[int], folder: str) -> None:
        for seed in seeds:
            check_seed(seed, "callbacks.samples.seeds")
        self.prompts, self.seeds, self.folder = prompts, seeds, Path(folder)
        self._told = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tokenizer = pl_module.generator().tokenizer
        line = cut_line(tokenizer, self.prompts, what="prompt") if tokenizer else None
        if line and trainer.is_global_zero:
            print(f"samples: {line}", flush=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        jobs = [(prompt, seed) for prompt in self.prompts for seed in self.seeds]
        ranks = trainer.world_size
        # a rank without a share draws one more, for the others may want its part of the network
        own = jobs[trainer.global_rank :: ranks] or jobs[:1]
        try:
            drawn = pl_module.generator()([prompt for prompt, _ in own], [seed for _, seed in own]).cpu()
        except FloatingPointError:
            drawn = None
        shares = all_gather(drawn)
        if not trainer.is_global_zero:
            return
        if any(share is None for share in shares):
            return self._tell_once(trainer.global_step)
        images = [shares[number % ranks][number // ranks] for number in range(len(jobs))]
        show_sheet(trainer, images, name="samples", folder=self.folder, columns=len(self.seeds))
        pictures = iter(map(to_picture, images))
        log_table(
            trainer.loggers,
            name="drawings",
            header=["prompt", *(f"seed {seed}" for seed in self.seeds)],
            rows=[[prompt, *islice(pictures, len(self.seeds))] for prompt in self.prompts],
            step=trainer.global_step,
        )

    def _tell_once(self, step: int) -> None:
        if not self._told:
            print(
                f"samples: at step {step} the pictures are NaN or infinite, so there is no sheet", flush=True
            )
        self._told = True
