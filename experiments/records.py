"""Records of speed: `python -m experiments.records verify <folder>` holds a record's claim against its log.

`add <run>` makes a record of a run that ended at its `target=`, and `replay <folder>` runs its command again.
`experiments/records/README.md` has the rules.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from experiments.record import LOG, Record, add, crossing, verified
from ldm import UserError
from ldm.callbacks.target import CPU_SECONDS, SECONDS
from ldm.commands.options import command_line, option

HOME = Path(__file__).with_suffix("")


@dataclass(kw_only=True)
class Options:
    """What is done with which record."""

    verb: str = option("verify", "verify a record, add that of a run, or replay one.", place=True)
    folder: str = option("", "The record's folder, or that of the run to add.", place=True)
    name: str = option("", "Name of the record that is added.")
    data: str = option("data/emoji", "Data to replay on.")


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


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
