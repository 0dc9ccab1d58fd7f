"""The jobs of a server: a bounded queue, and one thread that feeds the process with the networks."""

import itertools
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ldm import UserError
from ldm.serve.history import History, new_id
from ldm.serve.jobs import Job, Slot, Waiting, note_of, strip_of
from ldm.serve.networks import Networks
from ldm.serve.worker import Answer, Chunk, Failed, Made, Question, Step, Task

KEPT = 200  # ended jobs in memory; the history has all
PATIENCE = 0.5  # seconds for the step that is being made when the server ends
NO_ROOM = "the picture can't be stored: the server's log says why"
LOOK = 0.25  # seconds between two looks at whether the server is closing
ASKED = 8  # questions that wait at most


class Refused(UserError):
    """A request that is not accepted; `status` and `field` are those of the HTTP answer."""

    def __init__(
        self, sentence: str, *, status: int = 422, field: str | None = None, wait: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.field, self.wait = status, field, wait


class Service:
    """Jobs, models and history of one server. All methods may be called from any thread.

    Args:
        networks: the process that has the networks, started.
        limit: pictures that may wait.
        examples: prompts that a page offers for all models; None: for each model its own.
    """

    def __init__(
        self, networks: Networks, history: History, *, limit: int, examples: Sequence[str] | None = None
    ) -> None:
        self.networks, self.history, self.limit = networks, history, limit
        own = {} if examples is None else {"examples": list(examples)}
        self.models = {each["id"]: each | own for each in networks.ready.models}
        self.closing = False
        self._jobs: dict[str, Job] = {}
        self._waiting = Waiting()
        self._questions: deque[tuple[Question, Future[Any]]] = deque()
        self._running: list[tuple[Job, Slot]] = []
        self._numbers = itertools.count(1)
        self._changed = threading.Condition(threading.RLock())
        self._speed = 0.0  # seconds that the last chunk took
        self._thread = threading.Thread(target=self._work, name="service", daemon=True)
        self._thread.start()

    def submit(
        self,
        request: Mapping[str, Any],
        *,
        model: str,
        tasks: list[Task],
        options: Mapping[str, Any],
        strength: float | None = None,
        kind: str = "picture",
    ) -> dict[str, Any]:
        """Accepts a job and returns it; raises Refused where the queue is full or the server is closing.

        Jobs of pictures of another kind than `picture` are in no list and in no history.
        """
        slots = [Slot(task) for task in tasks]
        job = Job(new_id(), request, model, slots, options, strength, kind=kind)
        with self._changed:
            if self.closing or not self._thread.is_alive():
                raise Refused("the server is closing, or has a fault: start it again", status=503)
            if len(slots) > self.limit:
                raise Refused(f"{len(slots)} pictures are more than the queue takes, {self.limit}")
            if len(self._waiting) + len(slots) > self.limit:
                wait = max(1, round(self._speed * len(self._waiting) / self.networks.ready.chunk))
                raise Refused(
                    f"the queue is full: {len(self._waiting)} pictures wait, {self.limit} may",
                    status=429,
                    wait=wait,
                )
            if not self._store(job):  # else a restart would not know of it
                raise Refused("the job can't be stored: the server's log says why", status=503)
            self._jobs[job.id] = job
            self._waiting.add(job)
            self._changed.notify_all()
            return self._shown(job)

    def job(self, name: str) -> dict[str, Any] | None:
        """A job, from memory or from the history; None where there is none."""
        with self._changed:
            job = self._jobs.get(name)
            return self.history.job(name) if job is None else self._shown(job)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs, newest first."""
        with self._changed:
            stored = self.history.jobs(limit)
            return [self._shown(job) if (job := self._jobs.get(each["id"])) else each for each in stored]

    def version(self, name: str) -> int | None:
        """A number that grows whenever a job changes; None once it has ended or where there is none."""
        job = self._jobs.get(name)
        return None if job is None or job.ended else job.version

    def frame(self, name: str, number: int, step: int | None) -> bytes | None:
        """A preview of a job's picture, PNG: the newest, or the one of a step; None where there is none."""
        job = self._jobs.get(name)
        if job is None or not 0 <= number < len(job.slots):
            return None
        frames = job.slots[number].frames
        place = len(frames) if step is None else step
        return frames[place - 1] if 1 <= place <= len(frames) else None

    def stop(self, name: str) -> bool:
        """Drops what a job still has to make; False where it has ended or there is none."""
        return self._drop(name, also_waiting=True)

    def skip(self, name: str) -> bool:
        """Drops the pictures of a job that are now being made; False where there are none."""
        return self._drop(name, also_waiting=False)

    def _drop(self, name: str, *, also_waiting: bool) -> bool:
        with self._changed:
            job = self._jobs.get(name)
            if job is None or job.ended:
                return False
            states = ("running", "waiting") if also_waiting else ("running",)
            dropped = [slot for slot in job.slots if slot.state in states]
            for slot in dropped:
                slot.state, slot.frames = "dropped", []
            if also_waiting:
                self._waiting.drop(job)
                job.state = "stopped"
            if dropped:
                self._settle(job)
                self._stop_if_unwanted()
            return bool(dropped)

    def _stop_if_unwanted(self) -> None:
        if self._running and all(slot.state == "dropped" for _, slot in self._running):
            self.networks.stop()

    def ask(self, model: str, function: Callable[[Any, Any], Any], payload: Any, *, wait: float = 60) -> Any:
        """What `function(opened, payload)` returns in the process that has the networks, between two chunks.

        Raises Refused where too many wait, or with the function's own sentence.
        """
        future: Future[Any] = Future()
        with self._changed:
            if len(self._questions) >= ASKED or self.closing:
                raise Refused("too much is asked at once: try again", status=503, wait=2)
            self._questions.append((Question(next(self._numbers), model, function, payload), future))
            self._changed.notify_all()
        for _ in range(round(wait / LOOK)):
            with suppress(TimeoutError):
                return future.result(timeout=LOOK)
            if self.closing:  # the server ends before this thread's answer would come
                raise Refused("the server is closing", status=503)
        raise Refused("the networks are busy: try again", status=503, wait=5)

    def health(self) -> dict[str, Any]:
        """The state of the worker and the queue."""
        return {
            "status": "ok" if self._thread.is_alive() else "fault",
            "worker": "alive" if self.networks.alive() else "restarting",
            "queue": len(self._waiting),
            "limit": self.limit,
        }

    def close(self) -> None:
        """Accepts nothing more, and stops what is being made; the history marks it when it is closed."""
        with self._changed:
            self.closing = True
            self._changed.notify_all()
            if self._running:
                self.networks.stop()
        self._thread.join(timeout=PATIENCE)

    # the thread that feeds the networks

    def _work(self) -> None:
        question = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.closing or self._waiting or self._questions)
                if self.closing:
                    return
                turn = question is None or not self._waiting  # after a question come pictures, if some wait
                question = self._questions.popleft() if self._questions and turn else None
                chunk = None if question else self._next_chunk()
            try:
                if question:
                    self._answer(*question)
                elif chunk:
                    self._generate(chunk)
            except EOFError:
                self._lost(question)
            except (UserError, OSError, sqlite3.Error) as error:
                report(error)
                running, self._running = self._running, []
                self._fail_each(running, NO_ROOM)

    def _next_chunk(self) -> Chunk:
        self._running = self._waiting.take(self.networks.ready.chunk)
        for job, slot in self._running:
            slot.state, job.state, job.started = "running", "running", job.started or time.time()
        for job in {job.id: job for job, _ in self._running}.values():
            self._settle(job)
        first, tasks = self._running[0][0], tuple(slot.task for _, slot in self._running)
        return Chunk(next(self._numbers), first.model, tasks, first.options, first.strength)

    def _answer(self, question: Question, future: "Future[Any]") -> None:
        self.networks.send(question)
        if isinstance(answer := self.networks.receive(), Answer):
            future.set_result(answer.value)
        else:
            future.set_exception(Refused(answer.sentence))

    def _generate(self, chunk: Chunk) -> None:
        began = time.monotonic()
        self.networks.send(chunk)
        with self._changed:  # it may have been dropped just before
            self._stop_if_unwanted()
        while isinstance(message := self.networks.receive(), Step):
            self._step(message)
        self._speed = time.monotonic() - began
        if self.closing:
            return
        if isinstance(message, Made):
            self._keep(message)
        else:
            self._fail(message, self._running)
        self._running = []

    def _step(self, message: Step) -> None:
        with self._changed:
            for place, (job, slot) in enumerate(self._running):
                if slot.state == "running":
                    slot.step, job.steps = message.step, message.steps
                    slot.frames += message.previews[place : place + 1]
                    job.version += 1

    def _keep(self, made: Made) -> None:
        for (job, slot), picture, settings in zip(self._running, made.pictures, made.settings, strict=True):
            with self._changed:
                if slot.state != "running":
                    continue
                frames = list(slot.frames)
            facts = {"prompt": slot.task.prompt, "seed": slot.task.seed, "model": job.model, "job": job.id}
            facts |= {"settings": settings, "request": dict(job.request)}
            facts |= dict(zip(("width", "height"), settings["size"], strict=True))
            name = self.history.add(job.kind, picture, facts, strip=strip_of(frames))
            with self._changed:
                if slot.state != "running":  # it was dropped meanwhile
                    self.history.delete(name)
                    continue
                slot.state, slot.picture, slot.frames = "done", name, []
                job.note = job.note or note_of(settings)
                self._settle(job)

    def _fail(self, failed: Failed, running: list[tuple[Job, Slot]]) -> None:
        with self._changed:
            jobs = {job.id: job for job, slot in running if slot.state == "running"}
            for job in jobs.values():
                if len({each.id for each, _ in running}) > 1:
                    job.alone = True  # its neighbour may be to blame
                    own = [slot for each, slot in running if each is job and slot.state == "running"]
                    self._waiting.put_back(job, own)
                else:
                    job.error = failed.sentence
                    self._waiting.drop(job)
                    job.state = "failed"
                self._settle(job)

    def _lost(self, question: tuple[Question, "Future[Any]"] | None) -> None:
        """The worker has died: what it was doing fails, in words, and another one starts."""
        sentence = f"the process that generates pictures ended ({self.networks.ending()}): try it again"
        with self._changed:
            running, self._running = self._running, []
            if question:
                question[1].set_exception(Refused(sentence, status=503))
            if self.closing:
                return  # the history marks what was running
        self._fail_each(running, sentence)
        self.networks.restart()

    def _fail_each(self, running: list[tuple[Job, Slot]], sentence: str) -> None:
        """Fails jobs without another try of those that were made together."""
        for job, slot in running:
            self._fail(Failed(0, sentence), [(job, slot)])

    def _settle(self, job: Job) -> None:
        """Stores a job after a change, finished if nothing is left to be made."""
        if not job.ended and all(slot.state in ("done", "dropped") for slot in job.slots):
            job.state = "finished"
        job.version += 1
        self._store(job)
        self._changed.notify_all()
        if job.ended:
            for slot in job.slots:
                slot.frames = []
            ended = [each for each in self._jobs.values() if each.ended]
            for old in ended[:-KEPT]:
                del self._jobs[old.id]

    def _store(self, job: Job) -> bool:
        """Whether a job could be stored; one of a comparison need not be."""
        try:
            if job.kind == "picture":
                self.history.put_job(self._shown(job))
        except sqlite3.Error as error:
            report(error)
            return False
        return True

    def _shown(self, job: Job) -> dict[str, Any]:
        return job.shown(self._waiting.ahead(job) if job.state == "queued" else None)


def report(error: Exception) -> None:
    """Prints why something can't be stored; the answers to clients name no path."""
    print(f"ldm: can't be stored: {error}", file=sys.stderr, flush=True)
