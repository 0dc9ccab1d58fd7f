"""What the process that answers requests and the one that has the networks send each other, as plain data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


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
