"""What becomes of a training when W&B is out of order: absent, broken, slow or gone, or its process dead.

    python -m benchmarks.wandb_faults [--root data/emoji] [--steps 300] [--only "drips" ...]

Each fault meets a training of its own, started as a user would start it, with a service on this machine.
Prints seconds from start to end and what they are beside a training that logs to no service, the exit status,
lines in metrics.jsonl and in W&B's record, how many the service got, processes left, and what was told. A run
is lost here if its status isn't 0, a line is missing in metrics.jsonl, its report or bundle is missing, it
takes more than 60 s more, or it leaves a process. Linux.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rank_faults import is_alive
from benchmarks.wandb_services import (
    KEY,
    Behaviour,
    Service,
    answers,
    black_hole,
    drips,
    errs,
    knows_nobody,
    wait_for,
)

MORE = 60.0  # seconds that a fault may cost
LEFT = 10.0  # seconds after which a process counts as left behind
LIMIT = 900.0  # seconds after which a training counts as hung
CORE = "wandb-core"
TRAINING = (
    "+experiment=emoji_vae",
    "trainer=cpu",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "batch_size=8",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=100",
    "trainer.precision=32",
)
During = Callable[[Service, int], None]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """How the service behaves from the start, and what happens once the training has logged some steps."""

    behaviour: Behaviour = answers
    during: During | None = None
    wanted: bool = True  # whether the training may send
    open: bool = True  # whether anybody listens


def children(pid: int) -> list[int]:
    """Processes that any thread of one has started."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(text) for each in found for text in each]


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


FAULTS: dict[str, Fault] = {
    "no service": Fault(wanted=False),
    "all well": Fault(),
    "refuses the connection": Fault(open=False),
    "black hole": Fault(behaviour=black_hole),
    "errors": Fault(behaviour=errs),
    "drips": Fault(behaviour=drips),
    "unknown key": Fault(behaviour=knows_nobody),
    "becomes a black hole": Fault(during=become(black_hole)),
    "becomes errors": Fault(during=become(errs)),
    "becomes a drip": Fault(during=become(drips)),
    "vanishes": Fault(during=lambda service, training: service.vanish()),
    "recording process killed": Fault(during=send(signal.SIGKILL)),
    "recording process stopped": Fault(during=send(signal.SIGSTOP)),
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a training ended."""

    seconds: float
    status: int | None
    steps: int
    lines: int
    recorded: int
    sent: int
    left: int
    whole: bool
    told: str

    def lost(self, usual: float) -> bool:
        """Whether the run is lost, beside one that usually takes so many seconds."""
        missing = self.lines != self.steps or not self.whole
        return self.status != 0 or missing or self.left > 0 or self.seconds > usual + MORE


def meet(fault: Fault, *, root: Path, steps: int, folder: Path) -> Outcome:
    """Trains under a fault."""
    with Service(fault.behaviour) as service:
        if not fault.open:
            service.vanish()
        environment = os.environ | {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": KEY}
        arguments = [*TRAINING, f"data.root={root}", f"steps={steps}", f"runs={folder}", "logger=wandb"]
        began = time.monotonic()
        output = folder / "output.txt"
        with output.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "ldm.train", *arguments],
                env=environment | ({} if fault.wanted else {"WANDB_MODE": "offline"}),
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        wait_for(lambda: under_way(folder) or process.poll() is not None, seconds=LIMIT)
        family = descendants(process.pid)
        if fault.during is not None:
            fault.during(service, process.pid)
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = None
        seconds = time.monotonic() - began
        wait_for(lambda: not any(map(is_alive, family)), seconds=LEFT)
        left = sum(map(is_alive, family))
        for pid in filter(is_alive, [process.pid, *family]):
            os.kill(pid, signal.SIGKILL)
        run = next(folder.glob("*/*/run.json")).parent
        told = re.findall(r"W&B[: ][^\r\n]*", output.read_text(errors="replace"))
        return Outcome(
            seconds=seconds,
            status=status,
            steps=steps,
            lines=trained_lines((run / "metrics.jsonl").read_text().splitlines()),
            recorded=recorded_lines(run),
            sent=len({line["_step"] for line in service.history if "train/total" in line}),
            left=left,
            whole=(run / "report.md").is_file() and (run / "bundle" / "config.yaml").is_file(),
            told="; ".join(told).replace(str(run), "."),
        )


def under_way(folder: Path) -> bool:
    """Whether some steps are logged, and it is decided whether they are sent."""
    logs = list(folder.glob("*/*/metrics.jsonl"))
    told = "W&B: recording" in (folder / "output.txt").read_text(errors="replace")
    decided = told or any(folder.glob("*/*/wandb/sending.log"))
    return decided and bool(logs) and trained_lines(logs[0].read_text().splitlines()) > 5


def descendants(pid: int) -> list[int]:
    """Processes below one."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


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
    lost, usual = 0, None
    for name, fault in FAULTS.items():
        if only and name not in [*only, "no service"]:
            continue
        with tempfile.TemporaryDirectory(prefix="ldm-") as folder:
            found = meet(fault, root=root.resolve(), steps=steps, folder=Path(folder))
        usual = found.seconds if usual is None else usual
        lost += (bad := found.lost(usual))
        print(
            f"{'LOST' if bad else 'whole'} | {name} | {found.seconds:.1f} s ({found.seconds - usual:+.1f}) | "
            f"status {found.status} | {found.lines} of {steps} lines, {found.recorded} recorded, "
            f"{found.sent} sent | {found.left} left | {found.told}",
            flush=True,
        )
    print(f"{lost} runs lost")
    return lost


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data/emoji"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    sys.exit(int(main(given.root, given.steps, given.only) > 0))
