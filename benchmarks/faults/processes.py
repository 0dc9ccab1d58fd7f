"""What can happen to a preparation while it runs."""

import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.faults.world import (
    HEALED,
    REFUSED,
    Answer,
    caption,
    encoded,
    flat,
    quiet,
    several,
    wrong_pairs,
)
from benchmarks.harness import Fault
from benchmarks.processes import children
from data_prep import flickr30k
from data_prep.making import NOTES
from data_prep.preparation import sole_writer
from ldm.data.index import FILE_NAME

COPIES, GREYS, SIDE = 12, 10, 400
FILE_LIMIT = 30_000  # bytes, less than a shard has
PICTURES = [(f"c{copy:02d}g{n}.jpg", n) for copy in range(COPIES) for n in range(GREYS)]


def write_source(source: Path) -> Path:
    """Enough pictures to be stopped in the midst of them."""
    source.mkdir(parents=True)
    files = [encoded(flat(n, size=(SIDE, SIDE)), "JPEG", quality=95) for n in range(GREYS)]
    for name, n in PICTURES:
        (source / name).write_bytes(files[n])
    rows = "".join(f"{name}#0\t{caption(n)}\n" for name, n in PICTURES)
    (source / "results_20130124.token").write_text(rows)
    return source


def options(folder: Path, *, num_workers: int = 0) -> flickr30k.Options:
    return flickr30k.Options(
        source=str(folder / "source"),
        out=str(folder / "out"),
        resolution=128,
        samples_per_shard=10,
        num_workers=num_workers,
    )


def prepare(folder: Path, num_workers: int = 0) -> None:
    """The command, with what it refuses in a file."""
    try:
        with quiet():
            flickr30k.main(options(folder, num_workers=num_workers))
    except ValueError as error:
        (folder / "refusal").write_text(str(error))


def start(folder: Path, **arguments: object) -> multiprocessing.Process:
    """The command in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=prepare, args=(folder,), kwargs=arguments)
    process.start()
    return process


def expected(folder: Path) -> bytes:
    """The index of the same set, prepared in peace."""
    write_source(folder / "source")
    prepare(folder)
    index = (folder / "out" / FILE_NAME).read_bytes()
    (folder / "out").rename(folder / "quiet")
    return index


def resumed(folder: Path, index: bytes) -> Answer:
    """Runs the command again: the set must be the one that was prepared in peace."""
    prepare(folder)
    out = folder / "out"
    same = (out / FILE_NAME).read_bytes() == index and not list(out.glob(".tmp-*")) + list(out.glob(NOTES))
    wrong = wrong_pairs(out)
    for path in out.iterdir():
        path.unlink()
    says = "the same bytes after running it again"
    return Answer(HEALED if same else "another set", wrong, says=says)


def kill_command(folder: Path, trials: int) -> Answer:
    """SIGKILL at moments from the first to the last."""
    index = expected(folder)
    verdicts, draw = [], random.Random(0)
    for _ in range(trials):
        process = start(folder, num_workers=2)
        time.sleep(draw.uniform(0.0, 1.0))
        process.kill()
        process.join()
        verdicts.append(resumed(folder, index))
    return several(verdicts)


def kill_worker(folder: Path, trials: int) -> Answer:
    """SIGKILL to one of the workers: one sentence, and the next run resumes."""
    index = expected(folder)
    verdicts = []
    for _ in range(max(1, trials // 10)):
        (folder / "refusal").unlink(missing_ok=True)
        process = start(folder, num_workers=2)
        while process.is_alive() and not (workers := children(process.pid or 0)):
            time.sleep(0.01)
        os.kill(workers[0], signal.SIGKILL)
        process.join()
        says = (folder / "refusal").read_text()
        verdict = resumed(folder, index)
        answered = "a worker process was killed" in says and verdict.answer == HEALED
        verdicts.append(replace(verdict, answer=REFUSED if answered else "no answer", says=says))
    return several(verdicts)


def refused(damage: Callable[[Path], None], folder: Path, _trials: int) -> Answer:
    """The command in a process of its own, after something that it can't work with."""
    write_source(folder / "source")

    def act() -> None:
        damage(folder)
        prepare(folder)

    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    process.join()
    index = folder / "out" / FILE_NAME
    if process.exitcode or index.exists():
        return Answer(f"exit status {process.exitcode}, index {index.exists()}")
    return Answer(REFUSED, says=(folder / "refusal").read_text())


def fill_disk(_folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def second_writer(folder: Path, _trials: int) -> Answer:
    """Two commands for one folder at once."""
    write_source(folder / "source")
    with sole_writer(folder / "out"):
        prepare(folder)
    return Answer(REFUSED, says=(folder / "refusal").read_text())


def interrupted(damage: Callable[[Path], None], folder: Path, _trials: int) -> Answer:
    """A preparation that stopped before its index; what it left is damaged before it is run again."""
    index = expected(folder)
    process = start(folder, num_workers=1)
    while process.is_alive() and len(list((folder / "out").glob("*.tar"))) < 4:
        time.sleep(0.005)
    process.kill()
    process.join()
    damage(folder / "out")
    return resumed(folder, index)


def first_note(out: Path) -> Path:
    return sorted((out / NOTES).glob("*.json"))[0]


LEFT: dict[str, Callable[[Path], None]] = {
    "finished shard cut": lambda out: os.truncate(sorted(out.glob("*.tar"))[0], 2000),
    "finished shard lost": lambda out: sorted(out.glob("*.tar"))[0].unlink(),
    "note of a shard cut": lambda out: os.truncate(first_note(out), 50),
    "note of another plan": lambda out: (
        first_note(out).write_text(first_note(out).read_text().replace('"plan": "', '"plan": "0')) and None
    ),
    "leftovers of a temporary file": lambda out: (out / ".tmp-0123").write_bytes(bytes(9)) and None,
}

FAULTS = [
    Fault(area="processes", name="command killed", answer=HEALED, run=kill_command),
    Fault(area="processes", name="worker killed", answer=REFUSED, run=kill_worker),
    Fault(area="processes", name="disk full", answer=REFUSED, run=partial(refused, fill_disk)),
    Fault(
        area="processes",
        name="out is a file",
        answer=REFUSED,
        run=partial(refused, lambda folder: (folder / "out").write_text("") and None),
    ),
    Fault(area="processes", name="second command for the same folder", answer=REFUSED, run=second_writer),
    *(
        Fault(area="processes", name=f"killed, then {name}", answer=HEALED, run=partial(interrupted, damage))
        for name, damage in LEFT.items()
    ),
]
