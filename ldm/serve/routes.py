"""The routes that generate pictures, follow jobs, keep pictures, and look inside them."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from PIL import Image

from ldm import __version__
from ldm.serve.history import History
from ldm.serve.requests import checked_settings, submitted, uploaded
from ldm.serve.schemas import Generate, Health, JobNow, Kept, Model, Settings, Upload
from ldm.serve.service import Refused, Service
from ldm.serve.worker import attention_of, nearest_of

POLL = 0.1  # seconds between two looks at a job that a client follows
PATIENCE = 120.0  # seconds for a look inside: the training set is read at the first question
MAX_IDS = 20_000  # characters: of a thousand ids
Id = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
PNG, EVENTS, ZIP = (
    {200: {"content": {kind: {}}}} for kind in ("image/png", "text/event-stream", "application/zip")
)
INSIDE = ["look inside"]  # tag

routes = APIRouter()


def service_of(request: Request) -> Service:
    """The service of the application that answers a request."""
    return request.app.state.service


Serving = Annotated[Service, Depends(service_of)]


def found(what: Any, name: str = "picture") -> Any:
    """The object, if it was found; raises Refused with status 404 for None and False."""
    if what is None or what is False:
        raise Refused(f"there is no such {name}", status=404)
    return what


@routes.get("/health", response_model=Health)
def health(service: Serving) -> dict[str, Any]:
    """Whether the server works, and how full its queue is."""
    return {"version": __version__, **service.health()}


@routes.get("/v1/models", response_model=list[Model])
def models(service: Serving) -> list[dict[str, Any]]:
    """The models, the default one first."""
    return list(service.models.values())


@routes.post("/v1/generate", status_code=202, response_model=JobNow)
def generate(service: Serving, asked: Generate) -> dict[str, Any]:
    """Queues pictures; returns the job, which is followed under `/v1/jobs/{id}`."""
    return submitted(service, asked)


@routes.post("/v1/uploads", status_code=201, response_model=Upload)
def upload(service: Serving, file: UploadFile) -> dict[str, Any]:
    """Keeps a picture (PNG, JPEG or WebP) to start from, or a mask; returns its id and size."""
    return uploaded(service.history, file.file.read())


@routes.post("/v1/settings", response_model=Settings)
def settings(service: Serving, file: UploadFile) -> dict[str, Any]:
    """The settings that a PNG of this server, or of `ldm.sample`, carries."""
    return checked_settings(service, file.file.read())


@routes.get("/v1/jobs", response_model=list[JobNow])
def jobs(service: Serving, limit: Annotated[int, Query(ge=1, le=200)] = 50) -> list[dict[str, Any]]:
    """The newest jobs, newest first."""
    return service.jobs(limit)


@routes.get("/v1/jobs/{name}", response_model=JobNow)
def job(service: Serving, name: Id) -> dict[str, Any]:
    """A job as it stands now."""
    return found(service.job(name), "job")


@routes.get("/v1/jobs/{name}/events", responses=EVENTS, response_class=StreamingResponse)
async def events(service: Serving, name: Id, request: Request) -> StreamingResponse:
    """The job at each of its changes, as server-sent events `job`, then `end`."""
    found(service.job(name), "job")

    async def _events() -> AsyncIterator[str]:
        last: int | None = -1
        while last is not None and not service.closing:
            version = service.version(name)
            if version != last:
                last = version
                yield f"event: job\ndata: {json.dumps(service.job(name))}\n\n"
            else:
                await asyncio.sleep(POLL)
        yield "event: end\ndata: {}\n\n"

    return StreamingResponse(_events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


@routes.get("/v1/jobs/{name}/preview/{number}", responses=PNG, response_class=Response)
def preview(service: Serving, name: Id, number: int, step: int | None = None) -> Response:
    """A preview of a picture that is being made: the newest, or one of those before it."""
    return png(found(service.frame(name, number, step), "preview"))


@routes.delete("/v1/jobs/{name}", response_model=JobNow)
def stop(service: Serving, name: Id) -> dict[str, Any]:
    """Stops a job within a sampling step; pictures that are done stay."""
    shown = found(service.job(name), "job")
    if not service.stop(name):
        raise Refused(f"the job is {shown['state']} and can't be stopped any more", status=409)
    return found(service.job(name), "job")


@routes.post("/v1/jobs/{name}/skip", response_model=JobNow)
def skip(service: Serving, name: Id) -> dict[str, Any]:
    """Skips the pictures that are now being made, and continues with the job's next ones."""
    found(service.job(name), "job")
    if not service.skip(name):
        raise Refused("no picture of the job is being made now", status=409)
    return found(service.job(name), "job")


@routes.get("/v1/history", response_model=list[Kept])
def pictures(
    service: Serving, before: float | None = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> list[dict[str, Any]]:
    """Generated pictures, newest first; `before` is the `created` of the last one that is known."""
    return service.history.list(before=before, limit=limit)


@routes.get("/v1/pictures.zip", responses=ZIP, response_class=StreamingResponse)
def archive(
    service: Serving, ids: Annotated[str | None, Query(max_length=MAX_IDS)] = None
) -> StreamingResponse:
    """Pictures in a zip file: those with these ids, joined by commas, or all."""
    names = service.history.names() if ids is None else list(dict.fromkeys(ids.split(",")))
    return StreamingResponse(zipped(service.history, names), media_type="application/zip")


@routes.get("/v1/pictures/{name}", responses=PNG, response_class=Response)
def picture(service: Serving, name: Id) -> Response:
    """A picture with its record inside."""
    return png(found(service.history.read(name)))


@routes.get("/v1/pictures/{name}/thumbnail", responses=PNG, response_class=Response)
def thumbnail(service: Serving, name: Id) -> Response:
    """A small version of a picture."""
    return png(found(service.history.thumbnail(name)))


def facts_of(service: Service, name: str) -> dict[str, Any]:
    """The entry of a picture in the list; raises Refused if it is missing, or its model isn't loaded."""
    facts = found(service.history.facts(name, "picture"))
    if facts["model"] not in service.models:
        remedy = "start the server with it"
        raise Refused(f"the model {facts['model']} of this picture is not loaded: {remedy}", status=409)
    return facts


@routes.get("/v1/pictures/{name}/nearest", tags=INSIDE)
def nearest(service: Serving, name: Id) -> dict[str, Any]:
    """The training pictures that a picture is most like; takes a while at the first time."""
    facts = facts_of(service, name)
    return service.ask(facts["model"], nearest_of, str(service.history.path(name)), wait=PATIENCE)


@routes.get("/v1/pictures/{name}/attention", tags=INSIDE)
def attention(service: Serving, name: Id) -> dict[str, Any]:
    """For each word a map of where it was read; generates the picture once more."""
    facts = facts_of(service, name)
    return service.ask(facts["model"], attention_of, facts["settings"], wait=PATIENCE)


@routes.get("/v1/pictures/{name}/filmstrip", tags=INSIDE)
def filmstrip(service: Serving, name: Id) -> dict[str, Any]:
    """The previews of a picture's steps: how many there are, and where the strip of them is."""
    found(service.history.facts(name, "picture"))
    strip = service.history.strip(name)
    if strip is None:
        return {"sentence": "This system shows no steps, or they were not kept.", "count": 0, "url": None}
    with Image.open(io.BytesIO(strip), formats=("PNG",)) as picture:
        count = picture.width // picture.height
    return {"sentence": "", "count": count, "url": f"/v1/pictures/{name}/filmstrip/strip"}


@routes.get("/v1/pictures/{name}/filmstrip/strip", tags=INSIDE, response_class=Response)
def strip(service: Serving, name: Id) -> Response:
    """All previews of a picture beside each other, first step first."""
    return png(found(service.history.strip(name), "filmstrip"))


@routes.delete("/v1/pictures/{name}", status_code=204)
def delete(service: Serving, name: Id) -> None:
    """Removes a picture for good."""
    found(service.history.delete(name))


class Pieces(io.RawIOBase):
    """A stream whose bytes are taken away while it is written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []

    def writable(self) -> bool:
        """True: `zipfile` asks before it writes."""
        return True

    def write(self, piece: Any) -> int:
        """Keeps bytes until they are taken."""
        self.pieces.append(bytes(piece))
        return len(piece)

    def take(self) -> bytes:
        """What was written since the last call."""
        taken, self.pieces = b"".join(self.pieces), []
        return taken


def zipped(history: History, names: Iterable[str]) -> Iterator[bytes]:
    """A zip file of pictures, piece by piece: only one of them is in memory."""
    stream = Pieces()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as packed:
        for name in names:
            if (picture := history.read(name)) is not None:
                packed.writestr(f"{name}.png", picture)
                yield stream.take()
    yield stream.take()


def png(data: bytes) -> Response:
    """A picture that never changes under its address."""
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=86400"})
