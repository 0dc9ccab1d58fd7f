"""`POST /v1/images/generations` as clients of OpenAI's image endpoint send it, answered with base64."""

import asyncio
import base64
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from ldm.randomness.seeds import SEED_LIMIT
from ldm.serve.requests import model_of, submitted
from ldm.serve.routes import Serving
from ldm.serve.schemas import Checked, Generate, Prompt, Seed, Text
from ldm.serve.service import Refused, Service

POLL = 0.05  # seconds
STATUSES = (400, 401, 403, 404, 413, 415, 422, 429, 500, 503)
QUALITIES = {
    "low": "fast",
    "medium": "balanced",
    "standard": "balanced",
    "auto": "balanced",
    "high": "best",
    "hd": "best",
}


class Generations(Checked):
    """OpenAI's request, as far as it has a meaning here; anything else is refused, not ignored."""

    prompt: Prompt
    model: Annotated[str, Field(max_length=100)] | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = Field(None, description="`auto`, or the model's own such as `64x64`")
    quality: Literal["low", "medium", "standard", "auto", "high", "hd"] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png"] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = None
    user: Text | None = None
    seed: Seed | None = Field(None, description="of the first picture; not among OpenAI's fields")


class Image(BaseModel):
    """A picture: a PNG with its record, in base64."""

    b64_json: str


class Images(BaseModel):
    """The pictures of a request."""

    created: int = Field(description="seconds since 1970")
    data: list[Image]


class Fault(BaseModel):
    """Why a request was not served."""

    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """The shape of OpenAI's errors."""

    error: Fault


REFUSALS: dict[int | str, Any] = {status: {"model": Refusal} for status in STATUSES}


routes = APIRouter()


@routes.post("/v1/images/generations", response_model=Images, responses=REFUSALS)
async def generations(service: Serving, asked: Generations, request: Request) -> dict[str, Any]:
    """Pictures of a prompt, answered once all are made; a client that hangs up cancels them."""
    job = submitted(service, translated(service, asked))
    while job["state"] in ("queued", "running"):
        if service.closing or await request.is_disconnected():
            service.stop(job["id"])
        await asyncio.sleep(POLL)
        job = service.job(job["id"]) or job
    if job["state"] != "finished":
        raise Refused(job["error"] or f"the job was {job['state']}", status=500)
    pictures = [service.history.read(name) for name in job["pictures"] if name]
    data = [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures if picture]
    return {"created": int(time.time()), "data": data}


def translated(service: Service, asked: Generations) -> Generate:
    """The request in our words; raises Refused for a size or format that there is not."""
    model, count = model_of(service, asked.model), asked.n or 1
    own = f"{model['size']}x{model['size']}"
    if asked.size not in (None, "auto", own):
        raise Refused(f"size={asked.size[:20]} is not what {model['id']} makes: write {own}", field="size")
    if asked.response_format == "url":
        raise Refused(
            "response_format=url is not offered: write b64_json, which returns the picture itself",
            field="response_format",
        )
    if (asked.seed or 0) + count > SEED_LIMIT:
        raise Refused(f"seed={asked.seed} is too large for {count} pictures", field="seed")
    seeds = None if asked.seed is None else [asked.seed + number for number in range(count)]
    return Generate(
        prompts=[asked.prompt],
        model=model["id"],
        count=count,
        seeds=seeds,
        quality=QUALITIES[asked.quality or "auto"],
    )


def problem(status: int, sentence: str, field: str | None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    kinds = {429: "rate_limit_error", 401: "authentication_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    codes = {404: "model_not_found", 429: "rate_limit_exceeded"}
    return {"error": {"message": sentence, "type": kind, "param": field, "code": codes.get(status)}}
