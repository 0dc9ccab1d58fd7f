"""What becomes of a training of two ranks when one of its processes, or its logger, dies or hangs.

    python -m benchmarks.rank_faults [--root data/emoji] [--patience 20] [--only "rank 1 stopped" ...]

Each fault meets a training of its own, started as a user would start it. Prints how long it went on, its
exit status, the cause that it told and the processes that outlived it. A training fails here if it goes on
for more than 120 s, ends without a cause, or leaves a process. Linux. Faults of measures of drawings are in
`metric_faults`, what is cancelled is in `cancels`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LIMIT = 120.0  # seconds that a training may go on
START = 600.0  # seconds in which it must log its first steps
LEFT = 10.0  # seconds after which a process counts as left behind
TRAINING = (
    "+experiment=emoji_vae",
    "trainer=cpu_ddp",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "data.num_workers=1",
    "batch_size=4",
    "steps=1000000",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32",
)


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Those of a training, by what they are, and its log."""

    watcher: int
    ranks: list[int]
    loader: int
    log: Path


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a training ended."""

    seconds: float
    status: int | None
    cause: str
    left: int

    @property
    def good(self) -> bool:
        return self.seconds < LIMIT and self.status not in (None, 0) and bool(self.cause) and not self.left


def blocked(log: Path) -> None:
    """Makes a log that takes no line and gives no error: a pipe that nobody reads."""
    log.rename(log.with_name("before.jsonl"))
    os.mkfifo(log)


def broken(log: Path) -> None:
    """Makes a log that can't be opened."""
    log.rename(log.with_name("before.jsonl"))
    log.mkdir()


FAULTS: dict[str, Callable[[Processes], None]] = {
    "rank 0 killed": lambda found: os.kill(found.ranks[0], signal.SIGKILL),
    "rank 1 killed": lambda found: os.kill(found.ranks[1], signal.SIGKILL),
    "rank 0 stopped": lambda found: os.kill(found.ranks[0], signal.SIGSTOP),
    "rank 1 stopped": lambda found: os.kill(found.ranks[1], signal.SIGSTOP),
    "loader process killed": lambda found: os.kill(found.loader, signal.SIGKILL),
    "loader process stopped": lambda found: os.kill(found.loader, signal.SIGSTOP),
    "logger fails": lambda found: broken(found.log),
    "logger hangs": lambda found: blocked(found.log),
    "watcher killed": lambda found: os.kill(found.watcher, signal.SIGKILL),
}


def children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def rank_of(pid: int) -> int:
    """The RANK that a process was started with."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(each.removeprefix(b"RANK=")) for each in variables if each.startswith(b"RANK="))


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def found_of(process: "subprocess.Popen[bytes]", runs: Path) -> Processes:
    """The processes of a training that has logged its first steps.

    Raises:
        RuntimeError: it logs none.
    """
    deadline = time.monotonic() + START
    while time.monotonic() < deadline and process.poll() is None:
        logs = [log for log in runs.glob("*/*/metrics.jsonl") if log.stat().st_size > 1000]
        if logs:
            ranks = sorted(children(process.pid), key=rank_of)
            return Processes(watcher=process.pid, ranks=ranks, loader=children(ranks[1])[0], log=logs[0])
        time.sleep(0.2)
    raise RuntimeError("the training logs nothing: run it by hand to see why")


def meet(fault: Callable[[Processes], None], *, root: Path, patience: float) -> Verdict:
    """A training that meets a fault."""
    with tempfile.TemporaryDirectory() as folder:
        runs, errors = Path(folder) / "runs", Path(folder) / "errors"
        waits = [f"patience={patience}", f"+data.worker_timeout={patience / 2}"]
        command = [sys.executable, "-m", "ldm.train", *TRAINING, *waits, f"runs={runs}", f"data.root={root}"]
        with errors.open("wb") as stream:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream, process_group=0)
        everyone: list[int] = []
        try:
            found = found_of(process, runs)
            everyone = [*found.ranks, *(pid for rank in found.ranks for pid in children(rank))]
            started = time.monotonic()
            fault(found)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LIMIT)
            seconds = time.monotonic() - started
            while any(map(is_alive, everyone)) and time.monotonic() < started + seconds + LEFT:
                time.sleep(0.1)
            lines = errors.read_text(errors="replace").replace("\r", "\n").split("\n")
            causes = [line.removeprefix("ldm: ") for line in lines if line.startswith("ldm: ")]
            left = sum(map(is_alive, everyone))
            return Verdict(
                seconds=seconds,
                status=process.poll(),
                cause=" | ".join(causes) or ("(killed itself)" if process.poll() == -signal.SIGKILL else ""),
                left=left,
            )
        finally:
            process.kill()
            process.wait()
            for pid in everyone:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(runs, ignore_errors=True)


def main() -> None:
    """Prints the table; exit status 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="folder of prepared shards")
    parser.add_argument("--patience", type=float, default=20.0, help="of the training, in seconds")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    failures = 0
    for name in options.only:
        verdict = meet(FAULTS[name], root=options.root.resolve(), patience=options.patience)
        failures += not verdict.good
        mark = "ok  " if verdict.good else "FAIL"
        print(
            f"{mark} {name:<24}{verdict.seconds:6.1f} s  status {verdict.status}  left {verdict.left}  "
            f"{verdict.cause}",
            flush=True,
        )
    print(f"{len(options.only)} faults, {failures} failures, patience {options.patience:g} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
