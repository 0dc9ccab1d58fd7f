"""W&B services on this machine: one that answers as the real one does, and ways to be out of order."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

DRIP = 1.0  # seconds between two bytes
KEY = "0123456789" * 4  # what a key looks like


class Handler(BaseHTTPRequestHandler):
    """Reads a request and lets the service's behaviour of the moment answer it."""

    protocol_version = "HTTP/1.1"
    server: "Listener"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with suppress(OSError):  # the client has gone
            self.server.service.behaviour(self, body)

    do_GET = do_PUT = do_POST

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


class Listener(ThreadingHTTPServer):
    """A port of this machine, with a thread a connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, service: "Service") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.service = service

    def handle_error(self, *_: Any) -> None:
        """A broken connection is what a client sees here, too."""


Behaviour = Callable[[Handler, bytes], None]


class Service:
    """A service that behaves in one way until it is given another; a context manager.

    Attributes:
        url: its address.
        behaviour: how it meets requests.
        history: the lines of numbers that it was sent, in the order of their arrival.
        files: names of the files that it was sent.
    """

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.history: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.closed = threading.Event()
        self._listener = Listener(self)
        self.url = f"http://127.0.0.1:{self._listener.server_port}"

    def __enter__(self) -> "Service":
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vanish()

    def vanish(self) -> None:
        """Closes the port; a connection that is open hears nothing any more."""
        if not self.closed.is_set():
            self.closed.set()
            self.behaviour = black_hole
            self._listener.shutdown()
            self._listener.server_close()


def answers(handler: Handler, body: bytes) -> None:
    """Takes what it is sent, as W&B does."""
    service, path = handler.server.service, handler.path
    document: dict[str, Any] = {}
    if path.endswith("/graphql"):
        document = {"data": graphql(service, json.loads(body))}
    elif path.endswith("/file_stream"):
        chunks = json.loads(body).get("files") or {}
        lines = chunks.get("wandb-history.jsonl", {}).get("content", [])
        service.history += [json.loads(line) for line in lines]
    elif path.startswith("/storage/"):
        service.files.append(path.removeprefix("/storage/"))
    handler.answer(200, json.dumps(document).encode())


def graphql(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    """What the queries of wandb 0.31 ask for: a user, a run that is new or known, places for files."""
    names = (request.get("variables") or {}).get("files") or []
    project = {"id": "p", "name": "ldm", "entity": {"id": "e", "name": "me"}}
    bucket = {"id": "b", "name": "run", "displayName": "run", "project": project, "historyLineCount": 0}
    places = [{"name": name, "uploadUrl": f"{service.url}/storage/{name}"} for name in names]
    return {
        "viewer": {"id": "me", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}},
        "serverInfo": {"features": []},
        "model": None,
        "upsertBucket": {"bucket": bucket, "inserted": True},
        "createRunFiles": {"runID": "b", "uploadHeaders": [], "files": places},
    }


def knows_nobody(handler: Handler, body: bytes) -> None:
    """Answers that the key is nobody's."""
    handler.answer(200, b'{"data": {"viewer": null}}')


def errs(handler: Handler, body: bytes) -> None:
    """Answers 500 to everything."""
    handler.answer(500, b"out of order")


def black_hole(handler: Handler, body: bytes) -> None:
    """Takes everything and never answers."""
    handler.server.service.closed.wait()


def drips(handler: Handler, body: bytes) -> None:
    """Answers one byte a second, for an hour."""
    handler.send_response(200)
    handler.send_header("Content-Length", "3600")
    handler.end_headers()
    while not handler.server.service.closed.wait(DRIP):
        handler.wfile.write(b" ")
        handler.wfile.flush()
