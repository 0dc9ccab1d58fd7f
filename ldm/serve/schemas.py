"""Schemas of requests and answers, field by field with limits; FastAPI derives the OpenAPI page from them."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ldm.randomness.seeds import SEED_LIMIT

MAX_PICTURES = 64  # of a job
MAX_TEXT = 2_000  # characters of a prompt; a text encoder reads some 300
MAX_STEPS = 250


def whole_of(value: Any) -> Any:
    """The number of a text of digits, as the page sends seeds that JavaScript's numbers can't hold."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{16,19}", value) else value


Seed = Annotated[int, BeforeValidator(whole_of), Field(strict=True, ge=0, lt=SEED_LIMIT)]
Id = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Number = Annotated[float, Field(strict=True, ge=-1e6, le=1e6)]
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Name = Annotated[str, Field(pattern="^[a-z0-9_]{1,40}$")]


class Checked(BaseModel):
    """Refuses fields that it does not have, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Options(Checked):
    """Options of one model, as `GET /v1/models` lists them; those that are left out are the model's.

    Further ones are numbers: each system has its own, such as a temperature.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[Name, Number]

    negative: Text | None = Field(None, description="what guidance moves away from")
    scale: float | None = Field(None, strict=True, ge=-100, le=100, description="guidance scale")
    steps: int | None = Field(None, strict=True, ge=1, le=MAX_STEPS, description="sampling steps")
    candidates: int | None = Field(None, strict=True, ge=1, le=16, description="the best one is kept")
    sampler: Name | None = None
    grid: Name | None = None
    guidance: Name | None = None


class From(Checked):
    """A picture to start from, by the id of a generated picture or of an upload."""

    picture: Id
    strength: float | None = Field(None, ge=0, le=1, description="0 keeps the picture, 1 ignores it")
    mask: Id | None = Field(None, description="upload of the same size, white where pixels are made anew")


class Generate(Checked):
    """Pictures to be generated: `count` of each prompt."""

    prompts: list[Prompt] = Field(min_length=1, max_length=MAX_PICTURES, examples=[["a red apple"]])
    model: Annotated[str, Field(max_length=100)] | None = Field(None, description="an id of `GET /v1/models`")
    seeds: list[Seed | None] | None = Field(
        None, max_length=MAX_PICTURES, description="one for each picture; null: random"
    )
    count: int = Field(1, strict=True, ge=1, le=MAX_PICTURES, description="pictures of each prompt")
    quality: Literal["fast", "balanced", "best"] = "balanced"
    options: Options = Options()
    source: From | None = None


class JobNow(BaseModel):
    """A job as it stands now."""

    id: str
    state: Literal["queued", "running", "finished", "stopped", "failed", "interrupted"]
    created: float = Field(description="seconds since 1970")
    model: str
    position: int | None = Field(description="jobs that are ahead in the queue")
    step: int = Field(description="sampling steps that are done, of all pictures together")
    steps: int = Field(description="sampling steps of all pictures; 0 before the first one")
    seconds_left: float | None
    seeds: list[int]
    pictures: list[str | None] = Field(description="ids for `GET /v1/pictures/{id}`")
    previews: list[str | None] = Field(description="addresses of the newest previews")
    error: str | None = Field(description="why it failed, and what to do")
    note: str | None = Field(None, description="what was done otherwise than asked: a prompt was cut")
    request: dict[str, Any]


class Model(BaseModel):
    """A model that generates pictures."""

    id: str
    name: str
    sha256: str
    size: int = Field(description="pixels of a side")
    parameters: int | None
    default: dict[str, Any]
    options: list[str]
    choices: dict[str, list[str]]
    starts_from_pictures: bool
    examples: list[str]
    presets: dict[str, dict[str, int]]
    preview: bool = Field(description="whether pictures are shown, and can be stopped, while they are made")


class Health(BaseModel):
    """Whether the server works, and how full its queue is."""

    status: Literal["ok", "fault"] = Field(description="after a fault the server must be started again")
    version: str
    worker: Literal["alive", "restarting"] = Field(description="the process that has the networks")
    queue: int = Field(description="pictures that wait")
    limit: int = Field(description="pictures that may wait")


class Upload(BaseModel):
    """A picture that was sent, as it is kept."""

    id: str
    width: int
    height: int


class Settings(BaseModel):
    """The settings that a PNG carries: with them, `POST /v1/generate` makes it again."""

    prompt: str
    seed: int | None
    model: str | None
    quality: str
    options: dict[str, Any]
    source: dict[str, Any] | None
    known: bool = Field(description="whether the model is one of this server's")


class Kept(BaseModel):
    """A generated picture in the history."""

    id: str
    created: float
    prompt: str
    seed: int
    model: str
    job: str
    width: int
    height: int
    request: dict[str, Any]
    settings: dict[str, Any] = Field(description="the record in the PNG")


class Problem(BaseModel):
    """Why a request was not served."""

    error: str = Field(description="one sentence: what is wrong, the limit, what to do")
    field: str | None = None
