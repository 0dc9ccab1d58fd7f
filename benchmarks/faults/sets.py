"""What can be wrong with a prepared set when a training opens it."""

import gzip
import json
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.world import (
    NUM_PICTURES,
    REFUSED,
    Answer,
    caption,
    encoded,
    flat,
    read_whole,
    several,
)
from benchmarks.harness import Fault
from data_prep.making import write_shards
from ldm.data import DataError
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.data.shards import Sample


def write_set(root: Path) -> Path:
    """Two shards to train on and one held out."""
    root.mkdir(parents=True, exist_ok=True)
    samples = [
        Sample(
            key=f"p{n:02d}",
            image=encoded(flat(n), "JPEG", quality=95),
            extension="jpg",
            texts=[caption(n)],
            comment_nos=[0],
        )
        for n in range(NUM_PICTURES)
    ]
    shards = [
        *write_shards(samples[:12], root=root, split="train", samples_per_shard=6),
        *write_shards(samples[12:], root=root, split="val"),
    ]
    ShardIndex(root=root, name="faults", shards=tuple(shards)).save()
    return root


def run_damaged(damage: Callable[[Path], None], root: Path, _trials: int) -> Answer:
    """Reads a set after damage."""
    damage(write_set(root))
    return read_whole(root)


def rewrite(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Damage to the index alone."""

    def damage(root: Path) -> None:
        document = json.loads((root / FILE_NAME).read_text())
        edit(document)
        (root / FILE_NAME).write_text(json.dumps(document))

    return damage


def index_of(text: str) -> Callable[[Path], None]:
    return lambda root: (root / FILE_NAME).write_text(text) and None


def swap(name: str) -> Callable[[dict[str, Any]], None]:
    """The places of two samples exchanged: each would get the other's picture or captions."""

    def edit(document: dict[str, Any]) -> None:
        entries = document["shards"][0][name]
        entries[0], entries[1] = entries[1], entries[0]

    return edit


def put(number: int, name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["shards"][number].__setitem__(name, value)


def exchange_files(root: Path) -> None:
    """The two training shards under each other's name."""
    first, second, between = root / "train-000000.tar", root / "train-000001.tar", root / "between"
    first.rename(between)
    second.rename(first)
    between.rename(second)


def compress(root: Path) -> None:
    path = root / "train-000000.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    rewrite(put(0, "bytes", path.stat().st_size))(root)


def cut(root: Path, trials: int) -> Answer:
    """A shard cut at places from its first byte to its last."""
    write_set(root)
    path = root / "train-000000.tar"
    whole = path.read_bytes()
    verdicts = []
    for trial in range(trials):
        path.write_bytes(whole[: len(whole) * trial // trials])
        verdicts.append(read_whole(root))
    return several(verdicts)


def cut_while_open(root: Path, trials: int) -> Answer:
    """The same, with the index made to agree: as if the shard were cut after the index was read."""
    write_set(root)
    path = root / "train-000000.tar"
    whole, last = path.read_bytes(), ShardIndex.load(root).shards[0].records[-1]
    verdicts = []
    for trial in range(trials):
        path.write_bytes(whole)
        index = ShardIndex.load(root)
        path.write_bytes(whole[: sum(last) * trial // trials])
        try:
            index.verify()
        except DataError as error:
            verdicts.append(Answer(REFUSED, says=str(error)))
    return several(verdicts)


def flip_bits(root: Path, trials: int) -> Answer:
    """One bit of a shard flipped, wherever: verify finds it, and reading refuses it or has no use for it."""
    write_set(root)
    path = root / "train-000000.tar"
    whole, verdicts, draw = path.read_bytes(), [], random.Random(0)
    for _ in range(trials):
        path.write_bytes(flipped(whole, draw.randrange(len(whole)), draw.randrange(8)))
        wrong = read_whole(root).wrong_pairs
        try:
            ShardIndex.load(root).verify()
        except DataError as error:
            verdicts.append(Answer(REFUSED, wrong, says=str(error)))
    return several(verdicts)


def flip_bits_of_samples(root: Path, trials: int) -> Answer:
    """One bit of a picture or its captions flipped: refused when a training comes to it."""
    write_set(root)
    path, shard = root / "train-000000.tar", ShardIndex.load(root).shards[0]
    whole, verdicts, draw = path.read_bytes(), [], random.Random(0)
    for _ in range(trials):
        offset, size = draw.choice(shard.images + shard.records)
        path.write_bytes(flipped(whole, offset + draw.randrange(size), draw.randrange(8)))
        verdicts.append(read_whole(root))
    return several(verdicts)


def flipped(data: bytes, place: int, bit: int) -> bytes:
    """The same with one bit of one byte turned round."""
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def fuzz_index(root: Path, trials: int) -> Answer:
    """Bytes of the index changed: refused, or no pair is wrong."""
    write_set(root)
    path, draw = root / FILE_NAME, random.Random(0)
    whole, verdicts = path.read_bytes(), []
    for _ in range(trials):
        mutant = bytearray(whole)
        mutant[draw.randrange(len(mutant))] = draw.randrange(32, 127)
        path.write_bytes(mutant)
        verdicts.append(read_whole(root))
    refused = sum(verdict.answer == REFUSED for verdict in verdicts)
    wrong = sum(verdict.wrong_pairs for verdict in verdicts)
    says = f"{refused} refused; the others give the right pairs"
    return Answer(REFUSED, wrong, tries=trials, says=says)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "index missing": lambda root: (root / FILE_NAME).unlink(),
    "index empty": index_of(""),
    "index that is a list": index_of("[]"),
    "index 100,000 brackets deep": index_of("[" * 100_000),
    "index of another format": rewrite(lambda document: document.update(format=99)),
    "index that names ../": rewrite(put(0, "file", "../train-000000.tar")),
    "index that names /etc/passwd": rewrite(put(0, "file", "/etc/passwd")),
    "index whose file is a number": rewrite(put(0, "file", 7)),
    "index with a picture outside its shard": rewrite(put(0, "images", [[512, 10**9]] * 6)),
    "index with a negative offset": rewrite(put(0, "images", [[-512, 10]] * 6)),
    "index with an infinite offset": rewrite(put(0, "images", [[float("inf"), 10]] * 6)),
    "index with two pictures exchanged": rewrite(swap("images")),
    "index with two records exchanged": rewrite(swap("records")),
    "index with two keys exchanged": rewrite(swap("keys")),
    "index with a key twice": rewrite(put(0, "keys", ["p00"] * 6)),
    "index with a key in two splits": rewrite(put(2, "keys", ["p00", "p13", "p14", "p15"])),
    "shard missing": lambda root: (root / "train-000001.tar").unlink(),
    "shard empty": lambda root: (root / "train-000001.tar").write_bytes(b"") and None,
    "shards under each other's name": exchange_files,
    "shard compressed": compress,
}

FAULTS = [
    *(
        Fault(area="sets", name=name, answer=REFUSED, run=partial(run_damaged, damage))
        for name, damage in DAMAGE.items()
    ),
    Fault(area="sets", name="shard cut", answer=REFUSED, run=cut),
    Fault(area="sets", name="shard cut after the index was read", answer=REFUSED, run=cut_while_open),
    Fault(area="sets", name="bit flipped in a shard (verify)", answer=REFUSED, run=flip_bits),
    Fault(area="sets", name="bit flipped in a sample", answer=REFUSED, run=flip_bits_of_samples),
    Fault(area="sets", name="byte changed in the index", answer=REFUSED, run=fuzz_index),
]
