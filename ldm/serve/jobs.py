"""The queue of jobs. A job is one request; it has a slot for each of its pictures, filled one by one."""

import io
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from PIL import Image

from ldm.io.pictures import encode_png
from ldm.serve.worker import Task


@dataclass
class Slot:
    """One picture of a job; `state` is waiting, running, done or dropped."""

    task: Task
    state: str = "waiting"
    step: int = 0
    frames: list[bytes] = field(default_factory=list)  # previews, PNG
    picture: str | None = None  # id


@dataclass
class Job:
    """Pictures of one request; `state` is queued, running, finished, stopped or failed."""

    id: str
    request: Mapping[str, Any]
    model: str
    slots: list[Slot]
    options: Mapping[str, Any]
    strength: float | None
    created: float = field(default_factory=time.time)
    started: float | None = None
    state: str = "queued"
    steps: int = 0  # of one picture; 0: not known yet
    error: str | None = None
    note: str | None = None  # what the user should know of its pictures
    kind: str = "picture"  # of its pictures; another one is in no list of jobs and no history
    alone: bool = False  # shares no call with other jobs, since such a call has failed
    version: int = 0  # counts changes

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("finished", "stopped", "failed")

    def key(self) -> tuple[Any, ...]:
        """Pictures with equal keys can be made by one call."""
        source = self.slots[0].task.image is not None
        options = repr(sorted(self.options.items()))
        return (self.model, options, source, self.strength if source else None, self.id if self.alone else "")

    def progress(self) -> tuple[int, int]:
        """Steps that are done and steps in all, those of all pictures added up."""
        counted = [slot for slot in self.slots if slot.state != "dropped"]
        done = sum(self.steps if slot.state == "done" else slot.step for slot in counted)
        return done, self.steps * len(counted)

    def shown(self, position: int | None) -> dict[str, Any]:
        """The job as `GET /v1/jobs/{id}` returns it; `position` is its place in the queue."""
        step, steps = self.progress()
        left = None
        if self.started is not None and step and not self.ended:
            left = max(0.0, round((time.time() - self.started) * (steps - step) / step, 1))
        return {
            "id": self.id,
            "state": self.state,
            "created": self.created,
            "model": self.model,
            "position": position,
            "step": step,
            "steps": steps,
            "seconds_left": left,
            "seeds": [slot.task.seed for slot in self.slots],
            "pictures": [slot.picture for slot in self.slots],
            "previews": [self.preview(number) for number in range(len(self.slots))],
            "error": self.error,
            "note": self.note,
            "request": dict(self.request),
        }

    def preview(self, number: int) -> str | None:
        """Where the newest preview of a picture is found; None before the first and once it is done."""
        slot = self.slots[number]
        if not slot.frames or slot.state in ("done", "dropped"):
            return None
        return f"/v1/jobs/{self.id}/preview/{number}?step={len(slot.frames)}"


def note_of(facts: Mapping[str, Any]) -> str | None:
    """A sentence for the user if the prompt of a picture with this record was cut; None if it was not."""
    tokens = facts.get("tokens") or {}
    for name, read in (("prompt", "read"), ("negative", "negative_read")):
        if tokens.get(name, 0) > tokens.get(read, 0):
            return f"the {name} has {tokens[name]} tokens, and the model reads the first {tokens[read]}"
    return None


def strip_of(frames: list[bytes]) -> bytes:
    """Previews beside each other in one PNG; empty without previews."""
    if not frames:
        return b""
    pictures = [Image.open(io.BytesIO(frame), formats=("PNG",)) for frame in frames]
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * width, 0))
    return encode_png(strip, pnginfo=None)


class Waiting:
    """Pictures that wait, oldest first, each with its job; not safe for several threads by itself."""

    def __init__(self) -> None:
        self._pairs: deque[tuple[Job, Slot]] = deque()

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, job: Job) -> None:
        """Adds all pictures of a job at the end."""
        self._pairs.extend((job, slot) for slot in job.slots)

    def put_back(self, job: Job, slots: list[Slot]) -> None:
        """Puts pictures that are to be tried again at the front, in their order."""
        for slot in reversed(slots):
            slot.state, slot.step, slot.frames = "waiting", 0, []
            self._pairs.appendleft((job, slot))

    def drop(self, job: Job) -> None:
        """Removes what a job still has here."""
        self._pairs = deque(each for each in self._pairs if each[0] is not job)

    def take(self, most: int) -> list[tuple[Job, Slot]]:
        """Removes and returns the oldest picture with the next ones that one call can make beside it."""
        key = self._pairs[0][0].key()
        fitting = [each for each in self._pairs if each[0].key() == key][:most]
        taken = {id(slot) for _, slot in fitting}
        self._pairs = deque(each for each in self._pairs if id(each[1]) not in taken)
        for job in {job.id: job for job, _ in self._pairs}.values():
            job.version += 1  # its place in the queue has changed
        return fitting

    def ahead(self, job: Job) -> int:
        """How many other jobs are before a job."""
        return len({other.id for other, _ in takewhile(lambda each: each[0] is not job, self._pairs)})
