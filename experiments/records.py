"""Records of speed: `python -m experiments.records verify <folder>` holds a record's claim against its log.

`add <run>` makes a record of a run that ended at its `target=`, and `replay <folder>` runs its command again.
`experiments/records/README.md` has the rules. A record's folder has its claim, and the config and the log of
the run that show it.
"""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.checkpoints.provenance import CONFIG, facts_of, flat, published
from ldm.io.curves import CPU_SECONDS, LOSS, SECONDS, Line, read_lines
from ldm.io.fields import Fields
from ldm.io.reading import hash_file, read_json, read_yaml
from ldm.io.writing import new_folder, write

HOME = Path(__file__).with_suffix("")
RECORD, LOG = "record.json", "metrics.jsonl"
# What makes losses comparable: the shipped latents and texts, and what the network predicts.
TRACK = {
    "codec.autoencoder": "shipped",
    "codec.text_encoder": "shipped",
    "process.schedule._target_": "ldm.diffusion.schedules.rectified_flow",
    "process.prediction._target_": "ldm.diffusion.predictions.Flow",
}


@dataclass(kw_only=True)
class Options:
    """What is done with which record."""

    verb: str = option("verify", "verify a record, add that of a run, or replay one.", place=True)
    folder: str = option("", "The record's folder, or that of the run to add.", place=True)
    name: str = option("", "Name of the record that is added.")
    data: str = option("data/emoji", "Data to replay on.")


@dataclass(frozen=True, kw_only=True)
class Record:
    """A claim: a training reached a loss at a step, after so many seconds.

    Attributes:
        loss: the target, of `val/loss_fixed`.
        seconds, cpu_seconds: from the first batch to the end of that validation, validations included, by the
            clock and of all cores of the process.
        files: sha256 by name.
    """

    loss: float
    step: int
    seconds: float
    cpu_seconds: float
    data: str
    command: str
    commit: str | None
    dirty: bool | None
    machine: str
    files: Mapping[str, str]


def main(options: Options) -> None:
    """Verifies, adds or replays.

    Raises:
        UserError: an unknown verb, a folder that is missing; see `verified`, `add` and `replay`.
    """
    if options.verb not in ("verify", "add", "replay"):
        raise UserError(f"{options.verb} is unknown: write verify, add or replay, then a folder")
    if not options.folder:
        raise UserError(f"folder= is empty: write python -m experiments.records {options.verb} <folder>")
    folder = Path(options.folder)
    if options.verb == "add":
        if not options.name:
            raise UserError("name= is empty: it becomes the folder of the record below experiments/records")
        folder = HOME / options.name
        return print(f"{folder}: {sentence(add(Path(options.folder), folder))}")
    record = verified(folder)
    print(f"{folder}: {sentence(record)}; its log shows it")
    if options.verb == "replay":
        replay(record, data=options.data)


def sentence(record: Record) -> str:
    """A record in words."""
    return (
        f"emoji to {record.loss} in {record.seconds:.1f} s ({record.cpu_seconds:.1f} s of CPU), "
        f"{record.step + 1} steps"
    )


def replay(record: Record, *, data: str) -> None:
    """Runs a record's command, and prints what it took.

    Raises:
        UserError: a command that is no training's, or that fails; a training that doesn't reach the target.
    """
    words = shlex.split(record.command)
    if words[:3] != ["python", "-m", "ldm.train"]:
        raise UserError(f"the record's command is no training: {record.command}")
    with TemporaryDirectory() as runs:
        places = [f"runs={runs}", f"data.root={data}", "hydra.mode=RUN"]
        done = subprocess.run([sys.executable, *words[1:], *places], check=False)
        logs = sorted(Path(runs).glob(f"*/*/{LOG}"))
        if done.returncode or not logs:
            raise UserError(f"the record's command ended with status {done.returncode}: {record.command}")
        line = crossing(logs[-1], target=record.loss)
    seconds, own = line.values[SECONDS], line.values[CPU_SECONDS]
    print(f"replayed: {seconds:.1f} s ({own:.1f} s of CPU), {line.step + 1} steps")


def record_of(run: Path) -> Record:
    """The record of a run that ended at its target.

    Raises:
        UserError: no run, or one that hasn't reached its target.
    """
    facts = facts_of(run)
    if "run" not in facts or facts.get("target") is None:
        raise UserError(f"{run} is no run with a target: train with target=<loss>, and name its folder")
    line = crossing(run / LOG, target=facts["target"])
    made = facts["run"]
    return Record(
        loss=facts["target"],
        step=line.step,
        seconds=line.values[SECONDS],
        cpu_seconds=line.values[CPU_SECONDS],
        data=made["inputs"].get("data.root", ""),
        machine=f"{made['machine']}, torch {made['torch']}",
        files={name: hashlib.sha256(text.encode()).hexdigest() for name, text in shown_files(run).items()},
        **published({name: made[name] for name in ("command", "commit", "dirty")}),
    )


def shown_files(run: Path) -> dict[str, str]:
    """Config and log of a run, by name, with paths as `published` shows them."""
    return {name: published((run / name).read_text(encoding="utf-8")) for name in (CONFIG, LOG)}


def add(run: Path, folder: Path) -> Record:
    """Makes a record's folder from a run, whole or not at all."""
    record = record_of(run)
    check_track(run / CONFIG, record)
    with new_folder(folder) as made:
        for name in record.files:
            write(made / name, shown_files(run)[name])
        write(made / RECORD, json.dumps(asdict(record), indent=2) + "\n")
    return record


def verified(folder: Path) -> Record:
    """The record in a folder, if its log shows what it claims.

    Raises:
        UserError: a file that is missing or was changed, a config of another track, a log whose clock runs
            back, or that doesn't reach the target where the record says.
    """
    record = read_record(folder)
    for name, sha256 in record.files.items():
        if not (folder / name).is_file() or hash_file(folder / name) != sha256:
            raise UserError(f"{folder / name} is missing or was changed: its sha256 is not the record's")
    check_track(folder / CONFIG, record)
    line = crossing(folder / LOG, target=record.loss)
    found = {"step": line.step, "seconds": line.values[SECONDS], "cpu_seconds": line.values[CPU_SECONDS]}
    for name, value in found.items():
        if value != getattr(record, name):
            raise UserError(
                f"{folder}: its log reaches {record.loss} at {name} {value}, not {getattr(record, name)}"
            )
    return record


def read_record(folder: Path) -> Record:
    """The claim of a record's folder; UserError where there is none, or a damaged one."""
    path = folder / RECORD
    if not path.is_file():
        raise UserError(f"there is no record at {folder}: it needs a {RECORD}")
    fields = Fields.of(read_json(path), name=str(path))
    try:
        record = Record(**fields.values)
        numbers = (record.loss, record.step, record.seconds, record.cpu_seconds)
        if not all(isinstance(each, int | float) for each in numbers) or {*record.files} != {CONFIG, LOG}:
            raise TypeError("its numbers or its files are not those of a record")
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error}): make the record again") from error
    return record


def crossing(log: Path, *, target: float) -> Line:
    """The validation that ends a training at its target.

    Raises:
        UserError: damaged lines, steps or clocks that don't rise, or a last validation that isn't the first
            at the target.
    """
    lines, damaged = read_lines(log)
    if damaged:
        raise UserError(f"{log} has {damaged} damaged lines: a record's log is whole")
    checked = [line for line in lines if LOSS in line.values and SECONDS in line.values]
    for before, after in pairwise(checked):
        early = {"step": before.step, **before.values}
        late = {"step": after.step, **after.values}
        if slow := next((name for name in ("step", SECONDS, CPU_SECONDS) if late[name] <= early[name]), None):
            raise UserError(
                f"{log}: {slow} must rise between validations, and goes from {early[slow]} to {late[slow]}"
            )
    reached = [line for line in checked if line.values[LOSS] <= target]
    if not reached or reached[0] is not checked[-1]:
        raise UserError(f"{log}: its last validation is not the first whose {LOSS} is at most {target}")
    return reached[0]


def check_track(config: Path, record: Record) -> None:
    """Refuses the config of another target, other latents or another prediction: losses would not compare."""
    found = flat(read_yaml(config), aside=())
    for name, value in {**TRACK, "target": record.loss}.items():
        if found.get(name) != value:
            raise UserError(f"{config}: {name} is {found.get(name)}, and this record needs {value}")


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
