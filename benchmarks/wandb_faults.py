"""What becomes of a training when W&B is out of order: absent, broken, slow or gone, or its process dead.

    python -m benchmarks.wandb_faults [--root data/emoji] [--steps 300] [--only "drips" ...]

Each fault meets a training of its own, started as a user would start it, with a service on this machine.
Prints seconds from start to end, the exit status, lines in metrics.jsonl and in W&B's record, how many the
service got, processes left, and what was printed about W&B. A run is lost here if its status isn't 0, a line
is missing in metrics.jsonl, its report or bundle is missing, it takes 60 s longer than without a service, or
it leaves a process. Linux.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic

from benchmarks.harness import Fault, Verdict, bring_about, table
from benchmarks.processes import (
    SMALL,
    Ending,
    children,
    descendants,
    ended,
    survivors,
    training,
    wait_for,
)
from benchmarks.wandb_services import (
    KEY,
    Behaviour,
    Service,
    answers,
    black_hole,
    drips,
    errs,
    knows_nobody,
)

MORE = 60.0  # seconds that a fault may cost
LEFT = 10.0  # seconds after which a process counts as left behind
LIMIT = 900.0  # seconds after which a training counts as hung
CORE = "wandb-core"
TRAINING = (*SMALL, "trainer=cpu", "batch_size=8", "trainer.val_check_interval=100", "logger=wandb")
During = Callable[[Service, int], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """How the service behaves from the start, and what happens once the training has logged some steps."""

    behaviour: Behaviour = answers
    during: During | None = None
    wanted: bool = True  # whether the training may send
    open: bool = True  # whether anybody listens


def recording(pid: int) -> int:
    """The process in which W&B writes the record of one, the newest if it has had several."""
    return max(each for each in children(pid) if Path(f"/proc/{each}/comm").read_text().strip() == CORE)


def become(behaviour: Behaviour) -> During:
    def change(service: Service, training: int) -> None:
        service.behaviour = behaviour

    return change


def send(number: signal.Signals) -> During:
    """Sends a signal to the process that writes the record."""

    def act(service: Service, training: int) -> None:
        os.kill(recording(training), number)

    return act


CASES: dict[str, Case] = {
    "no service": Case(wanted=False),
    "all well": Case(),
    "refuses the connection": Case(open=False),
    "black hole": Case(behaviour=black_hole),
    "errors": Case(behaviour=errs),
    "drips": Case(behaviour=drips),
    "unknown key": Case(behaviour=knows_nobody),
    "becomes a black hole": Case(during=become(black_hole)),
    "becomes errors": Case(during=become(errs)),
    "becomes a drip": Case(during=become(drips)),
    "vanishes": Case(during=lambda service, training: service.vanish()),
    "recording process killed": Case(during=send(signal.SIGKILL)),
    "recording process stopped": Case(during=send(signal.SIGSTOP)),
}


@dataclass(frozen=True, kw_only=True)
class Outcome(Ending):
    """How a training ended, and how many of its steps were logged, recorded for W&B, and sent."""

    lines: int
    recorded: int
    sent: int


def meet(case: Case, folder: Path, _tries: int, *, root: Path, steps: int) -> Outcome:
    """Trains under a fault."""
    with Service(case.behaviour) as service:
        if not case.open:
            service.vanish()
        variables = {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY, "XDG_STATE_HOME": str(folder)}
        variables |= {} if case.wanted else {"WANDB_MODE": "offline"}
        overrides = [*TRAINING, f"data.root={root}", f"steps={steps}", f"runs={folder}"]
        output, began = folder / "output.txt", monotonic()
        with (
            output.open("wb") as stream,
            training(*overrides, output=stream, variables=variables) as process,
        ):
            wait_for(lambda: under_way(folder) or process.poll() is not None, seconds=LIMIT)
            family = descendants(process.pid)
            if case.during is not None:
                case.during(service, process.pid)
            _, status = ended(process, within=LIMIT)
            seconds = monotonic() - began
            left = survivors(family, seconds=LEFT)
        run = next(folder.glob("*/*/run.json")).parent
        lines = trained_lines((run / "metrics.jsonl").read_text().splitlines())
        whole = (run / "report.md").is_file() and (run / "bundle" / "config.yaml").is_file()
        told = re.findall(r"W&B[: ][^\r\n]*", output.read_text(errors="replace"))
        wrongs = {
            f"status {status}": status != 0,
            f"{lines} of {steps} lines": lines != steps,
            "no report or no bundle": not whole,
            f"{left} processes left": left > 0,
        }
        return Outcome(
            seconds=seconds,
            status=status,
            left=left,
            lines=lines,
            recorded=recorded_lines(run),
            sent=len({line["_step"] for line in service.history if "train/total" in line}),
            failures=[sentence for sentence, wrong in wrongs.items() if wrong],
            says="; ".join(told).replace(str(run), "."),
        )


def under_way(folder: Path) -> bool:
    """Whether some steps are logged, and it is decided whether they are sent."""
    logs = list(folder.glob("*/*/metrics.jsonl"))
    told = "W&B: recording" in (folder / "output.txt").read_text(errors="replace")
    decided = told or any(folder.glob("*/*/wandb/sending.log"))
    return decided and bool(logs) and trained_lines(logs[0].read_text().splitlines()) > 5


def trained_lines(lines: list[str]) -> int:
    """How many steps were logged in whole lines."""
    return sum("train/total" in json.loads(line) for line in lines if line.endswith("}"))


def recorded_lines(run: Path) -> int:
    """How many steps W&B's own command finds in a run's record."""
    (record,) = (run / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
    text = subprocess.run(command, capture_output=True, text=True, check=False, cwd=run).stdout
    return sum('"type":"history"' in line and "train/total" in line for line in text.splitlines())


def main(root: Path, steps: int, only: list[str]) -> int:
    """Prints the table; returns how many runs were lost."""
    usual: list[float] = []  # seconds of the first training, which meets no service

    def run(fault: Fault) -> Verdict:
        found = bring_about(fault)
        if not isinstance(found, Outcome):
            return found
        usual.append(found.seconds)
        slow = [f"{found.seconds - usual[0]:.1f} s longer than without a service"]
        return replace(found, failures=[*found.failures, *slow * (found.seconds > usual[0] + MORE)])

    names = [name for name in CASES if not only or name in [*only, "no service"]]
    own = {"root": root.resolve(), "steps": steps}
    faults = [Fault(name=name, run=partial(meet, CASES[name], **own)) for name in names]
    columns = ("seconds", "status", "lines", "recorded", "sent", "left")
    lost = sum(not verdict.passed for _, verdict in table(faults, {name: name for name in columns}, run))
    print(f"{lost} runs lost")
    return lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/emoji"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    sys.exit(int(main(given.root, given.steps, given.only) > 0))
