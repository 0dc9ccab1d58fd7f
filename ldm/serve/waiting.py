"""The pictures that wait to be made, and which of them one call of a generator makes next."""

from collections import deque
from itertools import takewhile

from ldm.serve.jobs import Job, Slot


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
