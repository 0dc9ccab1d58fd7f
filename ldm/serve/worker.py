"""The process that has the networks: it loads the bundles, then generates one chunk of pictures at a time.

Every call of a generator has the same number of rows, and a short chunk is filled up with copies of its last
task: kernels sum in an order that the number of rows decides, so that only then a picture has the same bytes
whatever is generated beside it. A picture that is alone so takes the time of a whole chunk.

The named tuples are the messages between this process and the one that answers requests, as plain data.
"""

import json
import signal
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from inspect import signature
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from ldm import UserError

REQUEST = "ldm serve"  # text chunk of a PNG: the request that it answers
OPEN = 2  # generators that are kept in memory; a comparison needs two
SIDE = 128  # pixels of a preview's side at most
FRAMES = 32  # previews of a picture at most


class Task(NamedTuple):
    """One picture to be generated."""

    prompt: str
    seed: int
    image: Path | None  # the source picture
    mask: Path | None
    note: str  # the request, as json, which the PNG carries beside its record


class Chunk(NamedTuple):
    """Pictures that one call of a generator makes: all of them share model, options and strength."""

    number: int
    model: str
    tasks: tuple[Task, ...]
    options: Mapping[str, Any]  # of the generator; sampler, grid and guidance by the names of their files
    strength: float | None  # of source pictures; None: the default


class Question(NamedTuple):
    """A function to be called with an opened generator and a payload, where the networks are."""

    number: int
    model: str
    function: Callable[[Any, Any], Any]  # of a module, so that its name can be sent
    payload: Any


class Stop(NamedTuple):
    """The chunk with this number is no longer wanted."""

    number: int


class Ready(NamedTuple):
    """The models are loaded; their descriptions, as `GET /v1/models` returns them."""

    models: tuple[dict[str, Any], ...]
    chunk: int  # pictures that one call makes


class Step(NamedTuple):
    """A sampling step of a chunk is done; previews are PNG files, one for each task, or none."""

    number: int
    step: int
    steps: int
    previews: tuple[bytes, ...]


class Made(NamedTuple):
    """The pictures of a chunk, as PNG files with their records, and their settings."""

    number: int
    pictures: tuple[bytes, ...]
    settings: tuple[dict[str, Any], ...]


class Answer(NamedTuple):
    """What a question's function returned."""

    number: int
    value: Any


class Failed(NamedTuple):
    """A chunk, a question or the start ended with a sentence for the user, or a chunk was stopped."""

    number: int
    sentence: str


class Stopped(Exception):
    """Nobody wants the chunk any more, or the server is gone."""


def run(connection: Connection, bundles: Mapping[str, str], chunk: int | None) -> None:
    """Answers messages until the connection ends; a start that fails is answered with a sentence.

    Args:
        bundles: path of a bundle by the id of its model.
        chunk: rows of each call of a generator; None: 4 on a CPU, 16 on a GPU.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends this process
    try:
        worker = Worker(connection, bundles, chunk)
        connection.send(Ready(tuple(worker.descriptions()), worker.chunk))
    except (UserError, OSError) as error:
        return connection.send(Failed(0, str(error)))
    try:
        while (message := connection.recv()) is not None:
            if not isinstance(message, Stop):  # of a chunk that has just ended
                connection.send(worker.answer(message))
    except (EOFError, ConnectionError):
        pass  # the server is gone


class Worker:
    """The generators and what is done with them."""

    def __init__(self, connection: Connection, bundles: Mapping[str, str], chunk: int | None) -> None:
        import torch

        from ldm.codec import CPU_CHUNK, GPU_CHUNK

        self.connection, self.bundles = connection, bundles
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.chunk = chunk or (CPU_CHUNK if self.device == "cpu" else GPU_CHUNK)
        self.opened = lru_cache(maxsize=OPEN)(self._open)

    def _open(self, model: str) -> Any:
        from dataclasses import replace

        from ldm.checkpoints.bundle import Bundle
        from ldm.generators.generator import open_generator
        from ldm.generators.preview import watchable

        opened = open_generator(Bundle.open(self.bundles[model])).to(self.device)
        return replace(opened, generator=watchable(opened.generator))

    def descriptions(self) -> list[dict[str, Any]]:
        """Each model as `GET /v1/models` returns it; raises BundleError for one that can't be opened."""
        from ldm.serve.describing import described

        return [described(name, self.opened(name)) for name in self.bundles]

    def answer(self, message: Chunk | Question) -> Made | Answer | Failed:
        """The result of a chunk or a question; an error becomes a sentence, and bugs are printed as well."""
        try:
            if isinstance(message, Question):
                value = message.function(self.opened(message.model), message.payload)
                return Answer(message.number, value)
            return self.generate(message)
        except Stopped:
            return Failed(message.number, "stopped")
        except UserError as error:
            return Failed(message.number, str(error))
        except ConnectionError:  # the server is gone
            raise
        except MemoryError:
            return Failed(message.number, "the memory is full: ask for fewer or smaller pictures")
        except Exception:  # the next chunk must still be answered
            traceback.print_exc()
            return Failed(message.number, "a fault of the program: its log has the traceback")

    def generate(self, chunk: Chunk) -> Made:
        """The pictures of a chunk with their records; raises UserError."""
        from ldm.sampling.batches import generate_batch
        from ldm.sampling.jobs import Job

        if any(
            file is not None and not file.is_file()
            for task in chunk.tasks
            for file in (task.image, task.mask)
        ):
            raise UserError("the picture to start from was deleted: choose another one")
        opened = self.opened(chunk.model)
        options = {name: value for name, value in chunk.options.items() if name not in ("negative", "scale")}
        configured = opened.with_options(**nodes_of(options))
        jobs = [
            Job(
                prompt=task.prompt,
                seed=task.seed,
                name=str(place),
                negative=chunk.options.get("negative", ""),
                scale=chunk.options.get("scale"),
                image=task.image,
                mask=task.mask,
                strength=chunk.strength,
            )
            for place, task in enumerate(chunk.tasks)
        ]
        filled = [*jobs, *[jobs[-1]] * (self.chunk - len(jobs))]
        watching = {}
        if "watch" in signature(configured.generator.__call__).parameters:
            watching["watch"] = self.watch(chunk)
        samples = generate_batch(configured, filled, **watching)[: len(jobs)]
        return self.made(chunk, samples)

    def made(self, chunk: Chunk, samples: list[Any]) -> Made:
        """Samples as PNG files."""
        from ldm.io.pictures import encode_sample
        from ldm.sampling.record import chunks

        # a row's place changes no bit of it, so that equal requests get equal records, too
        facts = [each.facts | {"batch": {"place": 0, "size": self.chunk}} for each in samples]
        texts = [chunks(own) | {REQUEST: task.note} for own, task in zip(facts, chunk.tasks, strict=True)]
        files = (encode_sample(each.image, texts=own) for each, own in zip(samples, texts, strict=True))
        # as plain data: torch's own version is a text of a class of torch, which the server would import
        plain = json.loads(json.dumps(facts))
        return Made(chunk.number, tuple(files), tuple(plain))

    def watch(self, chunk: Chunk) -> Callable[[Any], None]:
        """What a generator calls after its steps: it sends previews, and raises Stopped when asked to."""

        def _watch(progress: Any) -> None:
            # a system that decodes codes takes longer for a preview than for a step, of which it has hundreds
            is_shown = progress.step % -(-progress.steps // FRAMES) == 0 or progress.step == progress.steps
            previews = progress.preview()[: len(chunk.tasks)] if is_shown else ()
            pictures = tuple(preview_file(each) for each in previews)
            self.connection.send(Step(chunk.number, progress.step, progress.steps, pictures))
            while self.connection.poll():
                message = self.connection.recv()
                if message is None or message.number == chunk.number:
                    raise Stopped

        return _watch


def preview_file(image: Any) -> bytes:
    """A PNG of a uint8 tensor, 3 h w, of at most `SIDE` pixels a side."""
    from ldm.io.pictures import encode_png, to_picture

    picture = to_picture(image)
    picture.thumbnail((SIDE, SIDE))
    return encode_png(picture, pnginfo=None, compress_level=1)


def nodes_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the config nodes of the files that sampler, grid and guidance name."""
    from omegaconf import OmegaConf

    from ldm.config import CONF, own_confs

    def node(group: str, name: Any) -> Any:
        files = (conf / group / f"{name}.yaml" for conf in (CONF, *own_confs()))
        file = next(file for file in files if file.is_file())
        return OmegaConf.to_container(OmegaConf.load(file), resolve=True)

    return {
        name: node(name, value) if name in ("sampler", "grid", "guidance") else value
        for name, value in options.items()
    }


def nearest_of(opened: Any, file: str) -> dict[str, Any]:
    """What `nearest_pictures` returns for a file."""
    from ldm.serve.explanations import nearest_pictures

    return nearest_pictures(opened.bundle, Path(file))


def attention_of(opened: Any, facts: dict[str, Any]) -> dict[str, Any]:
    """What `heat_maps` returns for the record of a picture."""
    from ldm.sampling.jobs import Job
    from ldm.sampling.record import settings_of
    from ldm.serve.explanations import heat_maps

    own = opened.generator.settings()
    changed = {name: value for name, value in settings_of(facts).items() if own.get(name) != value}
    files = {name: Path(facts[name]["file"]) for name in ("image", "mask") if name in facts}
    if not all(file.is_file() for file in files.values()):
        raise UserError("the picture that this one was started from was deleted: there are no maps")
    fields = {name: facts[name] for name in ("prompt", "seed", "negative", "strength") if name in facts}
    job = Job(name="again", **fields, **files)
    return heat_maps(opened.with_options(**changed), job)
