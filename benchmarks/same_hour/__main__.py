"""The same seconds on the same cores: diffusers' recipe, that recipe with every option, and ours.

    python -m benchmarks.same_hour data=flickr30k seconds=3600 seeds=3 out=runs/same_hour/flickr30k
    python -m benchmarks.same_hour data=emoji seconds=150 captions=64    # a quarter of an hour in all

Sides, one after the other: `recipe` is diffusers' text-to-image script (noise prediction, AdamW 1e-4, EMA
0.9999, pictures and texts encoded at each step); `careful` has what a careful user would switch on (stored
latents and texts, bfloat16, rectified flow, EMA warm-up, dropped captions), `careful_v` v-prediction with
min-SNR instead; `ours` is the data set's experiment. Pictures of 64 px, autoencoder and text encoder are the
same. A training's seconds count from the start of its process: imports, encoding and saving are among them.
The number of our steps is chosen from a short trial before, and the table has the seconds that were used.

Each side is measured by one protocol on held-out captions, the peers with every guidance scale of `scales`;
the verdicts are against the best of these, and need `seeds=3` of ours to have an interval. A finished piece
is kept, a killed one is resumed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.same_hour.race import RACES, Race, samples_of_step, spend, used
from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.checkpoints.provenance import git_state
from ldm.evaluation.report import markdown_table
from ldm.io.curves import read_curves
from ldm.io.reading import read_yaml

SHARE = 0.98  # of the seconds that our steps are planned to take
TRIAL = 20  # steps
OURS, KERNEL = "ours", "kd_efficientnet_lite0"
QUIET = ("+trainer.limit_val_batches=0", "~callbacks.samples")  # no side validates while it trains


@dataclass(kw_only=True)
class Options:
    """What is raced, for how long, and where the pieces are kept."""

    data: str = option("emoji", "emoji or flickr30k.")
    root: str = option("", "Folder of the prepared set; by default data/<data>.")
    seconds: float = option(240.0, "Seconds of each training.")
    sides: str = option("recipe,careful,ours", "Of recipe, careful, careful_v and ours.")
    seeds: int = option(1, "Training seeds of ours; the other sides have one.")
    scales: str = option("1,3,7.5", "Guidance scales that the peers are measured with.")
    captions: int = option(0, "Held-out captions that are measured; 0: the protocol's.")
    overrides: str = option("", "Overrides of our training and its sizes, separated by blanks.")
    out: str = option("", "Folder of pieces and page; by default runs/same_hour/<data>.")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A race with its folders."""

    race: Race
    root: str
    out: Path
    seconds: float
    scales: tuple[float, ...]
    overrides: tuple[str, ...]

    def training(self, piece: Path, seed: int) -> list[str]:
        """Overrides of our training; the peers read data, networks and batch size from them."""
        shared = [f"+experiment={self.race.experiment}", f"data.root={self.root}", f"seed={seed}"]
        return [*shared, f"data.cache={piece / 'cache'}", f"runs={piece / 'runs'}", *self.overrides]


def main(options: Options) -> None:
    """Runs what is missing, and writes the page and its json. Raises UserError for an unknown data set."""
    if options.data not in RACES:
        raise UserError(f"data={options.data} is unknown: write {' or '.join(RACES)}")
    race = RACES[options.data]
    plan = Plan(
        race=replace(race, captions=options.captions or race.captions),
        root=options.root or f"data/{options.data}",
        out=Path(options.out or f"runs/same_hour/{options.data}").absolute(),
        seconds=options.seconds,
        scales=tuple(map(float, options.scales.split(","))),
        overrides=tuple(options.overrides.split()),
    )
    plan.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    for side in options.sides.split(","):
        for seed in range(options.seeds if side == OURS else 1):
            found += raced(plan, side, seed)
    write_page(plan, found, ceilings(plan))


def raced(plan: Plan, side: str, seed: int) -> list[dict[str, Any]]:
    """Trains, generates and measures a side with a seed; a row for each guidance scale."""
    piece = plan.out / f"{side}_{seed}"
    piece.mkdir(exist_ok=True)
    train = train_ours if side == OURS else train_peer
    if not (piece / "training.json").is_file():
        train(plan, piece, side, seed)
    trained = json.loads((piece / "training.json").read_text())
    prompts = plan.out / "prompts.csv"
    if not prompts.is_file():
        run("ldm.evaluate", *plan.race.measured(plan.root), f"list_prompts={prompts}")
    rows = []
    for scale in (None,) if side == OURS else plan.scales:
        name = "own" if scale is None else f"{scale:g}"
        results = piece / f"evaluation_{name}"
        if not results.is_dir():
            evaluate(plan, piece, side, seed, scale, results)
        document = json.loads((results / "results.json").read_text())
        numbers = {row["metric"]: row for row in document["rows"] if row["set"] == "heldout"}
        about = {"side": side, "seed": seed, "scale": name, "seconds": used(piece), "results": str(results)}
        rows.append(about | trained | {"numbers": numbers})
    return rows


def train_peer(plan: Plan, piece: Path, side: str, seed: int) -> None:
    """Trains until the seconds are used."""
    timed(piece, "benchmarks.same_hour.peer", "train", json.dumps(task(plan, piece, side, seed)))


def train_ours(plan: Plan, piece: Path, side: str, seed: int) -> None:
    """Trains as many steps as take the seconds, by a trial of the same command in a folder of its own."""
    overrides, trial = plan.training(piece, seed), piece / "trial.json"
    if not trial.is_file():
        began, folder = time.monotonic(), piece / f"trial_{time.time_ns()}"
        own = [*plan.training(folder, seed), *QUIET, "trainer.log_every_n_steps=1", f"steps={TRIAL}"]
        run("ldm.train", *own)
        seconds, rate = time.monotonic() - began, speed(folder)
        trial.write_text(json.dumps({"start": max(0.0, seconds - TRIAL / rate), "rate": rate}))
    measured = json.loads(trial.read_text())
    steps = max(1, int((SHARE * plan.seconds - measured["start"]) * measured["rate"]))
    timed(piece, "ldm.train", *overrides, *QUIET, f"steps={steps}")
    (bundle,) = (piece / "runs").glob("*/*/bundle")
    (piece / "training.json").write_text(json.dumps({"steps": steps, "bundle": str(bundle)}))


def speed(folder: Path) -> float:
    """Steps per second that the trial in a folder logged, its first steps left out."""
    (log,) = (folder / "runs").glob("*/*/metrics.jsonl")
    (config,) = (folder / "runs").glob("*/*/config.yaml")
    rates = sorted(value for _, value in read_curves(log)["train/samples_per_second"][2:])
    return rates[len(rates) // 2] / samples_of_step(read_yaml(config))


def evaluate(plan: Plan, piece: Path, side: str, seed: int, scale: float | None, results: Path) -> None:
    """Generates what is missing of the listed pictures, and measures them."""
    pictures, prompts = piece / f"pictures_{results.name}", plan.out / "prompts.csv"
    if side == OURS:
        bundle = json.loads((piece / "training.json").read_text())["bundle"]
        run("benchmarks.same_hour.ours", bundle, str(prompts), str(pictures))
    else:
        places = {"prompts": str(prompts), "folder": str(pictures), "scale": scale}
        run("benchmarks.same_hour.peer", "generate", json.dumps(task(plan, piece, side, seed) | places))
    run("ldm.evaluate", *plan.race.measured(plan.root), f"pictures={pictures}", f"out={results}")


def ceilings(plan: Plan) -> dict[str, float]:
    """Measures of the right pictures after the autoencoder that all sides share; empty without our side."""
    results, trained = plan.out / "ceilings", plan.out / f"{OURS}_0" / "training.json"
    if not results.is_dir():
        if not trained.is_file():
            return {}
        bundle = json.loads(trained.read_text())["bundle"]
        # of one sampling step: the generated pictures do not matter here
        run("ldm.evaluate", *plan.race.measured(plan.root), f"bundle={bundle}", "steps=1", f"out={results}")
    rows = json.loads((results / "results.json").read_text())["rows"]
    return {row["metric"]: row["ceiling"] for row in rows if row.get("ceiling") is not None}


def task(plan: Plan, piece: Path, side: str, seed: int) -> dict[str, Any]:
    """The peer's command as plain data: its folder, side, seed, seconds, and our overrides."""
    about = {"piece": str(piece), "side": side, "seed": seed, "seconds": plan.seconds}
    return about | {"overrides": plan.training(piece, seed)}


def run(module: str, *arguments: str) -> None:
    """Runs a module. Raises CalledProcessError where it fails."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def timed(piece: Path, module: str, *arguments: str) -> None:
    """Runs a module, and adds its seconds to those of the piece, also if this process is killed meanwhile."""
    before, began = used(piece), time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    while True:
        try:
            status = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
        spend(piece, before + time.monotonic() - began)
        if status is not None:
            break
    if status:
        raise subprocess.CalledProcessError(status, module)


def write_page(plan: Plan, found: Sequence[Mapping[str, Any]], ceilings: Mapping[str, float]) -> None:
    """Writes `README.md` and `results.json`, and prints the page."""
    names = list(found[0]["numbers"])
    table = [
        [f"{each['side']} {each['seed']}", each["scale"], f"{each['seconds']:.0f}", f"{each['steps']:,}"]
        + [f"{each['numbers'][name]['value']:.4g}" for name in names]
        for each in found
    ]
    floors = {name: found[0]["numbers"][name].get("floor") for name in names}
    for bound, values in {"floor": floors, "ceiling": ceilings}.items():
        cells = (values.get(name) for name in names)
        table.append([bound, "", "", "", *("" if value is None else f"{value:.4g}" for value in cells)])
    titles = ["side and seed", "scale", "seconds", "steps", *names]
    parts = [f"# The same {plan.seconds:.0f} seconds", markdown_table(titles, table), *verdicts(found)]
    page = "\n\n".join(parts) + "\n"
    (plan.out / "README.md").write_text(page)
    about = {**git_state(), "seconds": plan.seconds, "overrides": plan.overrides, "command": sys.orig_argv}
    (plan.out / "results.json").write_text(
        json.dumps(about | {"rows": found, "ceilings": ceilings}, indent=1)
    )
    print(page)


def verdicts(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What `experiments.compare` says of ours against the best scale of each peer."""
    ours = ",".join(each["results"] for each in found if each["side"] == OURS)
    sections = []
    for side in dict.fromkeys(each["side"] for each in found if each["side"] != OURS):
        own = [each for each in found if each["side"] == side]
        best = min(own, key=lambda each: each["numbers"][KERNEL]["value"])
        if not ours:
            continue
        command = [sys.executable, "-m", "experiments.compare", best["results"], ours, "ruler=true"]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        sections.append(f"## Ours (B) against {side} at scale {best['scale']} (A)\n\n```\n{said}```")
    return sections


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
