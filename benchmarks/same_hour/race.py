"""What all sides of the race share: the data set, its frozen networks, and the time that a side has used."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.io.pictures import to_picture
from ldm.io.writing import write

BATCH = 16  # pictures generated at once
# one protocol for all sides: held-out captions, with floors of real pictures and the autoencoder's ceilings
SETS = (
    "[{name:heldout,split:val,captions:%s,"
    "metrics:[frechet,kernel,precision_recall,density_coverage,nearest,vendi,memorisation],few:[frechet]}]"
)


@dataclass(frozen=True, kw_only=True)
class Race:
    """A data set with the experiment that ours is, and the protocol that measures all sides."""

    experiment: str
    protocol: str
    captions: int | None  # held out; None: one per held-out picture

    def measured(self, root: str) -> list[str]:
        """Overrides of `ldm.evaluate`; a listed picture is generated once."""
        sets = SETS % ("null" if self.captions is None else self.captions)
        data = "emoji" if self.experiment == "emoji" else "flickr30k"
        shared = [f"data={data}", f"data.root={root}", "data.size=64", f"protocol={self.protocol}"]
        return [*shared, f"protocol.sets={sets}", "protocol.seeds=1"]


RACES = {
    "emoji": Race(experiment="emoji", protocol="emoji", captions=None),
    "flickr30k": Race(experiment="flickr_cpu", protocol="flickr_cpu", captions=600),
}
Generate = Callable[[Sequence[str], Sequence[int]], Tensor]  # captions, seeds -> uint8, b 3 h w


def samples_of_step(config: Mapping[str, Any]) -> int:
    """Samples of one optimizer step of all processes of our training; the peers' batch has as many."""
    trainer = config["trainer"]
    return int(config["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"])


def used(piece: Path) -> float:
    """Seconds of all processes that have trained a piece so far."""
    file = piece / "spent.json"
    return float(json.loads(file.read_text())) if file.is_file() else 0.0


def spend(piece: Path, seconds: float) -> None:
    """Notes the seconds that a piece has used."""
    write(piece / "spent.json", json.dumps(round(seconds, 2)))


def generate_listed(prompts: Path, folder: Path, generate: Generate) -> None:
    """Generates every picture of a list that `ldm.evaluate list_prompts=` wrote, but those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with prompts.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if not (folder / row["file"]).is_file()]
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        images = generate([row["caption"] for row in part], [int(row["seed"]) for row in part])
        for row, image in zip(part, images, strict=True):
            place = folder / row["file"]
            place.parent.mkdir(parents=True, exist_ok=True)
            draft = place.with_suffix(".draft")  # a picture that is there is whole
            to_picture(image).save(draft, format="PNG")
            draft.rename(place)
