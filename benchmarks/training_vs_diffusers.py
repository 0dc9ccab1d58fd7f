"""A training step of ours against diffusers' text-to-image script: same pipeline, pictures, batch, in turns.

    python -m benchmarks.training_vs_diffusers [--shape tiny base sd] [--rounds 3] [--source PHOTOGRAPHS]

Ours is `ldm.train +experiment=sd15_finetune init=<imported random pipeline>`: the data module on shards, the
stage, Lightning's trainer, EMA, checks of the gradients. Theirs is `benchmarks/diffusers_recipe.py`. Both
have EMA, and neither checkpoints activations nor validates. Each turn is a process that makes `WARM` steps
and then those that count, loading included. `--latents` says what is encoded in each step:

    encoded    pictures and captions, on both sides
    cached     ours reads stored latents, as by default; theirs is the script, which can't
    both       theirs keeps latents and text states, too, as a careful user would

Prints seconds per step, median and range, and their ratio (below 1: ours is faster), and writes a json with
all seconds, commit, configs and threads. Turns that `turns.jsonl` has already are not made again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from pytorch_lightning import Callback

from benchmarks.configs import FOLDER, at_size, training_config
from benchmarks.problem_sizes import EVERY, add_shape
from ldm.checkpoints.provenance import git_state
from ldm.config import build, plain
from ldm.data.datamodule import PictureData
from ldm.evaluation.report import markdown_table

WARM = 2  # steps of a turn that are not counted
WAYS = {"encoded": (False, False), "cached": (True, False), "both": (True, True)}  # ours, theirs: stored?
PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
STEADY = ("ema", "gradients", "pace")  # callbacks that are part of every step
ENCODED = ("model.datamodule._target_=ldm.data.streaming.EncodedPictures", "~model.datamodule.texts")


@dataclass(frozen=True, kw_only=True)
class Case:
    """What both sides train: `folder` has the pipeline and the pictures."""

    folder: Path
    shape: str
    precision: str
    latents: str
    steps: int

    @property
    def overrides(self) -> list[str]:
        """Of our training's config."""
        stored, _ = WAYS[self.latents]
        return [
            *EVERY[self.shape].overrides(self.folder / "bundle"),
            f"data.root={self.folder / 'data'}",
            f"trainer.precision={PRECISIONS[self.precision]}",
            *(() if stored else ENCODED),
        ]

    def row(self) -> dict[str, Any]:
        """The case as json."""
        return asdict(self) | {"folder": str(self.folder)}


class StepClock(Callback):
    """Seconds from the end of one step to that of the next: loading, callbacks and all."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes the moment."""
        self.moments.append(perf_counter())


def ours(case: Case) -> list[float]:
    """Seconds of our steps."""
    from ldm.checkpoints.resuming import follow_init
    from ldm.planning.fitting import keep_freed_memory, make_stage, make_trainer, quiet

    quiet()
    keep_freed_memory()
    config = training_config(case.overrides)
    for _ in follow_init(config, case.overrides):  # process and codec of the imported pipeline
        pass
    config.run_dir = str(case.folder)
    stage, data = make_stage(config)
    clock = StepClock()
    trainer = make_trainer(
        config,
        callbacks=[*(build(config.callbacks[name]) for name in STEADY), clock],
        max_steps=WARM + case.steps,
        limit_val_batches=0,
        enable_progress_bar=False,
    )
    trainer.fit(stage, datamodule=data)
    return differences(clock.moments)


def theirs(case: Case) -> list[float]:
    """Seconds of the steps of diffusers' script."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTokenizer

    from benchmarks.diffusers_recipe import Cache, Encoded, Recipe, Training, batches

    _, stored = WAYS[case.latents]
    size, saved = EVERY[case.shape], case.folder / "diffusers"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = Recipe(bfloat16=case.precision == "bfloat16", cached=stored, lr=1e-5)  # the rate of ours
    dtype = torch.bfloat16 if recipe.bfloat16 else torch.float32  # of what is frozen: its weight_dtype
    tokenizer = CLIPTokenizer.from_pretrained(saved / "tokenizer")
    vae = diffusers.AutoencoderKL.from_pretrained(saved / "vae").to(device, dtype).requires_grad_(False)
    text = CLIPTextModel.from_pretrained(saved / "text_encoder").to(device, dtype).requires_grad_(False)

    def moments(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, scale = vae.encode(pixels.to(device, dtype)).latent_dist, vae.config.scaling_factor
        return found.mean * scale, found.std * scale

    def states(captions: Sequence[str]) -> torch.Tensor:
        length = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        ids = tokenizer([*captions], **length, return_tensors="pt").input_ids
        return text(ids.to(device), return_dict=False)[0]

    def encoded(batch: tuple[torch.Tensor, Sequence[str], torch.Tensor]) -> Encoded:
        mean, std = moments(batch[0])
        return Encoded(mean + std * torch.randn_like(mean), states(batch[1]))

    root = str(case.folder / "data")
    pictures = PictureData(root=root, size=size.pixels, batch_size=size.batch).train
    training = Training(diffusers.UNet2DConditionModel.from_pretrained(saved / "unet").to(device), recipe)
    source: Iterator[Encoded]
    if stored:
        source = Cache(pictures, moments, states).batches(size.batch)
    else:
        source = map(encoded, batches(pictures, size.batch))
    ends = []
    for batch in islice(source, WARM + case.steps):
        training.step(batch)
        ends.append(perf_counter())
    return differences(ends)


def differences(moments: Sequence[float]) -> list[float]:
    """Seconds between moments, those of the first steps left out."""
    return [later - earlier for earlier, later in zip(moments[WARM - 1 :], moments[WARM:], strict=False)]


SIDES: dict[str, Callable[[Case], list[float]]] = {"ours": ours, "diffusers": theirs}


def in_a_process(side: str, case: Case) -> list[float]:
    """A turn in a process of its own."""
    turn = ["--turn", json.dumps(case.row() | {"side": side})]
    command = [sys.executable, "-m", "benchmarks.training_vs_diffusers", *turn]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def here(side: str, case: Case) -> list[float]:
    """A turn in this process."""
    return SIDES[side](case)


def measure(
    case: Case, *, rounds: int, log: Path, turn: Callable[[str, Case], list[float]] = in_a_process
) -> dict[str, list[float]]:
    """Seconds of each side's steps; turns that the log has are taken from it, the others are added."""
    lines = log.read_text().splitlines() if log.is_file() else []
    done = [row for row in map(json.loads, lines) if case.row().items() <= row.items()]
    for number in range(rounds):
        for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            if sum(row["side"] == side for row in done) > number:
                continue
            row = case.row() | {"side": side, "seconds": turn(side, case)}
            done.append(row)
            with log.open("a") as stream:
                print(json.dumps(row), file=stream)
    return {side: [each for row in done if row["side"] == side for each in row["seconds"]] for side in SIDES}


def document(case: Case, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """A case's result with what it depends on."""
    config = training_config(case.overrides)
    config.run_dir = str(case.folder)
    middle = {side: median(own) for side, own in seconds.items()}
    return {
        "case": case.row(),
        "seconds": dict(seconds),
        "median": middle,
        "ratio": middle["ours"] / middle["diffusers"],
        "config": plain(config),
    }


def table(documents: Sequence[Mapping[str, Any]]) -> str:
    """A row per case: median (least to most) of both sides, and the ratio."""
    rows = []
    for each in documents:
        case = each["case"]
        cells = [f"{median(own):.3g} ({min(own):.3g} to {max(own):.3g})" for own in each["seconds"].values()]
        rows.append([case["shape"], case["precision"], case["latents"], *cells, f"{each['ratio']:.2f}"])
    titles = ["shape", "precision", "latents", *(f"{side}, s per step" for side in SIDES), "ratio"]
    return markdown_table(titles, rows)


def rehearse(folder: Path) -> list[dict[str, Any]]:
    """All of it at toy size, in this process."""
    at_size("toy", folder, pictures=4)
    case = Case(folder=folder, shape="toy", precision="float32", latents="encoded", steps=2)
    cases = [case, replace(case, precision="bfloat16", latents="both")]
    log = folder / "turns.jsonl"
    return [document(each, measure(each, rounds=1, log=log, turn=here)) for each in cases]


def main() -> None:
    """Reads the options, prints the table and writes the json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--latents", nargs="+", choices=WAYS, default=["encoded", "cached"])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--steps", type=int, default=6, help="steps of a turn that count")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--source", type=Path, help="folder of photographs; by default noise like them")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--out", type=Path, help="the json; by default results.json in the folder")
    parser.add_argument("--rehearse", action="store_true", help="at toy size: shows that it works")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        row = json.loads(options.turn)
        side, folder = row.pop("side"), Path(row.pop("folder"))
        return print(json.dumps(here(side, Case(folder=folder, **row))))
    if options.rehearse:
        return print(table(rehearse(options.folder / "toy")))
    found = []
    for shape in options.shape:
        folder = options.folder / shape
        at_size(shape, folder, pictures=options.pictures, source=options.source)
        for precision, latents in product(options.precision, options.latents):
            case = Case(folder=folder, shape=shape, precision=precision, latents=latents, steps=options.steps)
            found.append(document(case, measure(case, rounds=options.rounds, log=folder / "turns.jsonl")))
            print(table(found), flush=True)
    out = options.out or options.folder / "results.json"
    out.write_text(json.dumps(about() | {"cases": found}, indent=1))
    print(out)


def about() -> dict[str, Any]:
    """The machine's and the code's part of a result."""
    import diffusers

    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    return {"code": git_state(), "threads": torch.get_num_threads(), **versions}


if __name__ == "__main__":
    main()
