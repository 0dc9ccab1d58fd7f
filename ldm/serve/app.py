"""The web application over a service: guard, routes, page, and errors in words."""

import logging
import signal
import socket
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from uvicorn.protocols.http.h11_impl import H11Protocol

from ldm import UserError, __version__
from ldm.serve import comparisons, openai_images, routes, trainings
from ldm.serve.guard import LOOPBACK, Guard
from ldm.serve.schemas import Problem
from ldm.serve.service import Refused, Service, report

PAGE = Path(__file__).with_name("page")
IDLE = 10.0  # seconds that a connection may be open without a request
CONNECTIONS = 1_000  # at the same time; more are answered with 503
DESCRIPTION = """Pictures from prompts, by the models that this server was started with.

`POST /v1/generate` returns a job; `GET /v1/jobs/{id}/events` follows it; `GET /v1/pictures/{id}` is a PNG
whose text chunks say how it was made. The same prompt, seed and options give the same bytes, whatever else is
asked for meanwhile."""


class Files(StaticFiles):
    """The page's files; a browser asks whether each has changed, so that it never mixes two versions."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        """A file, or the answer that it is unchanged."""
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def create_app(service: Service, *, host: str, token: str | None, runs: Path) -> FastAPI:
    """The application.

    Args:
        runs: folder of the trainings that the page shows.
        host: address that the server listens at: it decides which Host headers are ours.
        token: is demanded of every request, where there is one.
    """
    statuses = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503)
    problems: dict[int | str, Any] = {status: {"model": Problem} for status in statuses}
    app = FastAPI(
        title="ldm",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        responses=problems,
        dependencies=[] if token is None else [Depends(HTTPBearer(auto_error=False))],  # describes it
    )
    is_local = host in LOOPBACK
    hosts = () if is_local else (host, socket.gethostname())
    app.add_middleware(Guard, hosts=hosts, numbers=not is_local, token=token)
    app.state.service, app.state.runs = service, runs
    for part in (routes, comparisons, trainings, openai_images):
        app.include_router(part.routes)
    app.mount("/", Files(directory=PAGE, html=True))
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, failed)
    app.add_exception_handler(UserError, refused)
    for kind in (OSError, sqlite3.Error):
        app.add_exception_handler(kind, unstored)
    app.add_exception_handler(Exception, broken)
    return app


class Connection(H11Protocol):
    """A connection that ends if for `IDLE` seconds no request is whole: half ones could take all places."""

    def connection_made(self, transport: Any) -> None:
        """Begins to watch it."""
        super().connection_made(transport)
        self.loop.call_later(IDLE, self.watch, None)

    def watch(self, before: Any) -> None:
        """Closes it if no request is answered now, and none was since the last look."""
        answers = self.cycle is not None and not self.cycle.response_complete
        if self.cycle is before and not answers:
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(IDLE, self.watch, self.cycle)


def run(app: FastAPI, service: Service, listening: socket.socket) -> None:
    """Answers requests until a signal ends it; streams of events end with it."""
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http=Connection,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=1,
    )

    class Server(uvicorn.Server):
        def handle_exit(self, *caught: Any) -> None:
            service.closing = True
            super().handle_exit(*caught)

    # of what is still open when the server ends, uvicorn logs a traceback that says so
    logging.getLogger("uvicorn.error").addFilter(lambda _: not service.closing)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):  # uvicorn raises its signal again after an orderly end
        Server(settings).run(sockets=[listening])


def answered(
    request: Request, status: int, sentence: str, *, field: str | None = None, wait: int | None = None
) -> JSONResponse:
    """An error as json, of the shape that clients of the route expect."""
    headers = {} if wait is None else {"retry-after": str(wait)}
    content: dict[str, Any] = {"error": sentence} | ({} if field is None else {"field": field})
    if request.url.path.startswith("/v1/images/"):
        content = openai_images.problem(status, sentence, field)
    return JSONResponse(content, status, headers)


def invalid(request: Request, error: Exception) -> JSONResponse:
    """422 for the first field that is wrong."""
    first = error.errors()[0]  # type: ignore[attr-defined]
    field = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return answered(request, 422, f"{field or 'the body'}: {first['msg']}", field=field or None)


def failed(request: Request, error: Exception) -> JSONResponse:
    """Answers an error of the framework: an unknown address, another method, a broken body."""
    assert isinstance(error, HTTPException)
    return answered(request, error.status_code, str(error.detail))


def refused(request: Request, error: Exception) -> JSONResponse:
    """Answers a `UserError` with its sentence; `Refused` also sets status, field and waiting time."""
    status, field, wait = (422, None, None)
    if isinstance(error, Refused):
        status, field, wait = error.status, error.field, error.wait
    return answered(request, status, str(error), field=field, wait=wait)


def unstored(request: Request, error: Exception) -> JSONResponse:
    """A disk that is full or can't be written to: the server's log says which."""
    report(error)
    return answered(request, 503, "this can't be stored now: the server's log says why", wait=60)


def broken(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours, whose traceback the server prints."""
    return answered(request, 500, "a fault of the program: its log has the traceback")
