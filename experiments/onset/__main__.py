"""From how many training pictures on a small model stops copying them: `python -m experiments.onset`.

Trains the same small denoiser for the same number of steps on 184, 368, 736 and 1,472 emoji, each set a part
of the next, generates a picture for each of 184 of its training captions, and counts the copies by the metric
`copies`. Writes README.md, onset.json and figure.png here. Each training resumes where it was stopped, and
what has ended is not done again: the same command continues.
"""

import json
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.command_line import command_line, option
from data_prep.emoji import ASSETS, draw_validation, existing, read_samples
from data_prep.making import write_shards
from experiments.onset.page import draw_onset, page
from ldm import UserError
from ldm.checkpoints.provenance import published
from ldm.data.index import ShardIndex
from ldm.evaluation.results import FILE_NAME, read_results
from ldm.io.curves import read_curves
from ldm.io.reading import read_json
from ldm.io.writing import make_folder, write
from ldm.randomness import keyed

FOLDER = Path(__file__).parent
NUMBERS = ("copied_pixels", "copied_mirrored_pixels", "copy_ratio_pixels")


@dataclass(kw_only=True)
class Options:
    """Which training sets, and where everything is kept and written."""

    counts: str = option("184,368,736,1472", "Sizes of the training sets.")
    steps: int = option(0, "Optimizer steps of each training; 0: those of conf/experiment/onset.yaml.")
    work: str = option("runs/onset", "Folder for data, runs and evaluations; keep it to resume.")
    out: str = option(str(FOLDER), "Folder for the page, its numbers and its figure.")


def main(options: Options) -> None:
    """Does what is still to be done, piece by piece, and writes the page.

    Raises:
        UserError: a size that is no number or larger than the set, or a command that failed.
    """
    work, out = Path(options.work), Path(options.out)
    counts = read_counts(options.counts)
    found = [piece(work, count, steps=options.steps) for count in counts]
    make_folder(out)
    write(out / "onset.json", json.dumps(found, indent=2) + "\n")
    figure = draw_onset(found, out / "figure.png")
    write(out / "README.md", page(found, figure=figure.name))
    print(f"{out / 'README.md'}: {len(found)} trainings")


def read_counts(text: str) -> list[int]:
    """The sizes, in rising order; UserError for anything but whole numbers that the set holds."""
    most = len(training_order())
    counts = [int(each) if each.isdecimal() else 0 for each in text.split(",")]
    if not all(184 <= count <= most for count in counts):
        raise UserError(f"counts={text} must be whole numbers from 184 to {most}, with commas between them")
    return sorted(set(counts))


def piece(work: Path, count: int, *, steps: int) -> dict[str, Any]:
    """Everything recorded of one training set: computed, or read if it is there."""
    record = work / f"{count}.json"
    if record.is_file():
        return read_json(record)
    data, runs = work / "data" / str(count), work / "runs"
    prepare(data, count)
    name, evaluation = f"onset_{count}", work / "evaluation" / str(count)
    shared = [f"data.root={data}"]
    if not [*runs.glob(f"{name}/*/bundle/config.yaml")]:
        longer = [f"steps={steps}"] if steps else []
        run(work, count, "ldm.train", "+experiment=onset", f"name={name}", f"runs={runs}", *shared, *longer)
    if not (evaluation / FILE_NAME).is_file():
        bundle = [f"bundle={runs / name}", "protocol=onset", f"out={evaluation}"]
        run(work, count, "ldm.evaluate", *bundle, *shared)
    (folder,) = (path.parents[1] for path in runs.glob(f"{name}/*/bundle/config.yaml"))
    found = recorded(folder, evaluation / FILE_NAME) | {"pictures": count}
    found["cpu_seconds"] = round(read_json(work / f"{count}.cpu.json"), 1)
    write(record, json.dumps(found, indent=2))
    return found


def recorded(run: Path, results: Path) -> dict[str, Any]:
    """What a run and its evaluation say."""
    document, about = read_results(results), read_json(run / "run.json")
    rows = {row["metric"]: row for row in document["rows"]}
    curve = read_curves(run / "metrics.jsonl")["val/loss_fixed"]
    return {
        **{name: {key: rows[name][key] for key in ("value", "sd", "floor")} for name in NUMBERS},
        "generated": rows[NUMBERS[0]]["images"],
        "seeds": rows[NUMBERS[0]]["seeds"],
        "val/loss_fixed": {str(step + 1): value for step, value in curve},
        "commit": about["commit"],
        "dirty": about["dirty"],
        "config_hash": about["config_hash"],
        "protocol": document["protocol"]["hash"],
        "commands": published([about["command"], document["provenance"]["command"]]),
    }


def run(work: Path, count: int, module: str, *arguments: str) -> None:
    """Runs a command; adds its CPU seconds to those of this training set, whether or not it ends well."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    status = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    kept = work / f"{count}.cpu.json"
    write(kept, json.dumps(spent + (read_json(kept) if kept.is_file() else 0)))
    if status:
        raise UserError(f"python -m {module} {' '.join(arguments)} ended with status {status}: see above")


def training_order() -> list[str]:
    """Keys of the training pictures in the order in which the sets take them."""
    captions = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
    train = sorted(captions.keys() - draw_validation(list(captions), share=0.1, seed=0))
    return [train[number] for number in keyed.permutation(0, 0, len(train), stream="onset")]


def prepare(root: Path, count: int) -> None:
    """Writes the first so many training pictures, and the held-out ones, unless they are there."""
    if existing(root) is not None:
        return
    captions = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
    order, shards = training_order(), []
    for split, keys in (("train", {*order[:count]}), ("val", captions.keys() - {*order})):
        chosen = {key: entry for key, entry in captions.items() if key in keys}
        shards += write_shards(read_samples(chosen), root=root, split=split)
    ShardIndex(root=root, name=f"emoji_{count}", shards=tuple(shards)).save()


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
